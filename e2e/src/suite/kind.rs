//! Jobs on a real cluster: the flights in a namespace of their own for each scenario, a disturbance while they are read, and the
//! same comparison as everywhere: rows equal DuckDB's, rejects once each. The cluster, its Kafka and its S3 are there already
//! (`./dev kind up`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::bed::{S3_ACCESS, S3_SECRET, Server, root, testbed};
use crate::engine::{Status, Watched, get};
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

/// The user of the broker's listener with passwords over TLS, and what it is first called in by.
const USER: &str = "penstock";
const FIRST: &str = "canary-first";
/// Scenarios whose job reads and writes over that listener.
const SECURE: &[&str] = &["secret-rotated"];

/// What a scenario does after a slice was written, and at the end, when the results were compared.
type Disturb = fn(&mut Job<'_>, When) -> Result<()>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    After(usize),
    Compared,
}
use When::{After, Compared};

mod scenarios;

use scenarios::{CORE, MORE};

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
    name: String,
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
            name: NAME.to_owned(),
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
        if SECURE.contains(&scenario) {
            job.over_tls()?;
        }
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

    /// Sources and sinks go to the listener with passwords over TLS.
    fn over_tls(&self) -> Result<()> {
        self.kafka()?.password(USER, FIRST)?;
        let (host, port) = self.place.brokers.rsplit_once(':').context("host:port")?;
        let listener = format!("{host}:{}", port.parse::<u16>()? + 2);
        let mut manifest = Manifest::load(&self.manifest)?;
        for list in ["sources", "sinks"] {
            manifest
                .set_kafka(list, "bootstrapServers", &listener)?
                .set_kafka(list, "secretRef", "{name: kafka-client}")?;
        }
        manifest.save(&self.manifest)?;
        let authority = testbed().join("kind/certificates/ca.pem");
        self.kubectl(&[
            "create",
            "secret",
            "generic",
            "kafka-client",
            "--from-literal=security.protocol=SASL_SSL",
            "--from-literal=sasl.mechanism=SCRAM-SHA-512",
            &format!("--from-literal=sasl.username={USER}"),
            &format!("--from-literal=sasl.password={FIRST}"),
            &format!("--from-file=ssl.ca.pem={}", authority.display()),
        ])
        .map(drop)
    }

    /// The cluster's broker.
    fn kafka(&self) -> Result<Server> {
        Server::of_the_cluster(&self.place.brokers)
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

    fn worker(&self) -> String {
        format!("{}-worker-0", self.name)
    }

    /// Changes the manifest, for the next `apply`.
    fn edit(&self, path: &[&str], yaml: &str) -> Result<()> {
        Manifest::load(&self.manifest)?
            .set(path, yaml)?
            .save(&self.manifest)
    }

    /// A job of another name from now on.
    fn rename(&mut self, name: &str) -> Result<()> {
        name.clone_into(&mut self.name);
        self.edit(&["metadata", "name"], name)
    }

    /// Deletes the job, children first as tools for GitOps do, and waits until it is gone with everything that was made for it.
    fn delete(&self) -> Result<()> {
        let words = ["delete", "streamingjob", &self.name, "--cascade=foreground"];
        self.kubectl(&[&words[..], &["--timeout=120s"]].concat())?;
        let pod = format!("pod/{}", self.worker());
        // Gone already is gone.
        let _ = self.kubectl(&["wait", "--for=delete", &pod, "--timeout=60s"]);
        Ok(())
    }

    /// Takes a savepoint and waits until it is completed.
    fn savepoint(&self, name: &str) -> Result<()> {
        let file = self.manifest.with_file_name(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: penstock.dev/v1alpha1\nkind: Savepoint\nmetadata: {{name: {name}}}\nspec: {{jobRef: {{name: {}}}}}\n",
            self.name
        );
        std::fs::write(&file, text)?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])?;
        let what = format!("savepoint/{name}");
        let waited = self.kubectl(&["wait", "--for=condition=Ready", &what, "--timeout=90s"]);
        waited.map(drop).map_err(|error| {
            let seen = self.kubectl(&["get", "savepoint,pods", "-o", "yaml"]);
            error.context(seen.unwrap_or_default())
        })
    }

    /// Objects of a log of the job, as the store has them on its disk.
    fn objects(&self, log: &str) -> Result<usize> {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let sizes = entries
                .map(|e| e.path())
                .map(|p| if p.is_dir() { count(&p) } else { 1 });
            sizes.sum()
        }
        let buckets = testbed().join("s3/run-29800/buckets/streams");
        ensure!(buckets.is_dir(), "{} is not there", buckets.display());
        let place = format!(
            "{}-{}/{}/{}/{log}",
            self.namespace,
            std::process::id(),
            self.namespace,
            self.name
        );
        Ok(count(&buckets.join(place)))
    }

    fn patch(&self, patch: &str) -> Result<()> {
        let words = [
            "patch",
            "streamingjob",
            &self.name,
            "--type=merge",
            "-p",
            patch,
        ];
        self.kubectl(&words).map(|_| ())
    }

    fn patch_json(&self, patch: &str) -> Result<()> {
        let words = [
            "patch",
            "streamingjob",
            &self.name,
            "--type=json",
            "-p",
            patch,
        ];
        self.kubectl(&words).map(|_| ())
    }

    fn get(&self) -> Result<Value> {
        self.get_named(&self.name)
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

    /// How often the kubelet has started the worker's container again.
    fn container_restarts(&self) -> Result<u64> {
        let text = self.kubectl(&["get", "pod", &self.worker(), "-o", "json"])?;
        let pod: Value = serde_json::from_str(&text)?;
        pod["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .context("no count of restarts")
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
        self.kubectl(&["delete", "pod", &self.worker(), "--wait=false"])
            .map(|_| ())
    }

    /// `kill -9` of the engine, below the supervisor, which starts it again.
    fn kill_engine(&mut self) -> Result<()> {
        self.until_status("it runs", |_| true)?;
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^[^ ]*penstock --output json worker ' && kill -9 ${p#/proc/}; done; true";
        self.kubectl(&["exec", &self.worker(), "--", "sh", "-c", script])
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
        let text = self.kubectl(&["get", "pod", &self.worker(), "-o", "json"])?;
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
    /// From within the pod: no worker shows it to others.
    fn status(&mut self) -> Result<Option<Status>> {
        let answer = page_of_pod(&self.namespace, &self.worker(), "/status").ok();
        let body: Option<Value> = answer.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(body.map(|body| Status::of(&body)))
    }

    fn tail(&self) -> String {
        let seen = self.kubectl(&["get", "streamingjobs,statefulsets,pods", "-o", "wide"]);
        let logs = self.kubectl(&["logs", &self.worker(), "--tail=10"]);
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

/// What a worker answers on loopback.
fn page_of_pod(namespace: &str, pod: &str, page: &str) -> Result<Vec<u8>> {
    let mut forward = Command::new("kubectl")
        .args(["port-forward", "--namespace", namespace])
        .args(["--address", "127.0.0.1"])
        .args([&format!("pod/{pod}"), ":8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run kubectl")?;
    let answer = forward.stdout.take().context("no pipe").and_then(|out| {
        let mut line = String::new();
        // Without a pod it ends, and so does the line.
        let mut out = BufReader::new(out);
        out.read_line(&mut line)?;
        let from = line.strip_prefix("Forwarding from ");
        let address = from.and_then(|l| l.split(' ').next());
        let answer = get(address.context("no way into the pod")?, page);
        // It writes a line for each connection, and dies of a pipe that is closed.
        drop(out);
        answer
    });
    forward.kill()?;
    forward.wait()?;
    answer
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
