//! Jobs on a real cluster: the flights in a namespace of their own for each scenario, a disturbance while they are read, and the
//! same comparison as everywhere: rows equal DuckDB's, rejects once each. The cluster, its Kafka and its S3 are there already
//! (`./dev kind up`).

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::bed::{S3_ACCESS, S3_SECRET, root};
use crate::engine::{Status, Watched};
use crate::kafka::{self, Loader};
use crate::manifest::Manifest;

/// Where the cluster finds its servers, and what is to be tried.
#[derive(Args, Clone)]
pub struct Place {
    /// Kafka, as pods reach it
    #[arg(long)]
    pub brokers: String,
    /// S3, as pods reach it; its bucket is `streams`
    #[arg(long)]
    pub s3: String,
    /// Scenarios to run, by name; by default the core
    #[arg(long, value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// All of them, which takes most of an hour
    #[arg(long)]
    pub all: bool,
}

const PATIENCE: Duration = Duration::from_secs(120);
/// Slices of the input between which a scenario may do something.
const SLICES: usize = 8;

/// What a scenario does after a slice was written, and at the end, when the results were compared.
type Disturb = fn(&mut Job<'_>, When) -> Result<()>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    After(usize),
    Compared,
}
use When::{After, Compared};

/// In CI.
const CORE: [(&str, Disturb); 9] = [
    ("apply", |_, _| Ok(())),
    ("controller-killed", |job, when| match when {
        // The job was applied just now: children are being made.
        After(0) => {
            for _ in 0..3 {
                kill_controller()?;
                std::thread::sleep(Duration::from_millis(700));
            }
            Ok(())
        }
        After(3) => {
            job.wait_reason("Running")?;
            kill_controller()
        }
        _ => Ok(()),
    }),
    ("pod-deleted", |job, when| match when {
        After(2 | 5) => job.delete_pod(),
        _ => Ok(()),
    }),
    ("engine-killed", |job, when| match when {
        After(1..=5) => job.kill_engine(),
        _ => Ok(()),
    }),
    ("suspend-and-resume", |job, when| match when {
        After(2) => {
            job.patch(r#"{"spec": {"suspend": true}}"#)?;
            job.wait_reason("Suspended")?;
            ensure!(job.pods()? == 0, "a suspended job has pods");
            Ok(())
        }
        After(4) => {
            job.patch(r#"{"spec": {"suspend": false}}"#)?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("upgrade", |job, when| match when {
        After(3) => {
            job.wait_reason("Running")?;
            let before = job.version()?;
            job.patch(r#"{"spec": {"checkpoint": {"interval": "700ms"}}}"#)?;
            job.wait_reason("Upgrading")?;
            ensure!(job.version()? != before, "the same version runs");
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    // The changed job stops at the first row that it cannot read; until then it commits, and nothing of that is published.
    ("failed-upgrade", |job, when| match when {
        After(3) => {
            job.wait_reason("Running")?;
            job.patch_json(
                r#"[{"op": "replace", "path": "/spec/sources/0/onError", "value": "Fail"},
                    {"op": "add", "path": "/spec/restart", "value": {"maxPerHour": 1}},
                    {"op": "add", "path": "/spec/upgrade", "value": {"acceptAfter": "9m"}}]"#,
            )?;
            job.wait_reason("Upgrading")?;
            let mut first = None;
            job.until_status("the version on trial has committed", |s| {
                s.epoch > *first.get_or_insert(s.epoch) + 2
            })
        }
        After(4) => {
            job.wait_reason("RolledBack")?;
            let message = job.message("RolledBack")?;
            // Whichever kind of bad row its partition came to first.
            let codes = ["[PR0201]", "[PR0202]", "[PR0203]"];
            ensure!(codes.iter().any(|c| message.contains(c)), "{message}");
            Ok(())
        }
        After(6) => {
            job.patch_json(
                r#"[{"op": "replace", "path": "/spec/sources/0/onError", "value": "DeadLetter"},
                    {"op": "remove", "path": "/spec/restart"}, {"op": "remove", "path": "/spec/upgrade"}]"#,
            )?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("webhook-away", |job, when| match when {
        After(1) => {
            let bad = job.bad_manifest()?;
            let refused = job.kubectl(&["apply", "-f", &bad]).err();
            let refused = format!(
                "{:#}",
                refused.context("the webhook let a bad manifest pass")?
            );
            let words = "unknown column";
            ensure!(refused.contains(words), "{refused}");
            webhook(444)?;
            let passed = job.kubectl(&["apply", "-f", &bad]);
            let judged = passed.and_then(|_| {
                job.until("the controller refuses it", |job| {
                    let status = &job.get_named("bad")?["status"];
                    Ok(condition(status, "Stalled")
                        .is_some_and(|c| c["message"].as_str().is_some_and(|m| m.contains(words))))
                })
            });
            webhook(443)?;
            judged?;
            job.kubectl(&["delete", "streamingjob", "bad"]).map(|_| ())
        }
        _ => Ok(()),
    }),
    ("delete", |job, when| match when {
        Compared => {
            job.kubectl(&["delete", "streamingjob", NAME, "--timeout=60s"])?;
            job.until("its children are gone", |job| {
                let kinds = "statefulsets,pods,services,configmaps,networkpolicies,poddisruptionbudgets,serviceaccounts,secrets";
                let selector = format!("penstock.dev/job={NAME}");
                Ok(job.kubectl(&["get", kinds, "-l", &selector, "-o", "name"])?.trim().is_empty())
            })?;
            let claims = job.kubectl(&["get", "persistentvolumeclaims", "-o", "name"])?;
            ensure!(
                claims.lines().count() == 1,
                "deletionPolicy Retain keeps the volume: {claims}"
            );
            Ok(())
        }
        After(_) => Ok(()),
    }),
];

/// Beyond the core.
const MORE: [(&str, Disturb); 7] = [
    ("storm", |job, when| match when {
        After(2) => {
            let until = Instant::now() + Duration::from_secs(180);
            let mut round = 0;
            while Instant::now() < until {
                std::thread::sleep(Duration::from_secs(10));
                round += 1;
                // A pod that is just being made has no engine to kill.
                let _ = job.kill_engine();
                if round % 2 == 0 {
                    job.delete_pod()?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }),
    ("node-stopped", |job, when| match when {
        After(2) => {
            let node = job.node()?;
            docker(&["stop", "-t", "1", &node])?;
            std::thread::sleep(Duration::from_secs(120));
            docker(&["start", &node])?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("node-gone", |job, when| match when {
        After(2) => {
            let node = job.node()?;
            docker(&["stop", "-t", "1", &node])?;
            let gone = Instant::now();
            let back = job.until_in(Duration::from_secs(240), "it runs elsewhere", |job| {
                Ok(job.node().is_ok_and(|n| n != node) && job.is("Running")?)
            });
            println!(
                "kind: runs on another node after {:.0} s",
                gone.elapsed().as_secs_f64()
            );
            docker(&["start", &node])?;
            back
        }
        _ => Ok(()),
    }),
    ("volume-deleted", |job, when| match when {
        After(2) => {
            let claim = format!("state-{}", worker());
            job.kubectl(&["delete", "persistentvolumeclaim", &claim, "--wait=false"])?;
            job.delete_pod()?;
            job.until("the volume is another one", |job| {
                let found = job.kubectl(&["get", "persistentvolumeclaim", &claim, "-o", "json"]);
                let Ok(text) = found else { return Ok(false) };
                let claim: Value = serde_json::from_str(&text)?;
                Ok(claim["metadata"]["deletionTimestamp"].is_null())
            })
        }
        _ => Ok(()),
    }),
    ("controller-away", |job, when| match when {
        After(1) => {
            job.wait_reason("Running")?;
            scale_controller(0)?;
            job.delete_pod()
        }
        After(6) => {
            // The pod is back without it, and the engine after a kill.
            job.until_status("it runs", |s| s.running)?;
            job.kill_engine()?;
            std::thread::sleep(Duration::from_secs(60));
            scale_controller(1)
        }
        _ => Ok(()),
    }),
    ("state-break", |job, when| match when {
        After(3) => {
            job.wait_reason("Running")?;
            let sql = job.get()?["spec"]["sql"]
                .as_str()
                .context("no SQL")?
                .to_owned();
            // The least is not what the state holds, which is the greatest.
            let broken = sql.replacen("MAX(delay) AS max_delay", "MIN(delay) AS max_delay", 1);
            ensure!(broken != sql, "nothing was changed");
            let set = |sql: &str| {
                serde_json::json!([{"op": "replace", "path": "/spec/sql", "value": sql}])
                    .to_string()
            };
            job.patch_json(&set(&broken))?;
            job.wait_reason("RolledBack")?;
            let message = job.message("RolledBack")?;
            ensure!(message.contains("[PR0410]"), "{message}");
            job.patch_json(&set(&sql))?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("applied-again", |job, when| match when {
        Compared => {
            job.kubectl(&["delete", "streamingjob", NAME, "--timeout=60s"])?;
            job.apply()?;
            job.wait_reason("PriorLogFound")?;
            let message = job.message("Stalled")?;
            ensure!(message.contains("[PR0407]"), "{message}");
            Ok(())
        }
        After(_) => Ok(()),
    }),
];

/// The controller reads no Secret of anybody: in every namespace, asked of the API server.
fn rights() -> Result<()> {
    let account = "--as=system:serviceaccount:penstock:penstock-operator";
    let namespaces = kubectl(&["get", "namespaces", "-o", "name"])?;
    let may = |verb: &str, what: &str, namespace: &str| -> Result<bool> {
        // The answer is a word, and an exit status of 1 for "no".
        let output = Command::new("kubectl")
            .args([
                "auth",
                "can-i",
                verb,
                what,
                "--namespace",
                namespace,
                account,
            ])
            .output()?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => bail!(
                "kubectl auth can-i: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    };
    let mut asked = 0;
    for namespace in namespaces
        .lines()
        .filter_map(|n| n.strip_prefix("namespace/"))
    {
        for verb in ["get", "list", "watch"] {
            ensure!(
                !may(verb, "secrets", namespace)?,
                "the controller may {verb} secrets in {namespace}"
            );
            asked += 1;
        }
    }
    // The question means something: what it may do is answered with yes.
    ensure!(
        may("list", "pods", "default")?,
        "the controller may not list pods"
    );
    println!("kind: the controller may read no Secret: {asked} questions");
    Ok(())
}

fn docker(words: &[&str]) -> Result<()> {
    let status = Command::new("docker")
        .args(words)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "docker {}: {status}", words.join(" "));
    Ok(())
}

fn scale_controller(replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    kubectl(&[
        "--namespace",
        "penstock",
        "scale",
        "deployment",
        "penstock-operator",
        &replicas,
    ])
    .map(|_| ())
}

/// Kills the controller's pods, without a goodbye.
fn kill_controller() -> Result<()> {
    let words = [
        "--namespace",
        "penstock",
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=penstock-operator",
        "--grace-period=0",
        "--force",
    ];
    kubectl(&words).map(|_| ())
}

/// Where the API server finds the webhook: at a port where nobody is, it is away.
fn webhook(port: u16) -> Result<()> {
    let path = "/webhooks/0/clientConfig/service/port";
    let patch = format!(r#"[{{"op": "replace", "path": "{path}", "value": {port}}}]"#);
    let what = ["validatingwebhookconfiguration", "penstock-operator"];
    kubectl(&["patch", what[0], what[1], "--type=json", "-p", &patch])?;
    // Until the API server has heard of it.
    std::thread::sleep(Duration::from_secs(3));
    Ok(())
}

fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)
}

pub fn run(options: &Options, place: &Place) -> Result<String> {
    let flights = Flights::load(&options.data)?;
    let every: Vec<_> = CORE.iter().chain(&MORE).collect();
    let known: Vec<&str> = every.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = place.scenario.iter().find(|s| !known.contains(&s.as_str())) {
        bail!("no scenario {unknown}; there are {}", known.join(", "));
    }
    let chosen: Vec<_> = match (place.scenario.as_slice(), place.all) {
        (_, true) => every,
        ([], false) => CORE.iter().collect(),
        (named, false) => every
            .into_iter()
            .filter(|(name, _)| named.iter().any(|s| s == name))
            .collect(),
    };
    rights()?;
    let mut results = BTreeMap::new();
    for (name, disturb) in &chosen {
        let began = Instant::now();
        println!("kind: {name}");
        let result = scenario(options, place, &flights, name, *disturb);
        let took = began.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("kind: {name} passed after {took:.0} s"),
            Err(error) => println!("kind: {name} FAILED after {took:.0} s: {error:#}"),
        }
        results.insert(*name, result.is_ok());
    }
    let failed: Vec<&str> = results
        .iter()
        .filter(|(_, good)| !**good)
        .map(|(name, _)| *name)
        .collect();
    ensure!(failed.is_empty(), "{} failed", failed.join(", "));
    Ok(format!(
        "{} scenarios, each with {} flights: rows equal DuckDB's, dead letters complete",
        results.len(),
        flights.count
    ))
}

fn scenario(
    options: &Options,
    place: &Place,
    flights: &Flights,
    name: &str,
    disturb: Disturb,
) -> Result<()> {
    let work = Work::new(&format!("kind-{name}"))?;
    let mut job = Job::begin(place, &work, name)?;
    let prefix = job.prefix.clone();
    make_topics(&place.brokers, &prefix)?;
    job.apply()?;
    let mut loader = Loader::new(&place.brokers, &format!("{prefix}flights"))?;
    for slice in 0..SLICES {
        flights.put_slice(&mut loader, slice, SLICES)?;
        loader.flush()?;
        disturb(&mut job, After(slice)).with_context(|| format!("after slice {slice}"))?;
    }
    job.wait_reason("Running")?;
    await_caught_up(&mut job, PATIENCE)?;
    let first = flights.first.as_str();
    job.until_status("the watermark has passed the first flight", |s| {
        s.watermark.as_deref() > Some(first)
    })?;
    let late = flights.put_late(&mut loader)?;
    await_caught_up(&mut job, PATIENCE)?;
    for which in [1, 2] {
        flights.put_markers(&mut loader, which)?;
        await_caught_up(&mut job, PATIENCE)?;
    }
    let markers = flights.markers()?;
    let mut good = true;
    for (topic, answer, times) in [
        ("flights-hourly", "hourly", 1),
        ("flights-six-hours", "six-hours", 6),
    ] {
        let topic = format!("{prefix}{topic}");
        await_markers(&place.brokers, &topic, markers * times, &mut job, PATIENCE)?;
        good &= flights.compare(options, &place.brokers, &topic, answer, &work)?;
    }
    let rejects = flights.rejects(&late);
    good &= rejects.compare(&place.brokers, &format!("{prefix}flights-rejected"))?;
    ensure!(good, "rows differ, see above and {}", work.folder.display());
    disturb(&mut job, Compared).context("after the comparison")?;
    drop(job);
    work.done()
}

/// One job in a namespace of its own, which goes with it.
struct Job<'a> {
    place: &'a Place,
    namespace: String,
    prefix: String,
    manifest: std::path::PathBuf,
}

const NAME: &str = "flights";

impl<'a> Job<'a> {
    fn begin(place: &'a Place, work: &Work, scenario: &str) -> Result<Self> {
        let namespace = format!("e2e-{scenario}");
        let job = Self {
            place,
            prefix: format!("{namespace}-"),
            manifest: work.path("job.yaml"),
            namespace,
        };
        job.clean()?;
        kubectl(&["create", "namespace", &job.namespace])?;
        let level = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(&["label", "namespace", &job.namespace, level])?;
        let storage = format!(
            "{{s3: {{bucket: streams, prefix: {}-{}, region: us-east-1, endpoint: '{}', pathStyle: true}}, secretRef: {{name: s3}}}}",
            job.namespace,
            // Of this run: the log of an earlier one would stop the job.
            std::process::id(),
            place.s3
        );
        Manifest::load(&root().join("examples/flights/job.yaml"))?
            .rehome(&place.brokers, &job.prefix)?
            .set(&["metadata", "namespace"], &job.namespace)?
            .set(&["spec", "trigger"], "{continuous: {}}")?
            .set(
                &["spec", "checkpoint"],
                &format!("{{interval: 500ms, storage: {storage}}}"),
            )?
            .set(&["spec", "state"], "{volume: {size: 1Gi}}")?
            .set(&["spec", "upgrade"], "{acceptAfter: 5s}")?
            .save(&job.manifest)?;
        job.kubectl(&[
            "create",
            "secret",
            "generic",
            "s3",
            &format!("--from-literal=access_key_id={S3_ACCESS}"),
            &format!("--from-literal=secret_access_key={S3_SECRET}"),
        ])?;
        Ok(job)
    }

    /// What an earlier run left of it.
    fn clean(&self) -> Result<()> {
        kubectl(&[
            "delete",
            "namespace",
            &self.namespace,
            "--ignore-not-found",
            "--timeout=120s",
        ])?;
        for topic in [
            "flights",
            "flights-hourly",
            "flights-six-hours",
            "flights-rejected",
        ] {
            // One that is not there is what is wanted.
            let _ = kafka::delete_topic(&self.place.brokers, &format!("{}{topic}", self.prefix));
        }
        Ok(())
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.namespace.as_str()];
        all.extend_from_slice(words);
        kubectl(&all)
    }

    fn apply(&self) -> Result<()> {
        let file = self.manifest.display().to_string();
        self.kubectl(&["apply", "-f", &file]).map(|_| ())
    }

    fn patch(&self, patch: &str) -> Result<()> {
        let words = ["patch", "streamingjob", NAME, "--type=merge", "-p", patch];
        self.kubectl(&words).map(|_| ())
    }

    fn patch_json(&self, patch: &str) -> Result<()> {
        let words = ["patch", "streamingjob", NAME, "--type=json", "-p", patch];
        self.kubectl(&words).map(|_| ())
    }

    fn get(&self) -> Result<Value> {
        self.get_named(NAME)
    }

    fn get_named(&self, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "streamingjob", name, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl get -o json")
    }

    /// The message of a condition that is true.
    fn message(&self, type_: &str) -> Result<String> {
        let job = self.get()?;
        let found = condition(&job["status"], type_).context("no such condition")?;
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    }

    /// A job of another name with a column that is not there.
    fn bad_manifest(&self) -> Result<String> {
        let path = self.manifest.with_file_name("bad.yaml");
        let good = std::fs::read_to_string(&self.manifest)?;
        let bad = good
            .replacen(
                "metadata:\n  name: flights\n",
                "metadata:\n  name: bad\n",
                1,
            )
            .replace("SUM(delay)", "SUM(dela)");
        ensure!(bad != good, "nothing was made bad");
        std::fs::write(&path, bad)?;
        Ok(path.display().to_string())
    }

    fn pods(&self) -> Result<usize> {
        let text = self.kubectl(&["get", "pods", "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    }

    /// The version that the worker's pod is of.
    fn version(&self) -> Result<Option<String>> {
        let text = self.kubectl(&["get", "pods", "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let annotations = &list["items"][0]["metadata"]["annotations"];
        Ok(annotations["penstock.dev/version"]
            .as_str()
            .map(str::to_owned))
    }

    fn delete_pod(&self) -> Result<()> {
        self.kubectl(&["delete", "pod", &worker(), "--wait=false"])
            .map(|_| ())
    }

    /// `kill -9` of the engine, below the supervisor, which starts it again.
    fn kill_engine(&mut self) -> Result<()> {
        self.until_status("it runs", |_| true)?;
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^[^ ]*penstock --output json worker ' && kill -9 ${p#/proc/}; done; true";
        self.kubectl(&["exec", &worker(), "--", "sh", "-c", script])
            .map(|_| ())
    }

    fn wait_reason(&mut self, reason: &str) -> Result<()> {
        self.until(&format!("the job is {reason}"), |job| job.is(reason))
    }

    /// Whether this is the reason of Ready.
    fn is(&self, reason: &str) -> Result<bool> {
        let job = self.get()?;
        let ready = condition(&job["status"], "Ready");
        Ok(ready.is_some_and(|c| c["reason"] == reason))
    }

    /// Where the worker runs.
    fn node(&self) -> Result<String> {
        let text = self.kubectl(&["get", "pod", &worker(), "-o", "json"])?;
        let pod: Value = serde_json::from_str(&text)?;
        let node = pod["spec"]["nodeName"]
            .as_str()
            .context("the pod is on no node")?;
        Ok(node.to_owned())
    }

    fn until(&mut self, what: &str, enough: impl Fn(&mut Self) -> Result<bool>) -> Result<()> {
        self.until_in(PATIENCE, what, enough)
    }

    fn until_in(
        &mut self,
        patience: Duration,
        what: &str,
        enough: impl Fn(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            if enough(self)? {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("waited {patience:?} in vain until {what}: {}", self.tail());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn until_status(&mut self, what: &str, enough: impl FnMut(&Status) -> bool) -> Result<()> {
        Watched::until(self, what, PATIENCE, enough).map(|_| ())
    }
}

impl Watched for Job<'_> {
    /// Through the API server: no pod's address is reached from outside.
    fn status(&mut self) -> Result<Option<Status>> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:8080/proxy/status",
            self.namespace,
            worker()
        );
        let answer = kubectl(&["get", "--raw", &path]).ok();
        let body: Option<Value> = answer.and_then(|text| serde_json::from_str(&text).ok());
        Ok(body.map(|body| Status::of(&body)))
    }

    fn tail(&self) -> String {
        let seen = self.kubectl(&["get", "streamingjobs,statefulsets,pods", "-o", "wide"]);
        let logs = self.kubectl(&["logs", &worker(), "--tail=10"]);
        format!(
            "{}\n{}",
            seen.unwrap_or_default(),
            logs.unwrap_or_else(|e| format!("{e:#}"))
        )
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Err(error) = self.clean() {
            eprintln!("kind: {error:#}");
        }
    }
}

fn worker() -> String {
    format!("{NAME}-worker-0")
}

fn kubectl(words: &[&str]) -> Result<String> {
    let output = Command::new("kubectl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .context("cannot run kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
