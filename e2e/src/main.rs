//! `penstock-e2e`: what the end-to-end tests and benches are made of. Layers, each using only those below:
//!
//! ```text
//! suite (flights, exactly_once, secure, kind)     bench (latency, size)
//! engine   manifest   dump   drain   bed   apart
//! kafka   canonical
//! ```
//!
//! A suite starts the servers (`bed`), loads input (`kafka`), runs the engine as a child process (`engine`) and compares what it
//! committed with an oracle that shares no code with it (`dump`, e2e/compare.py). The last line is the verdict, and so is the status.
#![allow(
    clippy::disallowed_methods,
    reason = "these programs measure and wait in real time"
)]

mod apart;
mod bed;
mod bench;
mod canonical;
mod drain;
mod dump;
mod engine;
mod groups;
mod kafka;
mod manifest;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Tools and suites of Penstock's end-to-end tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create or delete a topic
    Topic {
        #[command(subcommand)]
        action: TopicAction,
    },
    /// Write files of lines to a topic: the nth file to partition n
    Produce {
        #[arg(long)]
        brokers: String,
        #[arg(long)]
        topic: String,
        files: Vec<PathBuf>,
    },
    /// Read the committed records of a topic to its end; print what they are
    Dump {
        #[arg(long)]
        brokers: String,
        #[arg(long)]
        topic: String,
        /// The last value of each key counts
        #[arg(long)]
        upsert: bool,
        /// Write the canonical rows to this file
        #[arg(long)]
        rows: Option<PathBuf>,
    },
    /// Read a topic to its end with the client library alone, and do nothing with it
    Drain {
        #[arg(long)]
        brokers: String,
        #[arg(long)]
        topic: String,
    },
    /// Measure a broker alone: rows sent and read back
    Baseline {
        #[arg(long)]
        brokers: String,
        #[arg(long, default_value_t = 5_000)]
        rate: usize,
        #[arg(long, default_value_t = 10)]
        seconds: usize,
    },
    /// Run workers that each have a network of their own, as `penstock run --workers` runs those that share one
    Apart {
        #[command(flatten)]
        options: apart::team::Options,
    },
    /// Run a suite
    Suite {
        #[command(subcommand)]
        suite: Suite,
    },
    /// Run a measurement
    Bench {
        #[command(subcommand)]
        set: Set,
    },
}

#[derive(Subcommand)]
enum TopicAction {
    Create {
        #[arg(long)]
        brokers: String,
        name: String,
        #[arg(long, default_value_t = 4)]
        partitions: i32,
        /// key=value, any number
        #[arg(long)]
        set: Vec<String>,
    },
    Delete {
        #[arg(long)]
        brokers: String,
        name: String,
    },
}

#[derive(Subcommand)]
enum Suite {
    /// The real job, planned and continuous, against DuckDB
    Flights {
        #[command(flatten)]
        options: suite::Options,
        #[arg(long, value_delimiter = ',', default_value = "planned,continuous")]
        modes: Vec<String>,
    },
    /// The same job under kills and outages
    ExactlyOnce {
        #[command(flatten)]
        options: suite::Options,
        #[command(flatten)]
        blows: suite::exactly_once::Blows,
    },
    /// The same job over TLS and passwords that change; brokers that refuse
    Secure {
        #[command(flatten)]
        options: suite::Options,
        #[arg(long, value_delimiter = ',', default_value = "refusals,rotation")]
        parts: Vec<String>,
    },
    /// The same job in pods of a cluster that is there
    Kind {
        #[command(flatten)]
        options: suite::Options,
        #[command(flatten)]
        place: suite::kind::Place,
    },
}

#[derive(Subcommand)]
enum Set {
    /// From broker to broker at a steady rate
    Latency(bench::latency::Options),
    /// Lost workers, and more and fewer of them, with large state
    Elasticity(bench::elasticity::Options),
    /// What workers can do, and what the autoscaler makes of a load that triples
    Autoscale(bench::autoscale::Options),
    /// Workers with little memory and much state, for as long as one likes
    Memory(bench::memory::Options),
    /// State far larger than memory
    Size(bench::size::Options),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let began = Instant::now();
    let name = name(&command);
    match run(command) {
        Ok(line) => {
            match name {
                Some(name) => println!(
                    "PASS {name}: {line} ({:.0} s)",
                    began.elapsed().as_secs_f64()
                ),
                None => println!("{line}"),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            match name {
                Some(name) => println!(
                    "FAIL {name}: {error:#} ({:.0} s)",
                    began.elapsed().as_secs_f64()
                ),
                None => eprintln!("penstock-e2e: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// The name under which a command gives its verdict; tools give none.
fn name(command: &Command) -> Option<&'static str> {
    match command {
        Command::Suite {
            suite: Suite::Flights { .. },
        } => Some("e2e flights"),
        Command::Suite {
            suite: Suite::ExactlyOnce { .. },
        } => Some("e2e exactly-once"),
        Command::Suite {
            suite: Suite::Secure { .. },
        } => Some("e2e secure"),
        Command::Suite {
            suite: Suite::Kind { .. },
        } => Some("e2e kind"),
        Command::Bench {
            set: Set::Latency(_),
        } => Some("bench latency"),
        Command::Bench { set: Set::Size(_) } => Some("bench size"),
        Command::Bench {
            set: Set::Memory(_),
        } => Some("bench memory"),
        Command::Bench {
            set: Set::Autoscale(_),
        } => Some("bench autoscale"),
        Command::Bench {
            set: Set::Elasticity(_),
        } => Some("bench elasticity"),
        Command::Topic { .. }
        | Command::Produce { .. }
        | Command::Dump { .. }
        | Command::Drain { .. }
        | Command::Baseline { .. }
        | Command::Apart { .. } => None,
    }
}

fn run(command: Command) -> Result<String> {
    match command {
        Command::Topic {
            action:
                TopicAction::Create {
                    brokers,
                    name,
                    partitions,
                    set,
                },
        } => {
            let settings: Vec<(&str, &str)> =
                set.iter().filter_map(|pair| pair.split_once('=')).collect();
            kafka::create_topic(&brokers, &name, partitions, &settings)?;
            Ok(format!("created {name} with {partitions} partitions"))
        }
        Command::Topic {
            action: TopicAction::Delete { brokers, name },
        } => {
            kafka::delete_topic(&brokers, &name)?;
            Ok(format!("deleted {name}"))
        }
        Command::Drain { brokers, topic } => {
            let (records, bytes) = drain::drain(&brokers, &topic)?;
            Ok(format!("records={records} bytes={bytes}"))
        }
        Command::Produce {
            brokers,
            topic,
            files,
        } => {
            let mut loader = kafka::Loader::new(&brokers, &topic)?;
            let began = Instant::now();
            for (partition, file) in (0..).zip(&files) {
                for line in kafka::read_lines(file)? {
                    loader.put(partition, &line)?;
                }
            }
            loader.flush()?;
            Ok(format!(
                "produced {} records in {:.1} s",
                loader.sent(),
                began.elapsed().as_secs_f64()
            ))
        }
        Command::Dump {
            brokers,
            topic,
            upsert,
            rows,
        } => Ok(dump::dump(&brokers, &topic, upsert, rows.as_deref())?.to_string()),
        Command::Baseline {
            brokers,
            rate,
            seconds,
        } => bench::latency::baseline(&brokers, rate, seconds),
        Command::Apart { options } => apart::team::run(&options),
        Command::Suite {
            suite: Suite::Flights { options, modes },
        } => suite::flights::run(&options, &modes),
        Command::Suite {
            suite: Suite::ExactlyOnce { options, blows },
        } => suite::exactly_once::run(&options, &blows),
        Command::Suite {
            suite: Suite::Secure { options, parts },
        } => suite::secure::run(&options, &parts),
        Command::Suite {
            suite: Suite::Kind { options, place },
        } => suite::kind::run(&options, &place),
        Command::Bench {
            set: Set::Latency(options),
        } => bench::latency::run(&options),
        Command::Bench {
            set: Set::Elasticity(options),
        } => bench::elasticity::run(&options),
        Command::Bench {
            set: Set::Autoscale(options),
        } => bench::autoscale::run(&options),
        Command::Bench {
            set: Set::Memory(options),
        } => bench::memory::run(&options),
        Command::Bench {
            set: Set::Size(options),
        } => bench::size::run(&options),
    }
}
