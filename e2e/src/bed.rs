//! Owns the servers of the test bed, a real Kafka and a real S3, through their scripts: started anew for a suite, crashed by
//! request, stopped and wiped at the end. Where they come from is the scripts' business.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The clone's root: set by `./dev`, else where this crate was built from.
pub fn root() -> PathBuf {
    std::env::var_os("PENSTOCK_ROOT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        PathBuf::from,
    )
}

/// The folder for what tests leave behind.
pub fn testbed() -> PathBuf {
    if let Some(folder) = std::env::var_os("PENSTOCK_TESTBED") {
        return folder.into();
    }
    PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into()))
        .join(".cache/penstock/testbed")
}

/// One server of the test bed, behind its script.
pub struct Server {
    script: PathBuf,
    port: u16,
    environment: Vec<(&'static str, String)>,
    /// Whether it goes with this value.
    ours: bool,
}

/// The account of the S3 server.
pub const S3_ACCESS: &str = "penstock";
pub const S3_SECRET: &str = "penstock-secret";

impl Server {
    /// A Kafka broker without data on this port; the next port is its controller's.
    pub fn kafka(port: u16) -> Result<Self> {
        Self::fresh(root().join("e2e/kafka/kafka.sh"), port, Vec::new())
    }

    /// The same at another address of this machine.
    pub fn kafka_at(host: Ipv4Addr, port: u16) -> Result<Self> {
        let environment = vec![("KAFKA_HOST", host.to_string())];
        Self::fresh(root().join("e2e/kafka/kafka.sh"), port, environment)
    }

    /// The same with listeners behind TLS and a user that logs in by SCRAM-SHA-512. `certificates`: of certificates.sh.
    pub fn secure_kafka(
        port: u16,
        certificates: &Path,
        user: &str,
        password: &str,
    ) -> Result<Self> {
        let environment = vec![
            ("KAFKA_SECURE", certificates.display().to_string()),
            ("KAFKA_USER", format!("{user}:{password}")),
        ];
        Self::fresh(root().join("e2e/kafka/kafka.sh"), port, environment)
    }

    /// The broker of the cluster (`./dev kind up`), at the address of its plain listener; it stays.
    pub fn of_the_cluster(brokers: &str) -> Result<Self> {
        let (host, port) = brokers.rsplit_once(':').context("host:port")?;
        let certificates = testbed().join("kind/certificates");
        Ok(Self {
            script: root().join("e2e/kafka/kafka.sh"),
            port: port.parse()?,
            environment: vec![
                ("KAFKA_HOST", host.to_owned()),
                ("KAFKA_SECURE", certificates.display().to_string()),
            ],
            ours: false,
        })
    }

    /// Gives a user of the Kafka broker another password.
    pub fn password(&self, user: &str, password: &str) -> Result<()> {
        let config = format!("SCRAM-SHA-512=[password={password}]");
        let status = Command::new(&self.script)
            .args(["tool", "kafka.admin.ConfigCommand", "--bootstrap-server"])
            .arg(self.address())
            .args(["--alter", "--entity-type", "users", "--entity-name", user])
            .args(["--add-config", &config])
            .env("PENSTOCK_TESTBED", testbed())
            .stdout(Stdio::null())
            .status()
            .context("cannot run ConfigCommand")?;
        ensure!(status.success(), "ConfigCommand ended with {status}");
        Ok(())
    }

    /// An S3 server without buckets on this port.
    pub fn s3(port: u16) -> Result<Self> {
        Self::fresh(root().join("e2e/s3/s3.sh"), port, Vec::new())
    }

    /// The same at another address of this machine.
    pub fn s3_at(host: Ipv4Addr, port: u16) -> Result<Self> {
        let environment = vec![("S3_HOST", host.to_string())];
        Self::fresh(root().join("e2e/s3/s3.sh"), port, environment)
    }

    fn fresh(script: PathBuf, port: u16, environment: Vec<(&'static str, String)>) -> Result<Self> {
        let server = Self {
            script,
            port,
            environment,
            ours: true,
        };
        server.call(&["wipe"])?;
        server.start()?;
        Ok(server)
    }

    fn call(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.script);
        command
            .args(words)
            .arg(self.port.to_string())
            .env("PENSTOCK_TESTBED", testbed())
            .envs(self.environment.iter().map(|(k, v)| (*k, v)));
        if std::env::var_os("KAFKA_EXTRA").is_none() {
            // Big segments: a suite reads what it wrote, and deleting a topic should not take long.
            command.env(
                "KAFKA_EXTRA",
                "log.segment.bytes=268435456 log.retention.ms=-1",
            );
        }
        let status = command
            .status()
            .with_context(|| format!("cannot run {}", self.script.display()))?;
        if !status.success() {
            bail!(
                "{} {} {} ended with {status}",
                self.script.display(),
                words.join(" "),
                self.port
            );
        }
        Ok(())
    }

    pub fn start(&self) -> Result<()> {
        self.call(&["start"])
    }

    /// Ends it as a crash would; its data stays.
    pub fn kill9(&self) -> Result<()> {
        self.call(&["kill9"])
    }

    pub fn bucket(&self, name: &str) -> Result<()> {
        self.call(&["bucket", name])
    }

    pub fn address(&self) -> String {
        let mut named = self.environment.iter();
        let host = named.find(|(k, _)| matches!(*k, "KAFKA_HOST" | "S3_HOST"));
        let host = host.map_or("127.0.0.1", |(_, host)| host);
        format!("{host}:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        if let Err(error) = self.call(&["wipe"]) {
            eprintln!("e2e: {error:#}");
        }
    }
}
