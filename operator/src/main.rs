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
use tower::timeout::TimeoutLayer;

/// How long the API server may take to begin an answer; what is not answered by then is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let filter = tracing_subscriber::EnvFilter::try_from_env("PENSTOCK_LOG")
        .unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .init();
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
    // Until the answer begins: a watch goes on for minutes after that.
    let client = ClientBuilder::try_from(config)?
        .with_layer(&TimeoutLayer::new(PATIENCE))
        .build();
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
