//! The controller against a real API server, with fake pods and simulated coordinators: `crash` kills it at each write and hinders
//! it in every other way, `bench` gives it a thousand jobs.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::plane::Parts;

mod audit;
mod bench;
mod crash;
mod engine;
mod life;
mod operator;
mod picture;
mod plane;
mod proxy;

#[derive(Debug, Parser)]
#[command(about)]
struct Args {
    /// The folder of etcd, kube-apiserver, kube-controller-manager and kwok.
    #[arg(long)]
    bin: PathBuf,
    /// The clone of the project.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The controller's program.
    #[arg(long)]
    operator: PathBuf,
    /// Where logs are kept, and what belongs to a run.
    #[arg(long)]
    folder: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A life of a job for each write that the controller does, with a crash or a fault at that write.
    Crash {
        /// Every fault at every write; else both crashes and one other fault.
        #[arg(long)]
        full: bool,
        /// Faults in this step alone.
        #[arg(long)]
        step: Option<String>,
    },
    /// Many jobs whose coordinators report moving lag.
    Bench(bench::Args),
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // A folder of an earlier run is of no use.
    let _ = std::fs::remove_dir_all(&args.folder);
    std::fs::create_dir_all(&args.folder)?;
    let folder = args.folder.canonicalize()?;
    let parts = Parts {
        bin: &args.bin,
        root: &args.root,
        folder: &folder,
        audit: matches!(args.command, Command::Bench(_)),
    };
    let work = async {
        match &args.command {
            Command::Crash { full, step } => {
                crash::run(&parts, &args.operator, *full, step.as_deref()).await
            }
            Command::Bench(bench) => bench::run(&parts, &args.operator, bench).await,
        }
    };
    // Dropped as it is, it takes the programs that it started with it.
    let passed = tokio::select! {
        passed = work => passed?,
        () = interrupted() => {
            println!("FAIL interrupted");
            false
        }
    };
    std::process::exit(i32::from(!passed));
}

/// SIGTERM or Ctrl-C.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
