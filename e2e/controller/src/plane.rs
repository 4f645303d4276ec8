//! A control plane without nodes, on loopback: etcd, an API server, the controllers of StatefulSets and of garbage, and kwok, which
//! plays the kubelet of fake pods. All of it is thrown away at the end.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, ResourceExt};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// The user that the controller is.
const CONTROLLER: &str = "penstock-operator";
/// The node of all fake pods.
const NODE: &str = "fake";

pub struct Plane {
    pub folder: PathBuf,
    /// An administrator's client.
    pub admin: Client,
    /// The URL of the API server.
    pub server: String,
    /// Where the simulated coordinators listen: an address of loopback.
    pub address: String,
    children: Vec<Child>,
}

/// What a plane is made of.
pub struct Parts<'a> {
    /// Holds etcd, kube-apiserver, kube-controller-manager and kwok.
    pub bin: &'a Path,
    /// The clone: the resource definitions and the chart are read from it.
    pub root: &'a Path,
    /// Where everything is kept.
    pub folder: &'a Path,
    /// Whether the API server writes down who wrote what, when.
    pub audit: bool,
}

impl Plane {
    pub async fn start(parts: &Parts<'_>) -> Result<Self> {
        let folder = parts.folder;
        for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kwok"] {
            if !parts.bin.join(program).exists() {
                bail!("{program} is missing in {}", parts.bin.display());
            }
        }
        let [etcd, peers, api, manager] = ports()?;
        let server = format!("https://127.0.0.1:{api}");
        let address = format!("127.{}.{}.1", 64 + api % 64, 1 + api / 64 % 250);
        let tokens = format!("admin,admin,1,system:masters\ncontroller,{CONTROLLER},2,\n");
        std::fs::write(folder.join("tokens.csv"), tokens)?;
        keys(folder)?;
        let kubeconfig = folder.join("admin.kubeconfig");
        std::fs::write(&kubeconfig, text_of_kubeconfig(&server, "admin"))?;
        let mut children = Vec::new();
        let mut start = |name: &str, args: &[String]| -> Result<()> {
            let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
            let child = Command::new(parts.bin.join(name))
                .args(args)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("{name} does not start"))?;
            children.push(child);
            Ok(())
        };
        let at = |name: &str| folder.join(name).display().to_string();
        start(
            "etcd",
            &[
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={api}"),
            format!("--cert-dir={}", at("certificates")),
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("accounts.pem")),
            format!("--service-account-signing-key-file={}", at("accounts.pem")),
            "--authorization-mode=RBAC".to_owned(),
            format!("--token-auth-file={}", at("tokens.csv")),
        ];
        if parts.audit {
            std::fs::write(folder.join("audit.yaml"), AUDIT)?;
            args.push(format!("--audit-policy-file={}", at("audit.yaml")));
            args.push(format!("--audit-log-path={}", at("audit.jsonl")));
        }
        start("kube-apiserver", &args)?;
        let admin = client(&server, "admin").await?;
        ready(&admin).await?;
        start(
            "kube-controller-manager",
            &[
                format!("--kubeconfig={}", kubeconfig.display()),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={manager}"),
                format!("--cert-dir={}", at("certificates")),
                "--controllers=statefulset-controller,garbage-collector-controller,persistentvolumeclaim-protection-controller".to_owned(),
                "--concurrent-statefulset-syncs=20".to_owned(),
                "--kube-api-qps=500".to_owned(),
                "--kube-api-burst=1000".to_owned(),
            ],
        )?;
        let stages = include_str!("stages.yaml").replace("ADDRESS", &address);
        std::fs::write(folder.join("stages.yaml"), stages)?;
        start(
            "kwok",
            &[
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--config={}", at("stages.yaml")),
                "--manage-all-nodes=true".to_owned(),
                "--node-lease-duration-seconds=0".to_owned(),
            ],
        )?;
        install(&admin, parts.root).await?;
        tokio::spawn(bind(admin.clone()));
        tokio::spawn(end(admin.clone()));
        Ok(Self {
            folder: folder.to_owned(),
            admin,
            server,
            address,
            children,
        })
    }

    /// Ends everything.
    pub async fn stop(mut self) {
        while let Some(mut child) = self.children.pop() {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
    }

    /// A client with the rights of the controller and no others.
    pub async fn controller(&self) -> Result<Client> {
        client(&self.server, "controller").await
    }

    /// What the controller's program is told of a server: the API server itself, or a proxy in front of it.
    pub fn kubeconfig(&self, name: &str, server: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text_of_kubeconfig(server, "controller"))?;
        Ok(path)
    }

    /// A new namespace; `own`: one that a controller has for itself, with the rights that the chart gives it there.
    pub async fn namespace(&self, name: &str, own: bool) -> Result<()> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let all: Api<Namespace> = Api::all(self.admin.clone());
        all.create(&PostParams::default(), &namespace).await?;
        // Nobody here makes it by himself, and pods of steps for a job that is gone run as it.
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), name);
        accounts.create(&PostParams::default(), &account).await?;
        if own {
            let rules = json!([
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["penstock-authority"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
            ]);
            let role: k8s_openapi::api::rbac::v1::Role =
                serde_json::from_value(json!({"metadata": {"name": "own"}, "rules": rules}))?;
            let binding: k8s_openapi::api::rbac::v1::RoleBinding = serde_json::from_value(json!({
                "metadata": {"name": "own"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "own"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": CONTROLLER}],
            }))?;
            Api::namespaced(self.admin.clone(), name)
                .create(&PostParams::default(), &role)
                .await?;
            Api::namespaced(self.admin.clone(), name)
                .create(&PostParams::default(), &binding)
                .await?;
        }
        Ok(())
    }
}

/// Only writes, and only when they are done.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: None
    verbs: [get, list, watch]
  - level: Metadata
";

fn ports() -> Result<[u16; 4]> {
    let mut held = Vec::new();
    let mut ports = [0; 4];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// The key of service accounts, which nobody here uses.
fn keys(folder: &Path) -> Result<()> {
    let made = std::process::Command::new("openssl")
        .args(["genrsa", "-out"])
        .arg(folder.join("accounts.pem"))
        .arg("2048")
        .stderr(Stdio::null())
        .status()
        .context("openssl is needed for a key")?;
    if !made.success() {
        bail!("openssl made no key");
    }
    Ok(())
}

fn text_of_kubeconfig(server: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "plane", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "plane", "context": {"cluster": "plane", "user": "user"}}],
        "current-context": "plane",
    });
    config.to_string()
}

async fn client(server: &str, token: &str) -> Result<Client> {
    let text = Kubeconfig::from_yaml(&text_of_kubeconfig(server, token))?;
    let mut config = Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?;
    // Who asks sees what the server said.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn ready(client: &Client) -> Result<()> {
    let all: Api<Namespace> = Api::all(client.clone());
    for _ in 0..600 {
        let request = axum::http::Request::get("/readyz").body(Vec::new())?;
        // The other programs end when it is not healthy within ten seconds of theirs.
        if client
            .request_text(request)
            .await
            .is_ok_and(|answer| answer == "ok")
            && all.get_opt("default").await.is_ok_and(|n| n.is_some())
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the API server does not answer within a minute")
}

/// The resource definitions, the rights that the chart gives to the controller, and the node.
async fn install(admin: &Client, root: &Path) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    for file in [
        "streamingjobs.penstock.dev.yaml",
        "savepoints.penstock.dev.yaml",
    ] {
        let text = std::fs::read_to_string(root.join("crds").join(file))?;
        let definition: CustomResourceDefinition = serde_yaml::from_str(&text)?;
        definitions
            .create(&PostParams::default(), &definition)
            .await?;
    }
    let rules = rules(root)?;
    let role: ClusterRole =
        serde_json::from_value(json!({"metadata": {"name": CONTROLLER}, "rules": rules}))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": CONTROLLER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CONTROLLER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": CONTROLLER}],
    }))?;
    Api::all(admin.clone())
        .create(&PostParams::default(), &role)
        .await?;
    Api::all(admin.clone())
        .create(&PostParams::default(), &binding)
        .await?;
    let node: Node = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
    Api::all(admin.clone())
        .create(&PostParams::default(), &node)
        .await?;
    for _ in 0..100 {
        let jobs: Api<penstock_crds::job::StreamingJob> = Api::all(admin.clone());
        let savepoints: Api<penstock_crds::savepoint::Savepoint> = Api::all(admin.clone());
        if jobs.list(&Default::default()).await.is_ok()
            && savepoints.list(&Default::default()).await.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the API server does not serve StreamingJobs and Savepoints")
}

/// The controller's rights as the chart has them: the part of the template that is plain YAML.
fn rules(root: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(root.join("charts/penstock/templates/rbac.yaml"))?;
    let (_, rest) = text
        .split_once("define \"penstock.rules\" -}}")
        .context("the chart has no penstock.rules")?;
    let (rules, _) = rest.split_once("{{- end }}").context("it has no end")?;
    Ok(serde_yaml::from_str(rules)?)
}

/// The scheduler: every pod goes to the one node.
async fn bind(admin: Client) {
    let all: Api<Pod> = Api::all(admin.clone());
    let unbound = watcher::Config::default().fields("spec.nodeName=");
    watcher(all, unbound)
        .default_backoff()
        .applied_objects()
        .for_each_concurrent(32, |pod| {
            let admin = admin.clone();
            async move {
                let Ok(pod) = pod else { return };
                let namespace = pod.namespace().unwrap_or_default();
                let name = pod.name_any();
                let binding = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": {"name": name, "namespace": namespace},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
                });
                let pods: Api<Pod> = Api::namespaced(admin, &namespace);
                let bound: Result<Value, _> = pods
                    .create_subresource("binding", &name, &PostParams::default(), &binding)
                    .await;
                if let Err(error) = bound
                    && !matches!(&error, kube::Error::Api(e) if e.code == 404 || e.code == 409)
                {
                    eprintln!("pod {namespace}/{name} was not bound: {error}");
                }
            }
        })
        .await;
}

/// A kubelet's last word on a pod that is deleted: this one, and never its successor of the same name.
async fn end(admin: Client) {
    let all: Api<Pod> = Api::all(admin.clone());
    watcher(all, watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .for_each_concurrent(32, |pod| {
            let admin = admin.clone();
            async move {
                let Ok(pod) = pod else { return };
                if pod.metadata.deletion_timestamp.is_none() {
                    return;
                }
                let pods: Api<Pod> = Api::namespaced(admin, &pod.namespace().unwrap_or_default());
                let params = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(Preconditions {
                        uid: pod.uid(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                match pods.delete(&pod.name_any(), &params).await {
                    Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => {}
                    Err(error) => eprintln!("pod {} does not end: {error}", pod.name_any()),
                    Ok(_) => {}
                }
            }
        })
        .await;
}

/// Writes an object as a person would: server-side apply under a person's name.
pub async fn apply(admin: &Client, job: &Value) -> Result<()> {
    let namespace = job["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = job["metadata"]["name"].as_str().unwrap_or_default();
    let jobs: Api<penstock_crds::job::StreamingJob> = Api::namespaced(admin.clone(), namespace);
    jobs.patch(
        name,
        &PatchParams::apply("person").force(),
        &Patch::Apply(job),
    )
    .await?;
    Ok(())
}
