//! What is done to a job on the cluster while it reads its flights, by name.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::cluster::{
    Away, change_hands, controller_away_from, docker, helm, kill_controller, kubectl,
    scale_controller, webhook,
};
use super::job::{EDIT, NAME};
use super::{Compared, Disturb, During, PATIENCE, USER, condition};
use crate::bed::root;
use crate::engine::{Status, Watched};
use crate::suite::await_caught_up;

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// In CI.
pub const CORE: [(&str, Disturb); 10] = [
    // Three workers: one and the one that coordinates are killed and their pods deleted, then there are five, and two.
    ("workers", |job, when| match when {
        During(1) => {
            job.reads()?;
            let coordinator = job.coordinator()?;
            job.kill_engine_of((coordinator + 1) % 3)?;
            let coordinator = job.coordinator()?;
            job.kill_engine_of(coordinator)
        }
        During(2) => {
            let coordinator = job.coordinator()?;
            job.delete_pod_of(coordinator)?;
            job.delete_pod_of((coordinator + 1) % 3)
        }
        During(4) => job.scale(5),
        During(6) => job.scale(2),
        _ => Ok(()),
    }),
    ("apply", |_, _| Ok(())),
    ("controller-killed", |job, when| match when {
        // The job was applied just now: children are being made.
        During(0) => {
            for _ in 0..3 {
                kill_controller()?;
                std::thread::sleep(Duration::from_millis(700));
            }
            Ok(())
        }
        During(3) => {
            job.reads()?;
            kill_controller()?;
            // The one that came for it does its work.
            job.edited()
        }
        _ => Ok(()),
    }),
    ("pod-deleted", |job, when| match when {
        During(2 | 5) => {
            job.reads()?;
            job.delete_pod()
        }
        _ => Ok(()),
    }),
    ("engine-killed", |job, when| match when {
        During(1) => {
            job.reads()?;
            job.kill_engine()
        }
        During(2..=5) => job.kill_engine(),
        _ => Ok(()),
    }),
    ("suspend-and-resume", |job, when| match when {
        During(2) => {
            job.reads()?;
            job.patch(r#"{"spec": {"suspend": true}}"#)?;
            job.wait_reason("Suspended")?;
            ensure!(job.pods()? == 0, "a suspended job has pods");
            Ok(())
        }
        During(4) => {
            job.patch(r#"{"spec": {"suspend": false}}"#)?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("upgrade", |job, when| match when {
        During(3) => {
            job.reads()?;
            let before = job.version()?;
            // On trial for long enough to be seen there.
            job.patch(
                r#"{"spec": {"checkpoint": {"interval": "700ms"}, "upgrade": {"acceptAfter": "15s"}}}"#,
            )?;
            job.wait_reason("Upgrading")?;
            let mut first = None;
            job.until_status("the version on trial reads what comes", |s| {
                s.on_trial && s.running && s.rows > *first.get_or_insert(s.rows)
            })?;
            ensure!(job.version()? != before, "the same version runs");
            job.wait_reason("Running")?;
            job.until_status("it is not on trial any more", |s| s.running && !s.on_trial)
        }
        _ => Ok(()),
    }),
    // The changed job stops at the first row that it cannot read; until then it reads and commits, and nothing of that is published.
    ("failed-upgrade", |job, when| match when {
        During(3) => {
            job.reads()?;
            job.feed.all_but_a_good_run()?;
            job.feed.pause()?;
            await_caught_up(job, PATIENCE)?;
            let published = job.published()?;
            job.patch_json(
                r#"[{"op": "replace", "path": "/spec/sources/0/onError", "value": "Fail"},
                    {"op": "add", "path": "/spec/restart", "value": {"maxPerHour": 1}},
                    {"op": "add", "path": "/spec/upgrade", "value": {"acceptAfter": "9m"}}]"#,
            )?;
            job.until_status("it runs on trial", |s| s.on_trial && s.running)?;
            job.feed.resume();
            // The run is longer than the hours of its windows: some of them close.
            let mut first = None;
            let tried = Watched::until(
                job,
                "the version on trial has read, closed windows and committed",
                PATIENCE,
                |s| {
                    s.on_trial
                        && s.rows > 0
                        && s.rows_out > 0
                        && s.epoch > *first.get_or_insert(s.epoch) + 2
                },
            )?;
            println!(
                "kind: on trial {} rows were read, {} are ready to be published",
                tried.rows, tried.rows_out
            );
            let now = job.published()?;
            ensure!(
                now == published,
                "{published} hourly rows were published before the trial, {now} on it"
            );
            job.noted = (published, job.version()?.context("no pod")?);
            Ok(())
        }
        // A poison row has come.
        During(4) => {
            let (published, tried) = job.noted.clone();
            let mut leaked = None;
            job.until("the job is RolledBack", |job| {
                // In this order: what was there while the version still ran, no other one has published.
                let now = job.published()?;
                if now != published && job.version()?.as_deref() == Some(&tried) {
                    leaked = Some(now);
                }
                job.is("RolledBack")
            })?;
            if let Some(now) = leaked {
                bail!("{published} hourly rows were published before the trial, {now} on it");
            }
            let message = job.message("RolledBack")?;
            // Whichever kind of bad row its partition came to first.
            let codes = ["[PR0201]", "[PR0202]", "[PR0203]"];
            ensure!(codes.iter().any(|c| message.contains(c)), "{message}");
            Ok(())
        }
        During(6) => {
            job.patch_json(
                r#"[{"op": "replace", "path": "/spec/sources/0/onError", "value": "DeadLetter"},
                    {"op": "remove", "path": "/spec/restart"}, {"op": "remove", "path": "/spec/upgrade"}]"#,
            )?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("webhook-away", |job, when| match when {
        During(1) => {
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
            ensure!(!job.children()?.is_empty(), "it has no children");
            job.kubectl(&["delete", "streamingjob", &job.name, "--timeout=60s"])?;
            job.until("its children are gone", |job| {
                Ok(job.children()?.is_empty())
            })?;
            let claims = job.kubectl(&["get", "persistentvolumeclaims", "-o", "name"])?;
            ensure!(
                claims.lines().count() == 1,
                "deletionPolicy Retain keeps the volume: {claims}"
            );
            Ok(())
        }
        During(_) => Ok(()),
    }),
];

/// Beyond the core.
pub const MORE: [(&str, Disturb); 20] = [
    // One worker of at most four; four times as much comes for two minutes, then as much as before.
    ("autoscale", |job, when| match when {
        During(0) => {
            const RATE: f64 = 16.0;
            job.reads()?;
            job.feed.rate(RATE);
            std::thread::sleep(Duration::from_secs(40));
            let busiest = job.busiest()?.context("it does not say how loaded it is")?;
            // A good quarter of what one can do, however fast this machine is: four times that is for two, by a third.
            let rate = RATE * 0.28 / busiest;
            println!(
                "kind: one worker works {busiest:.2} of its time for {RATE} rows/s; {rate:.0} rows/s come, then four times as many"
            );
            job.noted = (rate as u64, String::new());
            job.flow(rate)
        }
        During(1..=3) => {
            if job.noted.1.is_empty() {
                job.noted.1 = now().to_string();
            }
            let rate = job.noted.0 as f64 * 4.0;
            job.flow(rate)
        }
        During(4..=6) => job.flow(job.noted.0 as f64),
        During(_) => {
            let stepped: i64 = job.noted.1.parse()?;
            let told = job.scalings()?;
            for (at, note) in &told {
                println!("kind: {} s after the step: {note}", at - stepped);
            }
            let [(up, first), (_, second)] = told.as_slice() else {
                bail!("two decisions were to be made: {told:?}");
            };
            ensure!(
                first == "from 1 to 2 workers: Load" || first == "from 1 to 2 workers: CatchingUp",
                "{first}"
            );
            ensure!(up - stepped <= 90, "{} s to decide", up - stepped);
            ensure!(second == "from 2 to 1 workers: Spare", "{second}");
            job.until("one worker is left", |job| Ok(job.pods()? == 1))?;
            // What is left would take a minute and more if it came at once.
            job.flow(job.noted.0 as f64 * 2.5)
        }
        Compared => Ok(()),
    }),
    // Three workers that are stopped, changed, wrongly changed and saved together.
    ("workers-lifecycle", |job, when| match when {
        During(1) => {
            job.reads()?;
            job.patch(r#"{"spec": {"suspend": true}}"#)?;
            job.wait_reason("Suspended")?;
            ensure!(job.pods()? == 0, "a suspended job has pods");
            job.patch(r#"{"spec": {"suspend": false}}"#)?;
            job.wait_reason("Running")
        }
        During(2) => {
            let before = job.version()?;
            job.edited()?;
            ensure!(job.version()? != before, "the same version runs");
            Ok(())
        }
        // It does not start: nothing of it is published, and the version before comes back.
        During(3) => {
            job.patch(r#"{"spec": {"workers": {"image": "localhost/no-such-image:1"}, "upgrade": {"progressDeadline": "10s"}}}"#)?;
            job.wait_reason("RolledBack")?;
            job.patch_json(
                r#"[{"op": "remove", "path": "/spec/workers/image"}, {"op": "remove", "path": "/spec/upgrade/progressDeadline"}]"#,
            )?;
            job.wait_reason("Running")
        }
        During(4) => {
            job.feed.pause()?;
            await_caught_up(job, PATIENCE)?;
            job.savepoint("before")?;
            job.delete()?;
            job.rename("flights-again")?;
            job.edit(&["spec", "restoreFrom"], "{savepoint: {name: before}}")?;
            job.apply()?;
            job.feed.resume();
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("workers-node-stopped", |job, when| match when {
        During(2) => {
            job.reads()?;
            let coordinator = job.coordinator()?;
            let node = job.node_of(coordinator)?;
            controller_away_from(&node)?;
            docker(&["kill", &node])?;
            let gone = chrono::Utc::now();
            let mut before = None;
            job.until_status("the others go on", |s| {
                s.running && s.epoch > *before.get_or_insert(s.epoch) + 1
            })?;
            // An epoch that was under way counts as one before.
            let under_way = chrono::TimeDelta::milliseconds(300);
            println!(
                "kind: the others commit {:.1} s after the coordinator's node was gone",
                job.first_commit_after(gone + under_way)?.as_secs_f64() + 0.3
            );
            std::thread::sleep(Duration::from_secs(30));
            docker(&["start", &node])?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("workers-node-drained", |job, when| match when {
        During(2) => {
            job.reads()?;
            let node = job.node_of(1)?;
            job.mend = Some(Box::new({
                let node = node.clone();
                move || kubectl(&["uncordon", &node]).map(drop)
            }));
            let of_job = format!("penstock.dev/job={}", job.name);
            let words = [
                "drain",
                &node,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
            ];
            let which = ["--pod-selector", &of_job, "--timeout=100s"];
            kubectl(&[&words[..], &which].concat())?;
            let mut first = None;
            job.until_status("it commits", |s| {
                s.running && s.epoch > *first.get_or_insert(s.epoch)
            })?;
            job.mended()?;
            job.until("all workers are ready", |job| {
                Ok(job.get()?["status"]["readyReplicas"] == 3)
            })?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("storm", |job, when| match when {
        During(2) => {
            job.reads()?;
            let began = Instant::now();
            let (mut kills, mut deletions) = (0, 0);
            while began.elapsed() < Duration::from_secs(180) || deletions < 6 {
                std::thread::sleep(Duration::from_secs(5));
                job.kill_engine()?;
                kills += 1;
                // The next engine of the same pod is just starting.
                if kills % 2 == 0 {
                    job.delete_pod()?;
                    deletions += 1;
                }
            }
            println!(
                "kind: {kills} kills and {deletions} deletions of the pod in {:.0} s",
                began.elapsed().as_secs_f64()
            );
            Ok(())
        }
        _ => Ok(()),
    }),
    ("node-stopped", |job, when| match when {
        During(2) => {
            job.reads()?;
            let node = job.node()?;
            docker(&["stop", "-t", "1", &node])?;
            std::thread::sleep(Duration::from_secs(120));
            docker(&["start", &node])?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    ("node-gone", |job, when| match when {
        During(2) => {
            job.reads()?;
            let node = job.node()?;
            controller_away_from(&node)?;
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
        During(2) => {
            job.reads()?;
            let claim = format!("state-{}", job.worker());
            let before = job.uid("persistentvolumeclaim", &claim)?;
            job.kubectl(&["delete", "persistentvolumeclaim", &claim, "--wait=false"])?;
            job.delete_pod()?;
            job.until("the volume is another one", |job| {
                Ok(job.uid("persistentvolumeclaim", &claim)? != before)
            })
        }
        _ => Ok(()),
    }),
    // Ten minutes, in which rows come, the pod is deleted and the engine killed.
    ("controller-away", |job, when| match when {
        During(1) => {
            job.reads()?;
            job.mend = Some(Box::new(|| scale_controller(1)));
            scale_controller(0)?;
            job.delete_pod()?;
            std::thread::sleep(Duration::from_secs(120));
            Ok(())
        }
        During(slice @ 2..=5) => {
            // The pod is back without it, and the engine after a kill.
            job.until_status("it runs", |s| s.running)?;
            if slice == 3 {
                job.kill_engine()?;
            }
            std::thread::sleep(Duration::from_secs(120));
            Ok(())
        }
        During(6) => {
            job.caught_up()?;
            let began = Instant::now();
            job.mended()?;
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
        During(2) => {
            job.reads()?;
            let values = helm(&["get", "values", "penstock", "--output", "yaml"])?;
            let file = job.manifest.with_file_name("values.yaml");
            std::fs::write(&file, values)?;
            job.mend = Some(Box::new(move || {
                let chart = root().join("charts/penstock").display().to_string();
                let file = file.display().to_string();
                let words = [
                    "upgrade",
                    "--install",
                    "penstock",
                    &chart,
                    "--values",
                    &file,
                ];
                helm(&[&words[..], &["--wait", "--timeout=3m"]].concat()).map(drop)
            }));
            helm(&["uninstall", "penstock", "--wait"])?;
            job.delete_pod()
        }
        During(5) => {
            job.until_status("it runs without a controller", |s| s.running)?;
            job.caught_up()?;
            job.mended()?;
            job.edited()
        }
        _ => Ok(()),
    }),
    // The password changes on the broker, then in the Secret, which the kubelet brings to the pod when it comes to it.
    ("secret-rotated", |job, when| match when {
        During(3) => {
            const SECOND: &str = "canary-second";
            job.reads()?;
            job.noted.1 = job.uid("pod", &job.worker())?;
            job.caught_up()?;
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
                job.container_restarts()? == 0 && job.uid("pod", &job.worker())? == job.noted.1,
                "the container was restarted"
            );
            let said = job.kubectl(&["logs", &job.worker()])?;
            ensure!(!said.contains("canary-"), "a password stands in the log");
            Ok(())
        }
        During(_) => Ok(()),
    }),
    ("state-break", |job, when| match when {
        During(3) => {
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
            // Past the webhook the controller refuses it in the same words, and the version before it runs on.
            let before = job.version()?;
            webhook(444)?;
            let passed = job.patch_json(&set(&broken));
            let judged = passed.and_then(|()| job.wait_reason("Invalid"));
            webhook(443)?;
            judged?;
            let message = job.message("Stalled")?;
            ensure!(message.contains("[PR0410]"), "{message}");
            ensure!(job.version()? == before, "another version runs");
            job.patch_json(&set(&sql))?;
            job.wait_reason("Running")
        }
        _ => Ok(()),
    }),
    // The log of a deleted job stays by default, is gone on with, is begun with anew, and goes.
    ("policies", |job, when| match when {
        During(2) => {
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
        During(4) => {
            job.edit(&["spec", "deletionPolicy"], "Savepoint")?;
            job.apply()?;
            job.caught_up()?;
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
            let id = job.log()?;
            job.delete()?;
            let left = job.objects(&id)?;
            ensure!(left == 0, "deletionPolicy Delete leaves {left} objects");
            job.kubectl(&["delete", "savepoints", "--all", "--timeout=90s"])
                .map(drop)
        }
        During(_) => Ok(()),
    }),
    // A job of another name goes on from a savepoint, and nothing is missing or twice.
    ("savepoint", |job, when| match when {
        During(3) => {
            job.reads()?;
            // What would be committed after the savepoint, the other job would read once more.
            job.feed.pause()?;
            await_caught_up(job, PATIENCE)?;
            job.savepoint("before")?;
            job.delete()?;
            job.rename("flights-again")?;
            job.edit(&["spec", "restoreFrom"], "{savepoint: {name: before}}")?;
            job.apply()?;
            job.feed.resume();
            job.wait_reason("Running")
        }
        Compared => {
            // Of the job that is gone: a step on its log unpins the epoch.
            job.kubectl(&["delete", "savepoint", "before", "--timeout=90s"])
                .map(drop)
        }
        During(_) => Ok(()),
    }),
    // A savepoint of a job that rests is taken by a step on its log.
    ("savepoint-of-suspended", |job, when| match when {
        During(3) => {
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
            job.leaves_nothing()?;
            let id = job.log()?;
            let away = Away::kafka()?;
            job.kubectl(&["delete", "streamingjob", &job.name, "--timeout=200s"])?;
            drop(away);
            let left = job.objects(&id)?;
            ensure!(left == 0, "deletionPolicy Delete leaves {left} objects");
            Ok(())
        }
        During(_) => Ok(()),
    }),
    ("s3-away-at-delete", |job, when| match when {
        Compared => {
            job.leaves_nothing()?;
            job.log()?;
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
        During(_) => Ok(()),
    }),
    // It takes no new pods: nobody cleans up.
    ("namespace-deleted", |job, when| match when {
        Compared => {
            job.leaves_nothing()?;
            let id = job.log()?;
            kubectl(&["delete", "namespace", &job.namespace, "--timeout=240s"])?;
            ensure!(job.objects(&id)? > 0, "log {id} is gone with the namespace");
            Ok(())
        }
        During(_) => Ok(()),
    }),
    ("api-restarted", |job, when| match when {
        During(2 | 4) => {
            job.reads()?;
            let kill = "pkill -9 -x kube-apiserver";
            docker(&["exec", "penstock-control-plane", "sh", "-c", kill])?;
            std::thread::sleep(Duration::from_secs(2));
            job.until("the API server is back", |_| {
                kubectl(&["get", "--raw", "/readyz"]).map(|_| true)
            })?;
            // Caches, leases and service accounts need a moment of their own.
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        _ => Ok(()),
    }),
    // A lease that vanishes makes a second leader while the first one still acts.
    ("two-controllers", |job, when| match when {
        During(0) => {
            job.mend = Some(Box::new(|| scale_controller(1)));
            scale_controller(2)?;
            change_hands()?;
            job.wait_reason("Running")
        }
        During(3) => {
            job.reads()?;
            job.patch(EDIT)?;
            change_hands()?;
            job.taken_up()?;
            job.mended()
        }
        _ => Ok(()),
    }),
];
