//! What is done to a job on the cluster while it reads its flights, by name.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use serde_json::Value;

use super::{After, Compared, Disturb, NAME, PATIENCE, USER, condition, kubectl};
use crate::bed::{root, testbed};
use crate::engine::{Status, Watched};
use crate::suite::await_caught_up;

/// In CI.
pub const CORE: [(&str, Disturb); 9] = [
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
            job.kubectl(&["delete", "streamingjob", &job.name, "--timeout=60s"])?;
            job.until("its children are gone", |job| {
                let kinds = "statefulsets,pods,services,configmaps,networkpolicies,poddisruptionbudgets,serviceaccounts,secrets";
                let selector = format!("penstock.dev/job={}", job.name);
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
pub const MORE: [(&str, Disturb); 16] = [
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
            job.wait_reason("Running")?;
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
            job.wait_reason("Running")?;
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
            let claim = format!("state-{}", job.worker());
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
    // Ten minutes, in which rows come, the pod is deleted and the engine killed.
    ("controller-away", |job, when| match when {
        After(1) => {
            job.wait_reason("Running")?;
            scale_controller(0)?;
            job.delete_pod()?;
            std::thread::sleep(Duration::from_secs(120));
            Ok(())
        }
        After(slice @ 2..=5) => {
            // The pod is back without it, and the engine after a kill.
            job.until_status("it runs", |s| s.running)?;
            if slice == 3 {
                job.kill_engine()?;
            }
            std::thread::sleep(Duration::from_secs(120));
            Ok(())
        }
        After(6) => {
            await_caught_up(job, PATIENCE)?;
            let began = Instant::now();
            scale_controller(1)?;
            job.until("the controller is back and says so", |job| {
                let status = &job.get()?["status"];
                let epoch = status["epoch"]["number"].as_u64();
                let runs = job.status()?.map(|s| s.epoch);
                // Epochs are of half a second: it is one of after its return.
                Ok(job.is("Running")? && runs.is_some() && epoch.map(|e| e + 300) > runs)
            })?;
            println!(
                "kind: told again {:.0} s after the controller came back",
                began.elapsed().as_secs_f64()
            );
            Ok(())
        }
        _ => Ok(()),
    }),
    // Jobs, their workers and the resource types stay; installed again, the controller takes up where it was.
    ("uninstalled", |job, when| match when {
        After(2) => {
            job.wait_reason("Running")?;
            let values = helm(&["get", "values", "penstock", "--output", "yaml"])?;
            std::fs::write(job.manifest.with_file_name("values.yaml"), values)?;
            helm(&["uninstall", "penstock", "--wait"])?;
            job.delete_pod()
        }
        After(5) => {
            job.until_status("it runs without a controller", |s| s.running)?;
            await_caught_up(job, PATIENCE)?;
            let values = job.manifest.with_file_name("values.yaml");
            let chart = root().join("charts/penstock").display().to_string();
            helm(&[
                "install",
                "penstock",
                &chart,
                "--values",
                &values.display().to_string(),
                "--wait",
                "--timeout=3m",
            ])?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    // The password changes on the broker, then in the Secret, which the kubelet brings to the pod when it comes to it.
    ("secret-rotated", |job, when| match when {
        After(3) => {
            const SECOND: &str = "canary-second";
            job.wait_reason("Running")?;
            await_caught_up(job, PATIENCE)?;
            let kafka = job.kafka()?;
            kafka.password(USER, SECOND)?;
            // Who is logged in stays so: the broker's end makes every client log in again.
            kafka.kill9()?;
            kafka.start()?;
            let mut epoch = 0;
            job.until_status("the old password is refused", |s| {
                epoch = s.epoch;
                s.failure.as_ref().is_some_and(|f| f.starts_with("PR0211 "))
            })?;
            let secret = serde_json::json!({"stringData": {"sasl.password": SECOND}}).to_string();
            job.kubectl(&["patch", "secret", "kafka-client", "-p", &secret])?;
            let began = Instant::now();
            // Nobody commits who is not let in.
            job.until_in(
                Duration::from_secs(180),
                "it commits with the new password",
                |job| {
                    let commits = |s: Status| s.running && s.epoch > epoch + 3;
                    Ok(job.status()?.is_some_and(commits) && job.is("Running")?)
                },
            )?;
            println!(
                "kind: commits {:.0} s after the Secret was changed",
                began.elapsed().as_secs_f64()
            );
            Ok(())
        }
        Compared => {
            ensure!(
                job.container_restarts()? == 0,
                "the container was restarted"
            );
            let said = job.kubectl(&["logs", &job.worker()])?;
            ensure!(!said.contains("canary-"), "a password stands in the log");
            Ok(())
        }
        After(_) => Ok(()),
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
            let refused = job.patch_json(&set(&broken)).err();
            let refused = format!("{:#}", refused.context("the webhook let it pass")?);
            ensure!(refused.contains("[PR0410]"), "{refused}");
            // Past the webhook it is tried, and rolled back.
            webhook(444)?;
            let passed = job.patch_json(&set(&broken));
            let judged = passed.and_then(|()| job.wait_reason("RolledBack"));
            webhook(443)?;
            judged?;
            let message = job.message("RolledBack")?;
            ensure!(message.contains("[PR0410]"), "{message}");
            job.patch_json(&set(&sql))?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    // The log of a deleted job stays by default, is gone on with, is begun with anew, and goes.
    ("policies", |job, when| match when {
        After(2) => {
            job.wait_reason("Running")?;
            job.delete()?;
            job.apply()?;
            job.wait_reason("PriorLogFound")?;
            let message = job.message("Stalled")?;
            ensure!(message.contains("[PR0407]"), "{message}");
            job.edit(&["spec", "restoreFrom"], "{latest: {}}")?;
            job.apply()?;
            job.wait_reason("Running")
        }
        After(4) => {
            job.edit(&["spec", "deletionPolicy"], "Savepoint")?;
            job.apply()?;
            await_caught_up(job, PATIENCE)?;
            let uid = job.get()?["metadata"]["uid"]
                .as_str()
                .context("no uid")?
                .to_owned();
            job.delete()?;
            let name = format!("{NAME}-{}", &uid[..8]);
            let phase =
                job.kubectl(&["get", "savepoint", &name, "-o", "jsonpath={.status.phase}"])?;
            ensure!(phase == "Completed", "savepoint {name} is {phase:?}");
            job.edit(
                &["spec", "restoreFrom"],
                &format!("{{savepoint: {{name: {name}}}}}"),
            )?;
            job.edit(&["spec", "deletionPolicy"], "Delete")?;
            job.apply()?;
            job.wait_reason("Running")
        }
        Compared => {
            let id = job.get()?["status"]["logId"]
                .as_str()
                .context("no logId")?
                .to_owned();
            ensure!(job.objects(&id)? > 0, "log {id} is not where it should be");
            job.delete()?;
            let left = job.objects(&id)?;
            ensure!(left == 0, "deletionPolicy Delete leaves {left} objects");
            job.kubectl(&["delete", "savepoints", "--all", "--timeout=90s"])
                .map(drop)
        }
        After(_) => Ok(()),
    }),
    // A job of another name goes on from a savepoint, and nothing is missing or twice.
    ("savepoint", |job, when| match when {
        After(3) => {
            job.wait_reason("Running")?;
            await_caught_up(job, PATIENCE)?;
            job.savepoint("before")?;
            job.delete()?;
            job.rename("flights-again")?;
            job.edit(&["spec", "restoreFrom"], "{savepoint: {name: before}}")?;
            job.apply()?;
            job.wait_reason("Running")
        }
        Compared => {
            // Of the job that is gone: a step on its log unpins the epoch.
            job.kubectl(&["delete", "savepoint", "before", "--timeout=90s"])
                .map(drop)
        }
        After(_) => Ok(()),
    }),
    // A savepoint of a job that rests is taken by a step on its log.
    ("savepoint-of-suspended", |job, when| match when {
        After(3) => {
            job.wait_reason("Running")?;
            job.patch(r#"{"spec": {"suspend": true}}"#)?;
            job.wait_reason("Suspended")?;
            job.savepoint("resting")?;
            job.delete()?;
            job.edit(&["spec", "restoreFrom"], "{savepoint: {name: resting}}")?;
            job.apply()?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("kafka-away-at-delete", |job, when| match when {
        Compared => {
            job.patch(r#"{"spec": {"deletionPolicy": "Delete"}}"#)?;
            let id = job.get()?["status"]["logId"]
                .as_str()
                .context("no logId")?
                .to_owned();
            let away = Away::kafka()?;
            job.kubectl(&["delete", "streamingjob", &job.name, "--timeout=200s"])?;
            drop(away);
            let left = job.objects(&id)?;
            ensure!(left == 0, "deletionPolicy Delete leaves {left} objects");
            Ok(())
        }
        After(_) => Ok(()),
    }),
    ("s3-away-at-delete", |job, when| match when {
        Compared => {
            job.patch(r#"{"spec": {"deletionPolicy": "Delete"}}"#)?;
            job.until("the job is held", |job| {
                Ok(job.get()?["metadata"]["finalizers"].is_array())
            })?;
            let away = Away::s3()?;
            job.kubectl(&["delete", "streamingjob", &job.name, "--wait=false"])?;
            std::thread::sleep(Duration::from_secs(10));
            job.get()
                .context("it is held while its clean-up cannot be done")?;
            let word = "penstock.dev/skip-cleanup=true";
            job.kubectl(&["annotate", "streamingjob", &job.name, word])?;
            let gone = format!("streamingjob/{}", job.name);
            job.kubectl(&["wait", "--for=delete", &gone, "--timeout=60s"])?;
            drop(away);
            Ok(())
        }
        After(_) => Ok(()),
    }),
    ("namespace-deleted", |job, when| match when {
        Compared => {
            job.patch(r#"{"spec": {"deletionPolicy": "Delete"}}"#)?;
            job.until("the job is held", |job| {
                Ok(job.get()?["metadata"]["finalizers"].is_array())
            })?;
            kubectl(&["delete", "namespace", &job.namespace, "--timeout=120s"]).map(drop)
        }
        After(_) => Ok(()),
    }),
    ("api-restarted", |_, when| match when {
        After(2 | 4) => {
            let kill = "pkill -9 -x kube-apiserver";
            docker(&["exec", "penstock-control-plane", "sh", "-c", kill])?;
            std::thread::sleep(Duration::from_secs(2));
            let began = Instant::now();
            while kubectl(&["get", "--raw", "/readyz"]).is_err() {
                ensure!(
                    began.elapsed() < PATIENCE,
                    "the API server does not come back"
                );
                std::thread::sleep(Duration::from_secs(1));
            }
            // Caches, leases and service accounts need a moment of their own.
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        _ => Ok(()),
    }),
    // A lease that vanishes makes a second leader while the first one still acts.
    ("two-controllers", |job, when| match when {
        After(0) => {
            scale_controller(2)?;
            for _ in 0..6 {
                take_lease()?;
            }
            job.wait_reason("Running")
        }
        After(3) => {
            job.patch(r#"{"spec": {"checkpoint": {"interval": "700ms"}}}"#)?;
            for _ in 0..6 {
                take_lease()?;
            }
            job.until("the change is accepted", |job| {
                let job = job.get()?;
                let seen = &job["status"]["observedGeneration"];
                Ok(*seen == job["metadata"]["generation"]
                    && condition(&job["status"], "Ready").is_some_and(|c| c["reason"] == "Running"))
            })?;
            scale_controller(1)
        }
        _ => Ok(()),
    }),
];

/// Helm, on the release of the cluster.
fn helm(words: &[&str]) -> Result<String> {
    let output = std::process::Command::new("helm")
        .args(["--namespace", "penstock"])
        .args(words)
        .output()
        .context("cannot run helm")?;
    ensure!(
        output.status.success(),
        "helm {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn docker(words: &[&str]) -> Result<()> {
    let status = std::process::Command::new("docker")
        .args(words)
        .stdout(std::process::Stdio::null())
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

/// Lets the lease vanish, and whoever waits for it lead.
fn take_lease() -> Result<()> {
    let words = [
        "--namespace",
        "penstock",
        "delete",
        "lease",
        "penstock-operator",
        "--ignore-not-found",
    ];
    kubectl(&words)?;
    std::thread::sleep(Duration::from_millis(1500));
    Ok(())
}

/// A server that is stopped, until this is dropped: it holds its connections and answers nobody.
struct Away(i32);

impl Away {
    fn kafka() -> Result<Self> {
        Self::of("kafka", 29792)
    }

    fn s3() -> Result<Self> {
        Self::of("s3", 29800)
    }

    fn of(server: &str, port: u16) -> Result<Self> {
        let file = testbed().join(format!("{server}/run-{port}/pid"));
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let this = Self(text.trim().parse()?);
        this.signal("-STOP")?;
        Ok(this)
    }

    fn signal(&self, which: &str) -> Result<()> {
        let status = std::process::Command::new("kill")
            .args([which, &self.0.to_string()])
            .status()?;
        ensure!(status.success(), "kill {which} {}: {status}", self.0);
        Ok(())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Err(error) = self.signal("-CONT") {
            eprintln!("kind: {error:#}");
        }
    }
}
