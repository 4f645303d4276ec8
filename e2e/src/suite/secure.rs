//! Kafka with TLS and passwords: the flights job over SCRAM-SHA-512 on a listener whose certificate and host name are checked,
//! its password changed while it runs; and everything that a broker or a job can refuse, each told in one sentence.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::bed::{Server, root};
use crate::engine::{Engine, Launch, Watched};
use crate::kafka::Loader;
use crate::manifest::Manifest;

const PATIENCE: Duration = Duration::from_secs(120);
/// Within so long a job that is refused says so and ends.
const SOON: Duration = Duration::from_secs(20);
/// Restarts that a rotation may cost: the pauses between them grow to 10 s.
const RESTARTS: u64 = 10;
const USER: &str = "penstock";
const FIRST: &str = "canary-first";
const SECOND: &str = "canary-second";
const SECRET: &str = "kafka-client";

pub fn run(options: &Options, parts: &[String]) -> Result<String> {
    let flights = Flights::load(&options.data)?;
    let work = Work::new("secure")?;
    let certificates = work.path("certificates");
    let made = Command::new(root().join("e2e/kafka/certificates.sh"))
        .arg(&certificates)
        .status()
        .context("cannot run certificates.sh")?;
    ensure!(made.success(), "certificates.sh ended with {made}");
    let kafka = Server::secure_kafka(options.kafka_port, &certificates, USER, FIRST)?;
    let case = Case {
        options,
        flights: &flights,
        work: &work,
        kafka: &kafka,
        brokers: kafka.address(),
        certificates,
    };
    make_topics(&case.brokers, "")?;
    let mut shown = Vec::new();
    for part in parts {
        shown.push(match part.as_str() {
            "refusals" => case.refusals()?,
            "rotation" => case.rotation()?,
            other => bail!("no part is called {other}, there are refusals and rotation"),
        });
    }
    work.done()?;
    Ok(shown.join("; "))
}

struct Case<'a> {
    options: &'a Options,
    flights: &'a Flights,
    work: &'a Work,
    kafka: &'a Server,
    brokers: String,
    certificates: PathBuf,
}

/// What a job is given, and what it must say.
struct Refusal {
    name: &'static str,
    /// `sources` or `sinks`: those that go over TLS; the others take the plain listener.
    secure: &'static [&'static str],
    /// The listener's port behind the broker's.
    port: u16,
    password: &'static str,
    mechanism: &'static str,
    authority: &'static str,
    /// Properties of the Secret beside the usual ones.
    more: &'static [(&'static str, &'static str)],
    says: String,
}

impl Case<'_> {
    fn secure(&self, port: u16) -> String {
        format!("127.0.0.1:{}", self.options.kafka_port + port)
    }

    /// The properties of a client; file names of a Secret.
    fn properties(
        &self,
        mechanism: &str,
        password: &str,
        authority: &str,
    ) -> Result<Vec<(String, String)>> {
        let authority = fs::read_to_string(self.certificates.join(authority))?;
        let of = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", mechanism),
            ("sasl.username", USER),
            ("sasl.password", password),
            ("ssl.ca.pem", &authority),
        ];
        Ok(of.map(|(k, v)| (k.to_owned(), format!("{v}\n"))).to_vec())
    }

    /// The flights example whose `secure` lists go to this port with the Secret.
    fn launch(&self, name: &str, secure: &[&str], port: u16) -> Result<Launch> {
        let folder = self.work.path(name);
        fs::create_dir_all(&folder)?;
        let file = folder.join("job.yaml");
        let mut manifest = Manifest::load(&root().join("examples/flights/job.yaml"))?;
        manifest
            .rehome(&self.brokers, "")?
            .set(&["spec", "trigger"], "{continuous: {}}")?
            .set(
                &["spec", "checkpoint", "storage"],
                &format!(
                    "{{local: {{path: '{}'}}}}",
                    folder.join("checkpoint").display()
                ),
            )?;
        for list in secure {
            manifest
                .set_kafka(list, "bootstrapServers", &self.secure(port))?
                .set_kafka(list, "secretRef", &format!("{{name: {SECRET}}}"))?;
        }
        manifest.save(&file)?;
        Ok(Launch {
            program: self.options.penstock.clone(),
            manifest: file,
            state: folder.join("state"),
            secrets: Some(folder.join("secrets")),
            memory: None,
            log: folder.join("engine.log"),
            fault: None,
            base_epochs: None,
            workers: 1,
            apart: false,
        })
    }

    /// Starts one job for each refusal, all at once.
    fn refusals(&self) -> Result<String> {
        let plain = Refusal {
            name: "",
            secure: &["sources", "sinks"],
            port: 2,
            password: FIRST,
            mechanism: "SCRAM-SHA-512",
            authority: "ca.pem",
            more: &[],
            says: String::new(),
        };
        let at = |port| self.secure(port);
        let login = "Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512";
        let refusals = [
            Refusal {
                name: "wrong-password",
                password: "canary-wrong",
                says: format!("[PR0211] source flights: {} refuses the login of user {USER} by SCRAM-SHA-512: {login}", at(2)),
                ..plain
            },
            Refusal {
                name: "wrong-password-of-the-sinks",
                secure: &["sinks"],
                password: "canary-wrong",
                says: format!("[PR0211] sink hourly: {} refuses the login of user {USER} by SCRAM-SHA-512: {login}", at(2)),
                ..plain
            },
            Refusal {
                name: "mechanism-of-another-password",
                mechanism: "SCRAM-SHA-256",
                says: format!("[PR0211] source flights: {} refuses the login of user {USER} by SCRAM-SHA-256: ", at(2)),
                ..plain
            },
            Refusal {
                name: "mechanism-the-broker-has-not",
                mechanism: "PLAIN",
                says: format!("[PR0211] source flights: {} refuses the login of user {USER} by PLAIN: ", at(2)),
                ..plain
            },
            Refusal {
                name: "mechanism-the-program-has-not",
                mechanism: "GSSAPI",
                says: "[PR0208] sink hourly: sasl.mechanism GSSAPI is not in this version; there are SCRAM-SHA-512, SCRAM-SHA-256, PLAIN".to_owned(),
                ..plain
            },
            Refusal {
                name: "expired-certificate",
                port: 3,
                says: format!("[PR0212] source flights: the certificate of {} has expired at 2", at(3)),
                ..plain
            },
            Refusal {
                name: "certificate-of-another-host",
                port: 4,
                says: format!("[PR0212] source flights: the certificate of {} is not made out to 127.0.0.1, but to ", at(4)),
                ..plain
            },
            Refusal {
                name: "unknown-authority",
                authority: "stranger.pem",
                says: format!("[PR0212] source flights: no authority of ssl.ca.pem has signed the certificate of {}", at(2)),
                ..plain
            },
            Refusal {
                name: "host-name-unchecked",
                port: 4,
                more: &[("ssl.endpoint.identification.algorithm", "none")],
                says: "[PR0208] sink hourly: property ssl.endpoint.identification.algorithm is refused: certificates and host names of brokers are always checked".to_owned(),
                ..plain
            },
            Refusal {
                name: "certificate-unchecked",
                port: 3,
                more: &[("enable.ssl.certificate.verification", "false")],
                says: "[PR0208] sink hourly: property enable.ssl.certificate.verification is refused: certificates and host names of brokers are always checked".to_owned(),
                ..plain
            },
        ];
        let began = Instant::now();
        let mut engines = Vec::new();
        for refusal in &refusals {
            let launch = self.launch(refusal.name, refusal.secure, refusal.port)?;
            let mut properties =
                self.properties(refusal.mechanism, refusal.password, refusal.authority)?;
            properties.extend(
                refusal
                    .more
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
            );
            mount(&self.work.path(refusal.name).join("secrets"), &properties)?;
            engines.push(Engine::start(&launch)?);
        }
        for (refusal, mut engine) in refusals.iter().zip(engines) {
            let status = engine.wait(SOON)?;
            let said = engine.said()?;
            ensure!(
                !status.success(),
                "{}: the job ended well{}",
                refusal.name,
                engine.tail()
            );
            let (code, words) = refusal.says.split_once(' ').context("a code and words")?;
            let told = |line: &str| {
                line.strip_prefix("error: ")
                    .is_some_and(|l| l.starts_with(words) && l.ends_with(code))
            };
            ensure!(
                said.lines().any(told),
                "{}: it should say {:?}{}",
                refusal.name,
                refusal.says,
                engine.tail()
            );
            silent_about_passwords(refusal.name, &said)?;
        }
        println!(
            "secure: {} refusals, all told and ended within {:.1} s",
            refusals.len(),
            began.elapsed().as_secs_f64()
        );
        Ok(format!(
            "{} refusals told in one sentence each",
            refusals.len()
        ))
    }

    /// The whole job; the password changes on the broker while it runs, then in the Secret.
    fn rotation(&self) -> Result<String> {
        let launch = self.launch("rotation", &["sources", "sinks"], 2)?;
        let secrets = self.work.path("rotation").join("secrets");
        mount(
            &secrets,
            &self.properties("SCRAM-SHA-512", FIRST, "ca.pem")?,
        )?;
        let mut loader = Loader::new(&self.brokers, "flights")?;
        self.flights.put_slice(&mut loader, 0, 2)?;
        loader.flush()?;
        let mut engine = Engine::start(&launch)?;
        await_caught_up(&mut engine, PATIENCE)?;
        println!(
            "secure: {} rows read over SASL_SSL, now the password changes",
            loader.sent()
        );

        self.kafka.password(USER, SECOND)?;
        // Who is logged in stays so: the broker's end makes every client log in again.
        self.kafka.kill9()?;
        self.kafka.start()?;
        let began = Instant::now();
        let refused = engine.until("the old password is refused", PATIENCE, |s| {
            s.failure
                .as_ref()
                .is_some_and(|f| f.starts_with("PR0211 ") && f.contains("refuses the login"))
        })?;
        println!(
            "secure: after {:.1} s: {}",
            began.elapsed().as_secs_f64(),
            refused.failure.unwrap_or_default()
        );
        mount(
            &secrets,
            &self.properties("SCRAM-SHA-512", SECOND, "ca.pem")?,
        )?;
        let began = Instant::now();
        self.flights.put_slice(&mut loader, 1, 2)?;
        loader.flush()?;
        let rows = refused.rows;
        let back = engine.until("it reads on with the new password", PATIENCE, |s| {
            s.running && s.rows > rows
        })?;
        let took = began.elapsed().as_secs_f64();
        ensure!(
            back.restarts <= RESTARTS,
            "{} restarts for one rotation",
            back.restarts
        );

        await_caught_up(&mut engine, PATIENCE)?;
        let first = self.flights.first.as_str();
        engine.until("the watermark has passed the first flight", PATIENCE, |s| {
            s.watermark.as_deref() > Some(first)
        })?;
        let late = self.flights.put_late(&mut loader)?;
        await_caught_up(&mut engine, PATIENCE)?;
        self.flights.put_markers(&mut loader, 1)?;
        await_caught_up(&mut engine, PATIENCE)?;
        self.flights.put_markers(&mut loader, 2)?;
        let markers = self.flights.markers()?;
        await_markers(
            &self.brokers,
            "flights-hourly",
            markers,
            &mut engine,
            PATIENCE,
        )?;
        await_markers(
            &self.brokers,
            "flights-six-hours",
            markers * 6,
            &mut engine,
            PATIENCE,
        )?;
        let end = engine.until("its status", PATIENCE, |_| true)?;
        engine.interrupt(Duration::from_secs(60))?;
        ensure!(
            end.restarts == back.restarts,
            "{} restarts after the new password was taken",
            end.restarts - back.restarts
        );
        silent_about_passwords("rotation", &engine.said()?)?;
        let (options, brokers, work) = (self.options, self.brokers.as_str(), self.work);
        let of = self.flights;
        let hourly = of.compare(options, brokers, "flights-hourly", "hourly", work)?;
        let six_hours = of.compare(options, brokers, "flights-six-hours", "six-hours", work)?;
        let rejects = of.rejects(&late).compare(brokers, "flights-rejected")?;
        if !(hourly && six_hours && rejects) {
            bail!("rows differ, see above; {}", work.folder.display());
        }
        Ok(format!(
            "{} flights over SCRAM-SHA-512 and TLS equal DuckDB's rows, read on {took:.1} s after the password's change, {} restarts",
            of.count, back.restarts
        ))
    }
}

/// Lays a Secret out as a kubelet does: files in a new folder, to which one link is turned at once.
fn mount(secrets: &Path, properties: &[(String, String)]) -> Result<()> {
    let folder = secrets.join(SECRET);
    fs::create_dir_all(&folder)?;
    let version = (1..)
        .map(|n| format!("..version-{n}"))
        .find(|name| !folder.join(name).exists())
        .context("a free name")?;
    fs::create_dir(folder.join(&version))?;
    for (name, value) in properties {
        fs::write(folder.join(&version).join(name), value)?;
    }
    let before = fs::read_link(folder.join("..data")).ok();
    symlink(&version, folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    for (name, _) in properties {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(folder.join(before))?;
    }
    Ok(())
}

fn silent_about_passwords(name: &str, said: &str) -> Result<()> {
    ensure!(
        !said.contains("canary-"),
        "{name}: a password stands in the log"
    );
    Ok(())
}
