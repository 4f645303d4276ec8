//! Owns one job of a scenario, in a namespace of its own: its manifest, what is asked about it, and what is done to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::{DateTime, Utc};
use penstock_crds::rpc;
use serde_json::Value;

use super::cluster::{kubectl, page_of_pod, until};
use super::feed::Feed;
use super::{FIRST, PATIENCE, Place, SECURE, SEVERAL, USER, condition};
use crate::bed::{S3_ACCESS, S3_SECRET, Server, root, testbed};
use crate::dump;
use crate::engine::{Status, Watched};
use crate::kafka;
use crate::manifest::Manifest;
use crate::suite::{Work, await_caught_up};

/// One job in a namespace of its own, which goes when it ends.
pub struct Job<'a> {
    pub place: &'a Place,
    scenario: String,
    pub name: String,
    pub namespace: String,
    pub prefix: String,
    pub manifest: PathBuf,
    /// The rows that come to it while it is disturbed.
    pub feed: Feed,
    /// A number and a name that a scenario keeps in mind from one slice to another.
    pub noted: (u64, String),
    /// Gives the cluster back what a scenario took away.
    pub mend: Option<Box<dyn FnOnce() -> Result<()>>>,
}

pub const NAME: &str = "flights";

/// A small change, which makes another version of the job.
pub const EDIT: &str = r#"{"spec": {"checkpoint": {"interval": "700ms"}}}"#;

impl<'a> Job<'a> {
    pub fn new(place: &'a Place, work: &Work, scenario: &str) -> Result<Self> {
        let namespace = format!("e2e-{scenario}");
        let prefix = format!("{namespace}-");
        Ok(Self {
            place,
            scenario: scenario.to_owned(),
            name: NAME.to_owned(),
            feed: Feed::new(&place.brokers, &format!("{prefix}flights"))?,
            prefix,
            manifest: work.path("job.yaml"),
            namespace,
            noted: (0, String::new()),
            mend: None,
        })
    }

    /// Makes its namespace, its Secrets and its manifest. `apply` makes the job.
    pub fn begin(&self) -> Result<()> {
        let (job, place) = (self, self.place);
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
            .set(
                &["spec", "workers"],
                &format!("{{replicas: {}, slots: 2}}", job.workers()),
            )?
            .save(&job.manifest)?;
        if SECURE.contains(&job.scenario.as_str()) {
            job.over_tls()?;
        }
        if job.scenario == "autoscale" {
            job.slow()?;
        }
        job.kubectl(&[
            "create",
            "secret",
            "generic",
            "s3",
            &format!("--from-literal=access_key_id={S3_ACCESS}"),
            &format!("--from-literal=secret_access_key={S3_SECRET}"),
        ])
        .map(drop)
    }

    /// Gives back what was taken away, and takes the namespace and the topics away.
    pub fn end(&mut self) -> Result<()> {
        let mended = self.mended();
        mended.and(self.clean())
    }

    /// Gives back what was taken away, if that has not been done.
    pub fn mended(&mut self) -> Result<()> {
        self.mend.take().map_or(Ok(()), |mend| mend())
    }

    /// Each row costs about twenty milliseconds, and the number of workers follows the load.
    fn slow(&self) -> Result<()> {
        const COST: &str =
            "levenshtein(repeat(origin, 1600), repeat(COALESCE(destination, '-'), 1600)) >= 0";
        let mut manifest = Manifest::load(&self.manifest)?;
        let sql = manifest.text(&["spec", "sql"])?;
        let sql = sql.replace("TABLE flights", "TABLE slow");
        let view = format!("CREATE TEMPORARY VIEW slow AS SELECT * FROM flights WHERE {COST};\n");
        manifest
            .set(&["spec", "sql"], &serde_yaml::to_string(&(view + &sql))?)?
            .set(&["spec", "workers"], "{replicas: 1, slots: 1}")?
            .set(
                &["spec", "autoscaling"],
                "{mode: Active, minReplicas: 1, maxReplicas: 4, targetLag: 10s}",
            )?
            .save(&self.manifest)
    }

    /// Rows come at this rate until the slice is nearly used up.
    pub fn flow(&mut self, rate: f64) -> Result<()> {
        self.feed.rate(rate);
        let patience = Duration::from_secs(600);
        self.until_in(patience, "the slice has come", |job| {
            Ok(job.feed.left() < 20)
        })
    }

    /// The autoscaler's changes: when, in seconds since 1970, and what it said.
    pub fn scalings(&self) -> Result<Vec<(i64, String)>> {
        let text = self.kubectl(&[
            "get",
            "events",
            "--field-selector",
            "reason=Scaled",
            "-o",
            "json",
        ])?;
        let list: Value = serde_json::from_str(&text)?;
        let each = list["items"].as_array().into_iter().flatten();
        let told = each.map(|event| {
            let at = event["eventTime"]
                .as_str()
                .or(event["firstTimestamp"].as_str());
            let at = chrono::DateTime::parse_from_rfc3339(at.context("an Event without a time")?)?;
            let note = event["message"].as_str().unwrap_or_default().to_owned();
            Ok((at.timestamp(), note))
        });
        let mut told = told.collect::<Result<Vec<_>>>()?;
        told.sort();
        Ok(told)
    }

    /// The share of its time that the busiest slot works.
    pub fn busiest(&self) -> Result<Option<f64>> {
        let text = page_of_pod(&self.namespace, &self.worker(), "/status")?;
        let said: Value = serde_json::from_slice(&text)?;
        Ok(said["load"]["busiest"].as_f64())
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
    pub fn kafka(&self) -> Result<Server> {
        Server::of_the_cluster(&self.place.brokers)
    }

    /// Takes away the namespace, with all that is in it, and the topics.
    fn clean(&self) -> Result<()> {
        kubectl(&[
            "delete",
            "namespace",
            &self.namespace,
            "--ignore-not-found",
            "--timeout=240s",
        ])?;
        for topic in [
            "flights",
            "flights-hourly",
            "flights-six-hours",
            "flights-rejected",
        ] {
            kafka::delete_topic(&self.place.brokers, &format!("{}{topic}", self.prefix))?;
        }
        Ok(())
    }

    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.namespace.as_str()];
        all.extend_from_slice(words);
        kubectl(&all)
    }

    pub fn apply(&self) -> Result<()> {
        let file = self.manifest.display().to_string();
        self.kubectl(&["apply", "-f", &file]).map(|_| ())
    }

    /// How many workers it begins with.
    fn workers(&self) -> u32 {
        let several = SEVERAL.iter().find(|(name, _)| *name == self.scenario);
        several.map_or(1, |(_, workers)| *workers)
    }

    /// The pod of its first worker.
    pub fn worker(&self) -> String {
        self.pod(0)
    }

    pub fn pod(&self, worker: u32) -> String {
        format!("{}-worker-{worker}", self.name)
    }

    /// What the job's coordinator says, and which worker that is. Any worker knows.
    fn asked(&self) -> Option<(u32, Status)> {
        let ask = |worker: u32| -> Option<Value> {
            let text = page_of_pod(&self.namespace, &self.pod(worker), "/status").ok()?;
            serde_json::from_slice(&text).ok()
        };
        let first = (0..self.workers()).find_map(|worker| Some((worker, ask(worker)?)));
        let (asked, said) = first?;
        let coordinator = said["coordinator"].as_u64()? as u32;
        let said = match coordinator == asked {
            true => said,
            false => ask(coordinator)?,
        };
        Some((coordinator, Status::of(&said)))
    }

    /// The worker that coordinates. Between two generations there is none.
    pub fn coordinator(&mut self) -> Result<u32> {
        let mut found = None;
        self.until("a worker says who coordinates", |job| {
            found = job.asked().map(|(worker, _)| worker);
            Ok(found.is_some())
        })?;
        found.context("no worker says who coordinates")
    }

    /// How long after this moment the first epoch was committed of those that the coordinator knows of, which may be a new one: told by
    /// the worker, since whoever asks waits for pods that are gone.
    pub fn first_commit_after(&mut self, moment: DateTime<Utc>) -> Result<Duration> {
        let coordinator = self.coordinator()?;
        let text = page_of_pod(&self.namespace, &self.pod(coordinator), "/epochs")?;
        let epochs: Vec<rpc::Epoch> = serde_json::from_slice(&text).context("/epochs")?;
        let commits = epochs.iter().map(|e| e.committed_at.as_datetime());
        let first = commits.filter(|at| *at > moment).min();
        let first = first.context("nothing was committed after that")?;
        Ok((first - moment).to_std()?)
    }

    /// Changes the number of workers as a person does, and waits until all of them take part.
    pub fn scale(&mut self, workers: u32) -> Result<()> {
        let (name, began) = (format!("streamingjob/{}", self.name), Instant::now());
        self.kubectl(&["scale", &name, &format!("--replicas={workers}")])?;
        self.until("as many pods are ready", |job| {
            let is = job.get()?;
            let ready = is["status"]["readyReplicas"].as_u64();
            Ok(job.pods()? == workers as usize
                && ready == Some(u64::from(workers))
                && job.is("Running")?)
        })?;
        let begun = Watched::until(self, "it runs", PATIENCE, |s| s.running)?.epoch;
        self.until_status("it commits", |s| s.running && s.epoch > begun)?;
        println!(
            "kind: {workers} workers commit {:.1} s after the number was changed",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Changes the manifest, for the next `apply`.
    pub fn edit(&self, path: &[&str], yaml: &str) -> Result<()> {
        Manifest::load(&self.manifest)?
            .set(path, yaml)?
            .save(&self.manifest)
    }

    /// A job of another name from now on.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        name.clone_into(&mut self.name);
        self.edit(&["metadata", "name"], name)
    }

    /// Deletes the job, children first as tools for GitOps do, and waits until it is gone with everything that was made for it.
    pub fn delete(&self) -> Result<()> {
        let words = ["delete", "streamingjob", &self.name, "--cascade=foreground"];
        self.kubectl(&[&words[..], &["--timeout=120s"]].concat())?;
        let pod = format!("pod/{}", self.worker());
        // Gone already is gone.
        let _ = self.kubectl(&["wait", "--for=delete", &pod, "--timeout=60s"]);
        Ok(())
    }

    /// Takes a savepoint and waits until it is completed.
    pub fn savepoint(&self, name: &str) -> Result<()> {
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
    pub fn objects(&self, log: &str) -> Result<usize> {
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

    pub fn patch(&self, patch: &str) -> Result<()> {
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

    pub fn patch_json(&self, patch: &str) -> Result<()> {
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

    pub fn get(&self) -> Result<Value> {
        self.get_named(&self.name)
    }

    pub fn get_named(&self, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "streamingjob", name, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl get -o json")
    }

    /// The message of a condition that is true.
    pub fn message(&self, type_: &str) -> Result<String> {
        let job = self.get()?;
        let found = condition(&job["status"], type_).context("no such condition")?;
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    }

    /// A job of another name with a column that is not there.
    pub fn bad_manifest(&self) -> Result<String> {
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

    pub fn pods(&self) -> Result<usize> {
        let text = self.kubectl(&["get", "pods", "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    }

    /// How often the kubelet has started the worker's container again.
    pub fn container_restarts(&self) -> Result<u64> {
        let text = self.kubectl(&["get", "pod", &self.worker(), "-o", "json"])?;
        let pod: Value = serde_json::from_str(&text)?;
        pod["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .context("no count of restarts")
    }

    /// The version that the worker's pod is of.
    pub fn version(&self) -> Result<Option<String>> {
        let text = self.kubectl(&["get", "pods", "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let annotations = &list["items"][0]["metadata"]["annotations"];
        Ok(annotations["penstock.dev/version"]
            .as_str()
            .map(str::to_owned))
    }

    /// The uid of an object that is there.
    pub fn uid(&self, kind: &str, name: &str) -> Result<String> {
        self.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.uid}"])
    }

    /// Deletes the worker's pod and waits for another one in its place.
    pub fn delete_pod(&mut self) -> Result<()> {
        self.delete_pod_of(0)
    }

    pub fn delete_pod_of(&mut self, worker: u32) -> Result<()> {
        let pod = self.pod(worker);
        let before = self.uid("pod", &pod)?;
        self.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
        self.until("another pod is there", |job| {
            Ok(job.uid("pod", &pod)? != before)
        })
    }

    /// `kill -9` of the engine, when it has committed something in its life, below the supervisor, which starts another one.
    pub fn kill_engine(&mut self) -> Result<()> {
        self.kill_engine_of(0)
    }

    pub fn kill_engine_of(&mut self, worker: u32) -> Result<()> {
        let begun = Watched::until(self, "it runs", PATIENCE, |s| s.running)?.epoch;
        self.until_status("it commits", |s| s.running && s.epoch > begun)?;
        let killed = self.engines(worker, "kill -9 ${p#/proc/} &&")?;
        let [killed] = killed.as_slice() else {
            bail!("processes {killed:?} were killed, which should be one");
        };
        self.until("another engine was started", |job| {
            let engines = job.engines(worker, "")?;
            Ok(!engines.is_empty() && !engines.contains(killed))
        })
    }

    /// Ids of the engine's processes, for which `act`, a part of a shell's line, was done.
    fn engines(&self, worker: u32, act: &str) -> Result<Vec<u32>> {
        let script = format!(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^[^ ]*penstock --output json worker ' && {act} echo ${{p#/proc/}}; done; true"
        );
        let said = self.kubectl(&["exec", &self.pod(worker), "--", "sh", "-c", &script])?;
        let ids = said.lines().map(|id| id.trim().parse());
        ids.collect::<Result<_, _>>()
            .with_context(|| format!("no ids of processes: {said}"))
    }

    /// Waits until it runs and has read rows: what is done to it then is done to its work.
    pub fn reads(&mut self) -> Result<()> {
        self.wait_reason("Running")?;
        self.until_status("it reads", |s| s.running && s.rows > 0)
    }

    /// Lets no row come until all that came have been read and committed.
    pub fn caught_up(&mut self) -> Result<()> {
        self.feed.pause()?;
        await_caught_up(self, PATIENCE)?;
        self.feed.resume();
        Ok(())
    }

    /// Changes the job a little, and waits until the controller has taken that up.
    pub fn edited(&mut self) -> Result<()> {
        // Right after the controller came back its webhook may not answer yet.
        self.until("the change is stored", |job| {
            job.patch(EDIT)?;
            Ok(true)
        })?;
        self.taken_up()
    }

    /// Waits until what was written last is what runs.
    pub fn taken_up(&mut self) -> Result<()> {
        self.until("the change is accepted", |job| {
            let is = job.get()?;
            let seen = &is["status"]["observedGeneration"];
            Ok(*seen == is["metadata"]["generation"] && job.is("Running")?)
        })
    }

    /// Rows that are committed to the hourly output.
    pub fn published(&self) -> Result<u64> {
        let topic = format!("{}flights-hourly", self.prefix);
        Ok(dump::dump(&self.place.brokers, &topic, false, None)?.records)
    }

    /// The identity of its log, of which the store has objects.
    pub fn log(&self) -> Result<String> {
        let job = self.get()?;
        let id = job["status"]["logId"].as_str().context("no logId")?;
        ensure!(self.objects(id)? > 0, "log {id} is not where it should be");
        Ok(id.to_owned())
    }

    /// From now on it leaves nothing behind when it is deleted, and is held until that is done.
    pub fn leaves_nothing(&mut self) -> Result<()> {
        self.patch(r#"{"spec": {"deletionPolicy": "Delete"}}"#)?;
        self.until("the job is held", |job| {
            Ok(job.get()?["metadata"]["finalizers"].is_array())
        })
    }

    /// Names of what was made for it.
    pub fn children(&self) -> Result<Vec<String>> {
        let kinds = "statefulsets,pods,services,configmaps,networkpolicies,poddisruptionbudgets,serviceaccounts,secrets";
        let selector = format!("penstock.dev/job={}", self.name);
        let said = self.kubectl(&["get", kinds, "-l", &selector, "-o", "name"])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    pub fn wait_reason(&mut self, reason: &str) -> Result<()> {
        self.until(&format!("the job is {reason}"), |job| job.is(reason))
    }

    /// Whether this is the reason of Ready.
    pub fn is(&self, reason: &str) -> Result<bool> {
        let job = self.get()?;
        let ready = condition(&job["status"], "Ready");
        Ok(ready.is_some_and(|c| c["reason"] == reason))
    }

    /// Where the worker runs.
    pub fn node(&self) -> Result<String> {
        self.node_of(0)
    }

    pub fn node_of(&self, worker: u32) -> Result<String> {
        let text = self.kubectl(&["get", "pod", &self.pod(worker), "-o", "json"])?;
        let pod: Value = serde_json::from_str(&text)?;
        let node = pod["spec"]["nodeName"]
            .as_str()
            .context("the pod is on no node")?;
        Ok(node.to_owned())
    }

    pub fn until(
        &mut self,
        what: &str,
        enough: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        self.until_in(PATIENCE, what, enough)
    }

    pub fn until_in(
        &mut self,
        patience: Duration,
        what: &str,
        mut enough: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let waited = until(patience, what, || enough(self));
        waited.map_err(|error| anyhow!("{error:#}: {}", self.tail()))
    }

    pub fn until_status(&mut self, what: &str, enough: impl FnMut(&Status) -> bool) -> Result<()> {
        Watched::until(self, what, PATIENCE, enough).map(|_| ())
    }
}

impl Watched for Job<'_> {
    /// From within the pod: no worker shows it to others.
    fn status(&mut self) -> Result<Option<Status>> {
        Ok(self.asked().map(|(_, status)| status))
    }

    fn tail(&self) -> String {
        let seen = self.kubectl(&["get", "streamingjobs,statefulsets,pods", "-o", "wide"]);
        let of_job = format!("penstock.dev/job={}", self.name);
        let logs = self.kubectl(&["logs", "-l", &of_job, "--tail=10", "--prefix"]);
        format!(
            "{}\n{}",
            seen.unwrap_or_default(),
            logs.unwrap_or_else(|e| format!("{e:#}"))
        )
    }
}
