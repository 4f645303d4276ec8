//! `penstock-operator`: the controller as a process. Every replica answers the webhook; the one that holds the Lease acts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use kube::client::ClientBuilder;
use penstock_operator::admission::Judge;
use penstock_operator::certificates::{self, Authority, Files};
use penstock_operator::election::Election;
use penstock_operator::lint::Linter;
use penstock_operator::metrics::{Metrics, Shown};
use penstock_operator::settings::Settings;
use penstock_operator::{admission, controller};
use penstock_telemetry::Lines;
use tower::timeout::TimeoutLayer;

/// How long the API server may take to begin an answer; what is not answered by then is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection to the API server may be silent while an answer goes on: longer than the longest watch, which the API server
/// itself ends.
const SILENCE: Duration = Duration::from_secs(305);

/// Runs StreamingJobs on this cluster.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// What the chart's values say.
    #[arg(long, default_value = "/etc/penstock/settings.yaml")]
    settings: PathBuf,
    /// Name of this replica: its pod's.
    #[arg(long, env = "HOSTNAME")]
    name: String,
    /// Address of the webhook.
    #[arg(long, default_value = "0.0.0.0:9443")]
    webhook: SocketAddr,
    /// Address of /metrics and /healthz.
    #[arg(long, default_value = "0.0.0.0:8080")]
    metrics: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _spans = penstock_telemetry::start(Lines::Json, "info", Some("penstock-controller"));
    let text = std::fs::read_to_string(&args.settings)
        .with_context(|| format!("cannot read {}", args.settings.display()))?;
    let settings: Settings = serde_yaml::from_str(&text)
        .with_context(|| format!("{} is not what the chart writes", args.settings.display()))?;
    let metrics = Arc::new(Metrics::default());
    let counted = Arc::clone(&metrics);
    tokio::spawn(async move {
        if let Err(error) = penstock_operator::metrics::serve(args.metrics, counted).await {
            tracing::error!(%error, "/metrics has ended");
        }
    });
    let config = kube::Config::infer()
        .await
        .context("no cluster to speak to")?;
    let client = client(config, SILENCE)?;
    let authority = Arc::new(Authority::open(&client, &settings.own_namespace).await?);
    metrics.expires(Shown::Authority, authority.until());
    if !settings.webhook_host.is_empty() {
        let tls = match &settings.webhook_certificate {
            Some(folder) => certificates::server(Arc::new(Files::open(folder, &metrics)?))?,
            None => authority.server(&settings.webhook_host, &metrics)?,
        };
        let tls = Arc::new(tls);
        let judge = Judge {
            linter: Linter::new(settings.planner.clone()),
            bounds: settings.bounds.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = admission::serve(args.webhook, tls, judge).await {
                tracing::error!(%error, "the webhook has ended");
            }
        });
    }
    let election = Election::new(client.clone(), &settings.own_namespace, args.name);
    tokio::select! {
        () = election.won() => {}
        () = ended() => return Ok(()),
    }
    tracing::info!("leading");
    metrics.leads(true);
    let election = Arc::new(election);
    let lease = Arc::clone(&election);
    let (say, over) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            () = lease.lost() => tracing::error!("the lease is lost: this replica begins again"),
            () = ended() => {}
        }
        // The controller may have ended by itself.
        let _ = say.send(());
    });
    let over = async move {
        let _ = over.await;
    };
    // Apart from the webhook's: neither waits for the other.
    let linter = Linter::new(settings.planner.clone());
    controller::run(client, settings, authority, linter, &metrics, over).await?;
    metrics.leads(false);
    election.resign().await;
    Ok(())
}

/// The client of the API server.
fn client(mut config: kube::Config, silence: Duration) -> Result<kube::Client, kube::Error> {
    config.read_timeout = Some(silence);
    // Until the answer begins: a watch goes on for minutes after that.
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&TimeoutLayer::new(PATIENCE))
        .build())
}

/// SIGTERM or Ctrl-C.
async fn ended() {
    let term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match term {
        Ok(mut term) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be heard");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_that_stalls_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let begun = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
                stream.write_all(begun).await.unwrap();
                held.push(stream);
            }
        });
        let config = kube::Config::new(at.parse().unwrap());
        let client = client(config, Duration::from_millis(200)).unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "risk");
        let read = tokio::time::timeout(Duration::from_secs(20), maps.get("x")).await;
        assert!(read.expect("it is given up").is_err());
    }
}
