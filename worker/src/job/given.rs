//! The log of a job in a cluster (rule 11). The controller names it by the job's uid; where it is not there yet, the spec says what
//! is to become of the logs of earlier jobs of this name, and what the new one begins with.

use penstock_checkpoint::fork::{self, Fork, ForkError};
use penstock_checkpoint::ids::{Epoch, LogId};
use penstock_checkpoint::log::{JobLog, LogError, Options};
use penstock_checkpoint::record::Created;
use penstock_checkpoint::removal;
use penstock_checkpoint::store::CheckpointStore;
use penstock_crds::job::{RestoreKind, StreamingJob};

use super::full_name;
use crate::coordinator::Adopts;
use crate::error::{EngineError, Result};
use crate::member::storage;

/// Where the job's log is, and where others of its namespace may be.
pub struct Place<'a> {
    pub job: &'a StreamingJob,
    pub id: LogId,
    /// The storage: everything of every job is below `<namespace>/<name>`.
    pub root: &'a CheckpointStore,
    /// `<job>/<logId>` of the savepoint that the spec names, as the controller found it.
    pub savepoint: Option<&'a str>,
}

/// What there is under the job's name.
pub enum Found {
    /// Its own log, whole.
    Own(JobLog),
    /// That of an earlier job, which it has adopted.
    Adopted(JobLog),
    /// Logs of earlier jobs; none of its own, or one that was begun and not finished.
    Others(Vec<JobLog>),
}

impl Place<'_> {
    fn store(&self) -> CheckpointStore {
        let (namespace, name) = full_name(self.job);
        self.root.below(&format!("{namespace}/{name}"))
    }

    /// Looks for the job's log.
    ///
    /// # Errors
    /// Of the storage.
    pub async fn find(&self) -> Result<Found> {
        let store = self.store();
        if let Some(log) = open(&store, self.id).await?
            && !fork::is_half(&log)
        {
            return Ok(Found::Own(log));
        }
        let me = self.id.to_string();
        let mut others = Vec::new();
        for id in store.logs().await.map_err(|e| storage(LogError::from(e)))? {
            let Some(log) = (match id == self.id {
                true => None,
                false => open(&store, id).await?,
            }) else {
                continue;
            };
            if log.fold().claim().and_then(|c| c.by.as_ref()) == Some(&me) {
                return Ok(Found::Adopted(log));
            }
            // One that is kept for its savepoints alone is nobody's history.
            if !removal::is_condemned(&log) {
                others.push(log);
            }
        }
        Ok(Found::Others(others))
    }

    /// The log whose state the job is about to go on with, if there is one and nothing of it is the job's yet: what a changed
    /// plan is judged against.
    ///
    /// # Errors
    /// As of `open`.
    pub async fn predecessor(&self) -> Result<Option<JobLog>> {
        match self.find().await? {
            Found::Own(log) | Found::Adopted(log) => Ok(Some(log)),
            Found::Others(others) => match self.wish(others)? {
                Begin::Fresh => Ok(None),
                Begin::Adopt(log, _) => Ok(Some(*log)),
                Begin::Fork { .. } => self.parent().await.map(Some),
            },
        }
    }

    /// The job's log, opened or begun, and whether it is an earlier job's.
    ///
    /// # Errors
    /// `PR0407` when there is a log of an earlier job and the spec does not say what is to become of it; `PR0411` when what it
    /// restores from is not there.
    pub async fn open(&self) -> Result<(JobLog, Option<Adopts>)> {
        let adopts = |back_to| Adopts {
            by: self.id.to_string(),
            back_to,
        };
        let others = match self.find().await? {
            Found::Own(log) => return Ok((log, None)),
            Found::Adopted(log) => return Ok((log, Some(adopts(None)))),
            Found::Others(others) => others,
        };
        let (namespace, name) = full_name(self.job);
        let (name, key_groups) = (format!("{namespace}/{name}"), key_groups(self.job));
        let own = self.store().below(&self.id.to_string());
        match self.wish(others)? {
            Begin::Adopt(log, back_to) => Ok((*log, Some(adopts(back_to)))),
            Begin::Fresh => {
                let created = Created {
                    name,
                    key_groups,
                    parent: None,
                };
                let log = JobLog::create(own, self.id, created, Options::default()).await;
                Ok((log.map_err(storage)?, None))
            }
            Begin::Fork { pin } => {
                let mut parent = self.parent().await?;
                let fork = Fork {
                    parent: &mut parent,
                    pin: &pin,
                    store: own,
                    log: self.id,
                    name,
                    key_groups,
                };
                let log = fork.begin(Options::default()).await.map_err(|e| match e {
                    ForkError::Log(e) => storage(e),
                    e => nothing(e.to_string()),
                })?;
                tracing::info!(savepoint = pin, "begun with a savepoint");
                Ok((log, None))
            }
        }
    }

    /// What the spec says of a job without a log.
    fn wish(&self, mut others: Vec<JobLog>) -> Result<Begin> {
        let spec = &self.job.spec;
        let restore = spec.restore_from.as_ref().and_then(|r| r.kind());
        if let Some(RestoreKind::Savepoint(pin)) = restore {
            let pin = pin.to_owned();
            return Ok(Begin::Fork { pin });
        }
        others.sort_by_key(|log| log.fold().created());
        match (others.pop(), restore) {
            (None, None) => Ok(Begin::Fresh),
            (Some(_), None) if spec.start_fresh => Ok(Begin::Fresh),
            (Some(newest), None) => {
                let text = format!(
                    "log {} of an earlier job of this name is in {}: restoreFrom {{latest: {{}}}} goes on with it, startFresh: true begins anew and leaves it",
                    newest.fold().log(),
                    self.store().prefix()
                );
                Err(EngineError::invalid("PR0407", "spec.startFresh", text))
            }
            (None, Some(_)) => Err(nothing(format!(
                "no log of an earlier job of this name is in {}",
                self.store().prefix()
            ))),
            (Some(newest), Some(RestoreKind::Epoch(number))) => {
                let back_to = Some(Epoch::new(number));
                Ok(Begin::Adopt(Box::new(newest), back_to))
            }
            (Some(newest), Some(RestoreKind::Latest | RestoreKind::Savepoint(_))) => {
                Ok(Begin::Adopt(Box::new(newest), None))
            }
        }
    }

    /// The log of the savepoint.
    async fn parent(&self) -> Result<JobLog> {
        let Some(at) = self.savepoint else {
            return Err(nothing("where the savepoint is was not said"));
        };
        let (namespace, _) = full_name(self.job);
        let (job, id) = at.split_once('/').unwrap_or((at, ""));
        let there = self.root.below(&format!("{namespace}/{job}"));
        let log = match id.parse() {
            Ok(id) => open(&there, id).await?,
            Err(_) => None,
        };
        log.ok_or_else(|| {
            nothing(format!(
                "log {id} of job {job}, which has the savepoint, is not in {}",
                there.prefix()
            ))
        })
    }
}

enum Begin {
    Fresh,
    Adopt(Box<JobLog>, Option<Epoch>),
    Fork { pin: String },
}

/// The job's number of key groups.
pub fn key_groups(job: &StreamingJob) -> u16 {
    u16::try_from(job.spec.key_groups).unwrap_or(u16::MAX)
}

async fn open(store: &CheckpointStore, id: LogId) -> Result<Option<JobLog>> {
    let log = JobLog::open(store.below(&id.to_string()), Options::default());
    log.await.map_err(storage)
}

fn nothing(text: impl Into<String>) -> EngineError {
    EngineError::invalid("PR0411", "spec.restoreFrom", text.into())
}
