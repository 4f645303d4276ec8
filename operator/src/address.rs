//! Where a worker is: the address of its pod, as the watch of pods shows it. It is what the cluster's DNS would answer for the
//! headless Service, without the seconds (or the cached "no such name") that DNS takes to learn of a pod.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{ObjectRef, Store};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Answers names of workers out of the pods that are known.
pub struct Workers(pub Store<Pod>);

impl Resolve for Workers {
    fn resolve(&self, name: Name) -> Resolving {
        let found = pod(name.as_str())
            .and_then(|of| self.0.get(&of))
            .and_then(|pod| address(&pod));
        Box::pin(async move {
            let Some(ip) = found else {
                return Err("the worker's pod has no address".into());
            };
            let addresses: Addrs = Box::new(std::iter::once(SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

/// The pod of a name `pod.service.namespace.svc`.
fn pod(name: &str) -> Option<ObjectRef<Pod>> {
    let parts: Vec<&str> = name.split('.').collect();
    let [pod, _, namespace, "svc"] = parts.as_slice() else {
        return None;
    };
    Some(ObjectRef::new(pod).within(namespace))
}

fn address(of: &Pod) -> Option<IpAddr> {
    of.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::{reflector, watcher};
    use serde_json::json;

    #[test]
    fn a_worker_is_found_by_its_name_once_its_pod_has_an_address() {
        let (pods, mut writer) = reflector::store::<Pod>();
        let named = |ip: Option<&str>| -> Pod {
            let metadata = json!({"name": "a-worker-0", "namespace": "risk"});
            serde_json::from_value(json!({"metadata": metadata, "status": {"podIP": ip}})).unwrap()
        };
        let find = || pod("a-worker-0.a-worker.risk.svc").and_then(|of| address(&*pods.get(&of)?));
        writer.apply_watcher_event(&watcher::Event::Apply(named(None)));
        assert_eq!(find(), None);
        writer.apply_watcher_event(&watcher::Event::Apply(named(Some("10.1.2.3"))));
        assert_eq!(find(), Some("10.1.2.3".parse().unwrap()));
        assert!(pod("a-worker-0.a-worker.risk.example.com").is_none());
    }
}
