//! What an administrator allows the jobs of each namespace: where their logs lie, which images they run, how many workers of what
//! size they have. One pure function, asked by the webhook and by the controller, so both say the same words.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::kubernetes::{quantity, shown};
use crate::diagnostic::{Code, Diagnostic};
use crate::job::{StorageKind, StreamingJob};
use crate::units::Quantity;
use crate::workers::{IntOrText, Resources};

/// Bounds of every namespace, as the chart's values give them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bounds {
    /// Of namespaces that have none of their own.
    pub default: Bound,
    /// Of single namespaces; what one does not say is said by `default`.
    pub namespaces: BTreeMap<String, Bound>,
}

/// What a job of one namespace may ask for. What is absent is not bounded; an empty list allows nothing but the chart's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bound {
    /// Folders below which logs may lie: `s3://bucket/prefix`.
    pub storage: Option<Vec<String>>,
    /// Beginnings of images, whole parts of a name: `registry.example.com/penstock`.
    pub images: Option<Vec<String>>,
    /// Most workers of a job.
    pub replicas: Option<u32>,
    /// Largest volume, or ephemeral volume, of a worker.
    pub volume: Option<Quantity>,
    /// Most cores of a worker.
    pub cpu: Option<Amount>,
    /// Most bytes of memory of a worker.
    pub memory: Option<Amount>,
}

/// A quantity of Kubernetes that was read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "IntOrText")]
pub struct Amount {
    of: IntOrText,
    value: f64,
}

impl TryFrom<IntOrText> for Amount {
    type Error = String;

    fn try_from(of: IntOrText) -> Result<Self, String> {
        let value = quantity(&of).ok_or_else(|| format!("{:?} is no quantity", shown(&of)))?;
        Ok(Self { of, value })
    }
}

/// One bound that holds for a namespace, and where the values say it.
struct Found<'a, T> {
    is: &'a T,
    value: String,
}

impl Bounds {
    fn find<'a, T>(
        &'a self,
        namespace: &str,
        name: &str,
        of: impl Fn(&'a Bound) -> Option<&'a T>,
    ) -> Option<Found<'a, T>> {
        let own = self.namespaces.get(namespace).and_then(&of);
        let found = |is, whose: &str| Found {
            is,
            value: format!("bounds.{whose}.{name}"),
        };
        match own {
            Some(is) => Some(found(is, &format!("namespaces.{namespace}"))),
            None => of(&self.default).map(|is| found(is, "default")),
        }
    }
}

impl<T> Found<'_, T> {
    fn fault(&self, path: &str, message: String, way: &str) -> Diagnostic {
        let help = format!(
            "{way}, or ask who administers Penstock to change {}",
            self.value
        );
        Diagnostic::error(Code::BOUND, path, message).with_help(help)
    }
}

/// Every bound that a job passes. What it leaves to the chart's own values is within them.
pub fn bounds(job: &StreamingJob, bounds: &Bounds) -> Vec<Diagnostic> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let mut faults = Vec::new();
    faults.extend(storage(job, bounds, namespace));
    faults.extend(image(job, bounds, namespace));
    faults.extend(replicas(job, bounds, namespace));
    faults.extend(volume(job, bounds, namespace));
    if let Some(of) = &job.spec.workers.resources {
        let cpu = bounds.find(namespace, "cpu", |b| b.cpu.as_ref());
        let memory = bounds.find(namespace, "memory", |b| b.memory.as_ref());
        faults.extend(cpu.and_then(|most| size(of, "cpu", &most)));
        faults.extend(memory.and_then(|most| size(of, "memory", &most)));
    }
    faults
}

fn storage(job: &StreamingJob, bounds: &Bounds, namespace: &str) -> Option<Diagnostic> {
    let allowed = bounds.find(namespace, "storage", |b| b.storage.as_ref())?;
    let folder = match job.spec.checkpoint.storage.as_ref()?.kind()? {
        StorageKind::S3(s3) => format!("s3://{}/{}", s3.bucket, s3.prefix),
        StorageKind::Gcs(gcs) => format!("gs://{}/{}", gcs.bucket, gcs.prefix),
        StorageKind::Azure(az) => format!("azure://{}/{}/{}", az.account, az.container, az.prefix),
        StorageKind::Local(local) => format!("file://{}", local.path),
    };
    let folder = folder.trim_end_matches('/');
    let below = |of: &String| {
        let rest = folder.strip_prefix(of.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if allowed.is.iter().any(below) {
        return None;
    }
    let message = format!(
        "logs of namespace {namespace} lie {}, not in {folder}",
        listed("below", "in the chart's own storage", allowed.is)
    );
    let way = "leave it out for the chart's own";
    Some(allowed.fault("checkpoint.storage", message, way))
}

fn image(job: &StreamingJob, bounds: &Bounds, namespace: &str) -> Option<Diagnostic> {
    let allowed = bounds.find(namespace, "images", |b| b.images.as_ref())?;
    let image = job.spec.workers.image.as_str();
    let ends = |c: char| matches!(c, '/' | ':' | '@');
    let begins = |with: &String| {
        let rest = image.strip_prefix(with.as_str());
        rest.is_some_and(|rest| with.ends_with(ends) || rest.is_empty() || rest.starts_with(ends))
    };
    if image.is_empty() || allowed.is.iter().any(begins) {
        return None;
    }
    let message = format!(
        "jobs of namespace {namespace} run {}, not {image}",
        listed("images of", "the controller's own image", allowed.is)
    );
    let way = "leave it out for the controller's own";
    Some(allowed.fault("workers.image", message, way))
}

fn listed(how: &str, none: &str, all: &[String]) -> String {
    match all {
        [] => none.to_owned(),
        some => format!("{how} {}", some.join(" or ")),
    }
}

fn replicas(job: &StreamingJob, bounds: &Bounds, namespace: &str) -> Vec<Diagnostic> {
    let Some(most) = bounds.find(namespace, "replicas", |b| b.replicas.as_ref()) else {
        return Vec::new();
    };
    let grown = job.spec.autoscaling.as_ref().and_then(|a| a.max_replicas);
    let asked = [
        ("workers.replicas", job.spec.workers.replicas),
        ("autoscaling.maxReplicas", grown),
    ];
    let above = asked.into_iter().filter(|(_, n)| *n > Some(*most.is));
    let faults = above.map(|(path, n)| {
        let message = format!(
            "jobs of namespace {namespace} have at most {} workers, not {}",
            most.is,
            n.unwrap_or(0)
        );
        most.fault(path, message, &format!("write {} at most", most.is))
    });
    faults.collect()
}

fn volume(job: &StreamingJob, bounds: &Bounds, namespace: &str) -> Option<Diagnostic> {
    let most = bounds.find(namespace, "volume", |b| b.volume.as_ref())?;
    let state = &job.spec.state;
    let (path, size) = match &state.ephemeral {
        Some(ephemeral) => ("state.ephemeral.size", ephemeral.size),
        None => {
            let volume = state.volume.clone().unwrap_or_default();
            ("state.volume.size", volume.size)
        }
    };
    (size > *most.is).then(|| {
        let message = format!(
            "volumes of namespace {namespace} have at most {}, not {size}",
            most.is
        );
        most.fault(path, message, &format!("write {} at most", most.is))
    })
}

/// Memory without a limit is all of the node's; CPU without one is what others leave, and what is asked for counts.
fn size(of: &Resources, name: &str, most: &Found<'_, Amount>) -> Option<Diagnostic> {
    let pick = |list: &crate::workers::ResourceList| match name {
        "cpu" => list.cpu.clone(),
        _ => list.memory.clone(),
    };
    let bound = shown(&most.is.of);
    let asked = [
        ("limits", pick(&of.limits)),
        ("requests", pick(&of.requests)),
    ];
    let above = asked.iter().find_map(|(list, value)| {
        let value = value.as_ref()?;
        (quantity(value)? > most.is.value).then(|| (*list, shown(value)))
    });
    if let Some((list, value)) = above {
        let message = format!("a worker has at most {bound} of {name}, not {value}");
        let path = format!("workers.resources.{list}.{name}");
        return Some(most.fault(&path, message, &format!("write {bound} at most")));
    }
    (name == "memory" && pick(&of.limits).is_none()).then(|| {
        let message = format!("a worker has at most {bound} of memory, and this one has no limit");
        let path = "workers.resources.limits.memory";
        most.fault(path, message, &format!("write {bound} at most"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::StreamingJob;

    fn job(more: &str) -> StreamingJob {
        let text = format!(
            "apiVersion: penstock.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: a, namespace: risk}}\nspec: {{sources: [], sql: x, sinks: [], {more}}}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    fn told(of: &str, more: &str) -> Vec<String> {
        let of: Bounds = serde_yaml::from_str(of).unwrap();
        let faults = bounds(&job(more), &of);
        faults.iter().map(ToString::to_string).collect()
    }

    /// The path and the value that is named.
    fn named(of: &str, more: &str) -> Vec<(String, String)> {
        let told = told(of, more);
        let each = told.iter().map(|text| {
            assert!(text.ends_with(" [PS0080]"), "{text}");
            let path = text.split_once(": ").unwrap().0.to_owned();
            let value = text.rsplit_once("change ").unwrap().1;
            (path, value.trim_end_matches(" [PS0080]").to_owned())
        });
        each.collect()
    }

    fn pair(path: &str, value: &str) -> Vec<(String, String)> {
        vec![(path.to_owned(), value.to_owned())]
    }

    #[test]
    fn logs_lie_below_the_folders_that_are_allowed() {
        let of = "default: {storage: ['s3://streams/risk/', 's3://archive']}";
        let storage = |bucket: &str, prefix: &str| {
            let more = format!(
                "checkpoint: {{storage: {{s3: {{bucket: {bucket}, prefix: '{prefix}'}}}}}}"
            );
            named(of, &more)
        };
        for (bucket, prefix) in [
            ("streams", "risk"),
            ("streams", "risk/"),
            ("streams", "risk/payments"),
            ("archive", ""),
            ("archive", "x"),
        ] {
            assert_eq!(storage(bucket, prefix), [], "{bucket}/{prefix}");
        }
        for (bucket, prefix) in [
            ("streams", ""),
            ("streams", "riskier"),
            ("streams", "billing"),
            ("archives", "x"),
        ] {
            let fault = pair("checkpoint.storage", "bounds.default.storage");
            assert_eq!(storage(bucket, prefix), fault, "{bucket}/{prefix}");
        }
        // The chart's own.
        assert_eq!(named(of, ""), []);
    }

    #[test]
    fn an_image_begins_with_whole_parts_of_one_that_is_allowed() {
        let of = "default: {images: [r.example.com/penstock, r.example.com/team/]}";
        let image = |name: &str| named(of, &format!("workers: {{image: '{name}'}}"));
        for name in [
            "",
            "r.example.com/penstock",
            "r.example.com/penstock:1.0",
            "r.example.com/penstock@sha256:00",
            "r.example.com/team/own:1",
        ] {
            assert_eq!(image(name), [], "{name}");
        }
        for name in ["r.example.com/penstock-evil", "r.example.com.evil/penstock"] {
            let fault = pair("workers.image", "bounds.default.images");
            assert_eq!(image(name), fault, "{name}");
        }
    }

    #[test]
    fn numbers_are_bounded_where_the_namespace_says_else_where_the_default_does() {
        let of = "{default: {replicas: 2, volume: 20Gi, cpu: 2, memory: 4Gi}, namespaces: {risk: {replicas: 4, cpu: 1500m}}}";
        assert_eq!(named(of, "workers: {replicas: 4}"), []);
        let fault = pair("workers.replicas", "bounds.namespaces.risk.replicas");
        assert_eq!(named(of, "workers: {replicas: 5}"), fault);
        let grows = "autoscaling: {mode: Active, maxReplicas: 5}";
        let fault = pair("autoscaling.maxReplicas", "bounds.namespaces.risk.replicas");
        assert_eq!(named(of, grows), fault);
        let volume = |size: &str| named(of, &format!("state: {{volume: {{size: {size}}}}}"));
        assert_eq!(volume("20Gi"), []);
        let fault = pair("state.volume.size", "bounds.default.volume");
        assert_eq!(volume("21Gi"), fault);
        let fault = pair("state.ephemeral.size", "bounds.default.volume");
        assert_eq!(named(of, "state: {ephemeral: {size: 21Gi}}"), fault);
        let resources = |list: &str| named(of, &format!("workers: {{resources: {{{list}}}}}"));
        assert_eq!(resources("limits: {cpu: 1500m, memory: 4Gi}"), []);
        let at = |path: &str, value: &str| pair(&format!("workers.resources.{path}"), value);
        assert_eq!(
            resources("requests: {cpu: 2}, limits: {memory: 1Gi}"),
            at("requests.cpu", "bounds.namespaces.risk.cpu")
        );
        assert_eq!(
            resources("limits: {memory: 5Gi}"),
            at("limits.memory", "bounds.default.memory")
        );
        assert_eq!(
            resources("requests: {memory: 1Gi}"),
            at("limits.memory", "bounds.default.memory")
        );
        assert_eq!(named("{}", "workers: {replicas: 900}"), []);
    }

    #[test]
    fn a_fault_names_the_bound_and_the_way_out() {
        let of = "namespaces: {risk: {replicas: 2}}";
        assert_eq!(
            told(of, "workers: {replicas: 3}"),
            [
                "workers.replicas: jobs of namespace risk have at most 2 workers, not 3, write 2 at most, or ask who administers Penstock to change bounds.namespaces.risk.replicas [PS0080]"
            ]
        );
        let none = "default: {storage: []}";
        let storage = "checkpoint: {storage: {s3: {bucket: streams}}}";
        assert_eq!(
            told(none, storage),
            [
                "checkpoint.storage: logs of namespace risk lie in the chart's own storage, not in s3://streams, leave it out for the chart's own, or ask who administers Penstock to change bounds.default.storage [PS0080]"
            ]
        );
    }

    #[test]
    fn bounds_that_cannot_be_read_bound_nothing_silently() {
        for text in [
            "default: {memory: lots}",
            "default: {cpu: -1}",
            "default: {volumes: 1Gi}",
            "namespace: {}",
        ] {
            assert!(serde_yaml::from_str::<Bounds>(text).is_err(), "{text}");
        }
    }
}
