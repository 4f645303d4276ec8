//! Which log is the job's: found by name in the checkpoint storage, or drawn (rule 11). A folder lock keeps two runs of one
//! machine from drawing at once. `penstock run` always goes on with the log of its name, so `startFresh` and `restoreFrom`, which
//! choose between logs, are a cluster's; where obeying would matter (a restore, and no log to restore from) it refuses.

use std::fs::File;
use std::path::Path;

use penstock_checkpoint::ids::{Entropy, LogId, SystemEntropy};
use penstock_checkpoint::log::{JobLog, LogError, Options};
use penstock_checkpoint::record::Created;
use penstock_checkpoint::store::CheckpointStore;
use penstock_crds::job::{RestoreFrom, StreamingJobSpec};

use crate::error::{EngineError, Result};
use crate::member::storage;

/// The file on the volume that names the job's log.
const IDENTITY: &str = "log-id";

/// Opens the job's log, or begins one. `store` ends at `<prefix>/<namespace>/<name>`.
///
/// # Errors
/// `PR0411` when the manifest restores and there is no log of this name.
pub async fn open_log(
    store: &CheckpointStore,
    volume: &Path,
    created: Created,
    spec: &StreamingJobSpec,
) -> Result<JobLog> {
    std::fs::create_dir_all(volume).map_err(|e| disk(volume, e))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(volume.join("lock"))
        .map_err(|e| disk(volume, e))?;
    // Held until the log is open; the log's own fence decides from then on.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| disk(volume, e.into()))?;
    let known = read_identity(volume);
    let mut logs = store.logs().await.map_err(|e| storage(LogError::from(e)))?;
    if let Some(known) = known.filter(|k| logs.contains(k)) {
        logs = vec![known];
    }
    match logs.as_slice() {
        [] => {
            nothing_to_restore(spec, store)?;
            let id = LogId::from_bytes(SystemEntropy.bytes16());
            let log = JobLog::create(
                store.below(&id.to_string()),
                id,
                created,
                Options::default(),
            )
            .await
            .map_err(storage)?;
            write_identity(volume, id)?;
            Ok(log)
        }
        [id] => {
            let log = JobLog::open(store.below(&id.to_string()), Options::default())
                .await
                .map_err(storage)?;
            write_identity(volume, *id)?;
            log.ok_or_else(|| {
                EngineError::fail("PR0405", format!("log {id}"), "its folder holds no record")
            })
        }
        several => newest(store, volume, several).await,
    }
}

/// A job that should begin with the results of another one must not begin empty.
fn nothing_to_restore(spec: &StreamingJobSpec, store: &CheckpointStore) -> Result<()> {
    let Some(from) = &spec.restore_from else {
        return Ok(());
    };
    let what = match from {
        RestoreFrom {
            savepoint: Some(savepoint),
            ..
        } => format!("savepoint {}", savepoint.name),
        RestoreFrom {
            epoch: Some(epoch), ..
        } => format!("epoch {}", epoch.number),
        RestoreFrom { .. } => "the latest epoch".to_owned(),
    };
    let text = format!(
        "it names {what}, and no log of this name is in {}; penstock run goes on with the newest epoch of the log of its name: name the storage that holds it, or take restoreFrom out to begin with nothing",
        store.prefix()
    );
    Err(EngineError::fail("PR0411", "spec.restoreFrom", text))
}

/// Of several logs of this name the one that was begun last.
async fn newest(store: &CheckpointStore, volume: &Path, ids: &[LogId]) -> Result<JobLog> {
    let mut best: Option<JobLog> = None;
    for id in ids {
        let log = JobLog::open(store.below(&id.to_string()), Options::default())
            .await
            .map_err(storage)?;
        if let Some(log) = log
            && best
                .as_ref()
                .is_none_or(|b| b.fold().created() < log.fold().created())
        {
            best = Some(log);
        }
    }
    let log = best.ok_or_else(|| {
        EngineError::fail("PR0405", "logs of this name", "no folder holds a record")
    })?;
    write_identity(volume, log.fold().log())?;
    Ok(log)
}

fn read_identity(volume: &Path) -> Option<LogId> {
    std::fs::read_to_string(volume.join(IDENTITY))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn write_identity(volume: &Path, id: LogId) -> Result<()> {
    std::fs::write(volume.join(IDENTITY), format!("{id}\n")).map_err(|e| disk(volume, e))
}

fn disk(volume: &Path, e: std::io::Error) -> EngineError {
    let object = format!("state folder {}", volume.display());
    EngineError::fail(
        "PR0409",
        object,
        format!("it cannot be written: {e}; make room or name another with --state"),
    )
    .caused_by(e)
}
