//! `penstock log`: the log of a job, for people.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use penstock_checkpoint::{log as joblog, print};

use super::{Output, check, tell};
use crate::error::{EngineError, Result};
use crate::job;
use crate::member::storage;

pub fn log(file: &Path, secrets: Option<&PathBuf>, output: Output) -> ExitCode {
    let checked = match check::check(file, output) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let shown = runtime
        .map_err(|e| EngineError::fail("PR0304", "runtime", e.to_string()))
        .and_then(|runtime| runtime.block_on(show(&checked.job, secrets, output)));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell::failure(&error, output);
            ExitCode::FAILURE
        }
    }
}

async fn show(job: &penstock_crds::job::StreamingJob, secrets: Option<&PathBuf>, output: Output) -> Result<()> {
    let store = job::open_store(job, secrets)?;
    let logs = store.logs().await.map_err(|e| storage(e.into()))?;
    if logs.is_empty() {
        eprintln!("no log of this name in {}", store.prefix());
    }
    for id in logs {
        let records = joblog::read_all(&store.below(&id.to_string())).await.map_err(storage)?;
        match output {
            Output::Text => {
                println!("log {id}");
                print!("{}", print::text(&records));
            }
            Output::Json => {
                let text = print::json(&records).map_err(|e| EngineError::fail("PR0304", "log", e.to_string()))?;
                println!("{text}");
            }
        }
    }
    Ok(())
}
