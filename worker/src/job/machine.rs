//! A worker on a machine: its manifest, its volume, its connectors, its sockets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use penstock_checkpoint::ids::{Entropy, LogId, MemberId, Nonce, SystemEntropy};
use penstock_checkpoint::log::JobLog;
use penstock_checkpoint::record::Created;
use penstock_checkpoint::store::CheckpointStore;
use penstock_crds::job::StreamingJob;
use penstock_plan::Plan;
use tokio::sync::watch;

use super::assembly::{self, Held, Setup, Team, Volume, Works, early_bytes, serve};
use super::connectors::{self, Connected, LogFacts};
use super::generations::Proven;
use super::slots::{GraphSlots, SlotThreads};
use super::workers::{Ground, Post};
use super::{
    RunOptions, full_name, given, identity, open_root, open_store, slots, trigger, write_plan,
};
use crate::clock::SystemClock;
use crate::coordinator::progress::Progress;
use crate::coordinator::{Adopts, Asked, Outcome, Trigger};
use crate::error::{EngineError, Result};
use crate::member::team::Line;
use crate::network::flight::{Directory, Flight, Manner};
use crate::network::{Exchange, Peer};
use crate::state::StateWorker;

/// Which worker this is, among which.
#[derive(Debug, Clone)]
pub struct Place {
    pub me: MemberId,
    /// As many as were there, or were asked for, when this one was started; others may come.
    pub workers: u32,
    pub directory: Directory,
    /// True while this worker coordinates.
    pub leads: Arc<watch::Sender<bool>>,
}

impl Place {
    /// Listens where the others look for this worker.
    ///
    /// # Errors
    /// `PR0320`, when the address cannot be bound.
    pub(super) async fn listen(self) -> Result<Post> {
        let me = Peer {
            id: self.me,
            process: SystemEntropy.number(),
        };
        // What goes to another machine is compressed.
        let compress = matches!(self.directory, Directory::Hosts { .. });
        let manner = Manner {
            compress,
            ..Manner::default()
        };
        let listening = Flight::listen(me, &self.directory, manner).await;
        let (flight, talks) = listening.map_err(|e| {
            EngineError::fail("PR0320", me.to_string(), format!("cannot listen: {e}"))
        })?;
        Ok(Post {
            known: (0..self.workers)
                .map(MemberId::new)
                .chain([self.me])
                .collect(),
            net: Arc::new(flight),
            talks,
            leads: self.leads,
        })
    }
}

/// What a worker's process was started with.
pub(super) struct Machine {
    pub job: StreamingJob,
    pub plan: Arc<Plan>,
    pub options: RunOptions,
    pub proven: Proven,
    pub progress: Arc<Progress>,
    pub stop: watch::Receiver<bool>,
}

impl Machine {
    /// A generation of a job that has no other worker.
    pub async fn alone(&self) -> Result<Outcome> {
        let (log, adopts) = self.log().await?;
        let led = self.lead(log, adopts, Team::Here(1), self.stop.clone());
        led.await.map(|(outcome, _)| outcome)
    }

    fn volume(&self) -> PathBuf {
        let (namespace, name) = full_name(&self.job);
        let standard = || {
            PathBuf::from(".penstock/volumes")
                .join(namespace)
                .join(name)
        };
        self.options.state.clone().unwrap_or_else(standard)
    }

    /// Folder of the state; `None`: in memory.
    fn state(&self) -> Option<PathBuf> {
        (!self.options.memory_state).then(|| self.volume().join("state"))
    }

    /// By the Secret as it is now.
    fn store(&self) -> Result<CheckpointStore> {
        open_store(&self.job, self.options.secrets.as_ref())
    }

    fn connect(&self, log: LogFacts) -> Result<Connected> {
        connectors::connect(&self.job, &self.plan, &self.options, log)
    }
}

#[async_trait]
impl Ground for Machine {
    fn runs(&self) -> u64 {
        let release = self.options.release.as_ref();
        let version = release.map_or("", |r| r.version.as_str());
        let text = format!("{} {version}", self.plan.plan_hash);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }

    fn facts(&self, log: &JobLog) -> LogFacts {
        LogFacts::of(&self.job, log.fold())
    }

    async fn log(&self) -> Result<(JobLog, Option<Adopts>)> {
        let store = self.store()?;
        self.proven.prove(&store).await?;
        let key_groups = given::key_groups(&self.job);
        let (log, adopts) = match self.options.log_id {
            Some(id) => {
                let place = given::Place {
                    job: &self.job,
                    id,
                    root: &open_root(&self.job, self.options.secrets.as_ref())?,
                    savepoint: self.options.savepoint.as_deref(),
                };
                place.open().await?
            }
            None => {
                let (namespace, name) = full_name(&self.job);
                let created = Created {
                    name: format!("{namespace}/{name}"),
                    key_groups,
                    parent: None,
                };
                let (volume, spec) = (self.volume(), &self.job.spec);
                (
                    identity::open_log(&store, &volume, created, spec).await?,
                    None,
                )
            }
        };
        let began = log.fold().key_groups();
        if began != key_groups {
            let text = format!(
                "keyGroups is {key_groups}, the job began with {began}: it is fixed for a job's life"
            );
            return Err(EngineError::fail("PR0410", "spec.keyGroups", text));
        }
        self.progress.log(log.fold().log().to_string());
        write_plan(&log, &self.plan).await?;
        Ok((log, adopts))
    }

    fn interval(&self) -> Duration {
        let interval = self.job.spec.checkpoint.interval.into();
        match trigger(&self.job) {
            Trigger::ProcessingTime { interval: every } => every.max(interval),
            Trigger::Continuous | Trigger::AvailableNow { .. } | Trigger::Once { .. } => interval,
        }
    }

    fn slots(&self) -> usize {
        slots(&self.job)
    }

    fn volume_of(&self, me: MemberId, log: LogId) -> Result<StateWorker> {
        let dir = self.state();
        let volume = Volume {
            id: me,
            dir: dir.as_deref(),
            key_groups: given::key_groups(&self.job),
            log,
            memory: self.options.memory,
        };
        volume.open(&self.plan)
    }

    fn loads_from(&self, log: LogId) -> Result<CheckpointStore> {
        Ok(self.store()?.below(&log.to_string()))
    }

    async fn lead(
        &self,
        log: JobLog,
        adopts: Option<Adopts>,
        team: Team,
        stop: watch::Receiver<bool>,
    ) -> Result<(Outcome, JobLog)> {
        let (job, options) = (&self.job, &self.options);
        let setup = Setup {
            connected: self.connect(self.facts(&log))?,
            log,
            clock: Arc::new(SystemClock),
            state: self.state(),
            memory: options.memory,
            slots: slots(job),
            threads: SlotThreads::Own,
            at_once: !trigger(job).planned(),
            trigger: trigger(job),
            accept_loss: options.accept_loss.clone(),
            release: options.release.clone(),
            adopts,
            go_back: options.go_back.clone(),
            asked: options.asked.clone().unwrap_or_else(Asked::nothing),
        };
        serve(job, &self.plan, setup, team, stop, self.progress.clone()).await
    }

    fn member(
        &self,
        me: MemberId,
        log: LogFacts,
        exchange: Arc<dyn Exchange>,
        held: Held,
    ) -> Result<Line> {
        let (key_groups, slots) = (given::key_groups(&self.job), slots(&self.job));
        let memory = self.options.memory;
        let connected = self.connect(log)?;
        let works = Works {
            log: log.id,
            store: self.loads_from(log.id)?,
            slots,
            held,
            factory: Arc::new(GraphSlots {
                graph: Arc::new(self.plan.graph.clone()),
                key_groups,
                exchange,
                sources: connected.sources,
                sinks: connected.sinks,
                clock: Arc::new(SystemClock),
                early_bytes: early_bytes(memory, slots),
                at_once: !trigger(&self.job).planned(),
                threads: SlotThreads::Own,
            }),
        };
        let open = || self.volume_of(me, log.id);
        let state = assembly::state(works.held.as_deref(), log.id, open)?;
        let nonces = Box::new(|| Nonce::from_bytes(SystemEntropy.bytes16()));
        Ok(works.member(me, state, nonces).0)
    }
}
