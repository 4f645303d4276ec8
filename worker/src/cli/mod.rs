//! The command line: what a person types, and what they are told. Reading manifests, exit codes and output forms are here;
//! what runs is `job`'s.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use penstock_telemetry::Lines;

use crate::error::{EngineError, Result};

mod check;
mod log;
mod run;
mod step;
mod supervise;
mod team;
mod tell;
mod test;
mod worker;

/// Structured streaming: sources, one SQL text, sinks; every result exactly once.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, about, max_term_width = 100)]
struct Cli {
    /// How results and errors are written.
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job on this machine until it ends or Ctrl-C.
    Run(run::RunArgs),
    /// Check manifests: structure, rules, SQL.
    Lint {
        /// Manifests; `-` is standard input.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The version that runs, a manifest or a plan: what becomes of its state under the one manifest that is checked.
        #[arg(long, value_name = "OLD")]
        against: Option<PathBuf>,
        /// Give up beyond 1 GiB of memory or 5 s of CPU time.
        #[arg(long, hide = true)]
        bounded: bool,
    },
    /// Show the graph of a job; with --against, what becomes of the state of a running version.
    Plan {
        file: PathBuf,
        /// A plan (`plan/<hash>.json` of a log) or another manifest.
        #[arg(long)]
        against: Option<PathBuf>,
        /// Operators whose state may be dropped.
        #[arg(long = "drop-state")]
        drop_state: Vec<String>,
    },
    /// Explain an error code.
    Explain { code: String },
    /// Run test files: rows in, rows out, on the real engine in memory.
    Test {
        /// Test files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show the log of a job.
    Log {
        /// The job's manifest.
        file: PathBuf,
        /// Where secrets are: DIR/<secret>/<key>.
        #[arg(long)]
        secrets: Option<PathBuf>,
    },
    /// Run a job in a pod, as the controller tells.
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    /// The first process of a pod: starts `penstock worker` and starts it again when it ends.
    #[command(hide = true)]
    Supervise(supervise::SuperviseArgs),
    /// One step on the log of a job that does not run.
    #[command(hide = true)]
    Step(step::StepArgs),
    /// Names of the steps at which a test may kill the engine.
    #[command(hide = true)]
    FaultPoints,
}

/// Runs the command line; the exit code is 0 when all went well, 1 when the job failed, 2 when the input is wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let lines = match cli.output {
        Output::Text => Lines::Text,
        Output::Json => Lines::Json,
    };
    let runs = matches!(&cli.command, Command::Run(_) | Command::Worker(_));
    let _spans = penstock_telemetry::start(lines, "warn", runs.then_some("penstock-worker"));
    match cli.command {
        Command::Run(args) => run::run(args, cli.output),
        Command::Lint {
            files,
            against,
            bounded,
        } => {
            if bounded {
                check::bound();
            }
            match (against, files.as_slice()) {
                (None, files) => check::lint(files, cli.output),
                (Some(old), [new]) => check::lint_edit(new, &old, cli.output),
                (Some(_), _) => {
                    eprintln!(
                        "error: --against takes one manifest, and {} are given",
                        files.len()
                    );
                    tell::wrong_input()
                }
            }
        }
        Command::Plan {
            file,
            against,
            drop_state,
        } => check::plan(&file, against.as_deref(), &drop_state, cli.output),
        Command::Explain { code } => check::explain(&code, cli.output),
        Command::Test { files } => test::test(&files, cli.output),
        Command::Log { file, secrets } => log::log(&file, secrets.as_ref(), cli.output),
        Command::Worker(args) => worker::worker(&args, cli.output),
        Command::Supervise(args) => supervise::supervise(&args),
        Command::Step(args) => step::step(&args, cli.output),
        Command::FaultPoints => {
            for name in crate::fault::POINTS {
                println!("{name}");
            }
            ExitCode::SUCCESS
        }
    }
}

/// What runs until the job has ended, on the threads that wait; processing has its own.
fn until_ended<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| EngineError::fail("PR0304", "runtime", e.to_string()))?;
    let ended = runtime.block_on(job);
    // Blocking calls of clients that were given up do not hold the exit back.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}
