//! A worker on a machine: its manifest, its volume, its connectors, its sockets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use penstock_checkpoint::ids::{Entropy, MemberId, Nonce, SystemEntropy};
use penstock_checkpoint::log::JobLog;
use penstock_crds::job::StreamingJob;
use penstock_plan::Plan;
use tokio::sync::watch;

use super::connectors::{self, LogFacts};
use super::workers::{Ground, Post};
use super::{
    Held, Proven, RunOptions, SlotThreads, Team, Volume, Works, WorksParts, early_bytes, given,
    open_log, open_store, serve, setup, slots, trigger,
};
use crate::clock::SystemClock;
use crate::coordinator::progress::Progress;
use crate::coordinator::{Adopts, Outcome};
use crate::error::{EngineError, Result};
use crate::member::team::Line;
use crate::network::flight::{Address, Flight, Manner};
use crate::network::{Exchange, Peer};

/// Which worker this is, among which.
#[derive(Debug, Clone)]
pub struct Place {
    pub me: MemberId,
    pub all: BTreeMap<MemberId, Address>,
    /// True while this worker coordinates.
    pub leads: Arc<watch::Sender<bool>>,
}

impl Place {
    /// Listens where the others look for this worker.
    ///
    /// # Errors
    /// `PR0320`, when the address cannot be bound.
    pub(super) fn listen(self) -> Result<Post> {
        let Self { me, all, leads } = self;
        let cannot = |e: std::io::Error| {
            let object = format!("worker {me}");
            EngineError::fail("PR0320", object, format!("cannot listen: {e}"))
        };
        let process = u64::from_le_bytes(
            SystemEntropy.bytes16()[..8]
                .try_into()
                .expect("eight of sixteen bytes"),
        );
        let peer = Peer { id: me, process };
        let listening = Flight::listen(peer, &all[&me], Manner::default());
        let (flight, talks) = listening.map_err(cannot)?;
        let ids = all.keys().copied().collect();
        flight.know(all);
        Ok(Post {
            all: ids,
            net: Arc::new(flight),
            talks,
            leads,
        })
    }
}

/// What a worker's process was started with.
pub(super) struct Machine {
    pub job: StreamingJob,
    pub plan: Arc<Plan>,
    pub options: RunOptions,
    pub volume: PathBuf,
    pub proven: Arc<Proven>,
    pub progress: Arc<Progress>,
    pub stop: watch::Receiver<bool>,
}

#[async_trait]
impl Ground for Machine {
    fn plan_hash(&self) -> &str {
        &self.plan.plan_hash
    }

    fn facts(&self, log: &JobLog) -> LogFacts {
        LogFacts::of(&self.job, log.fold())
    }

    async fn log(&self) -> Result<(JobLog, Option<Adopts>)> {
        // By the Secret as it is now.
        let store = open_store(&self.job, self.options.secrets.as_ref())?;
        self.proven.prove(&store).await?;
        let (job, plan, progress) = (&self.job, &*self.plan, &*self.progress);
        open_log(job, plan, &self.options, progress, &store, &self.volume).await
    }

    async fn lead(&self, log: JobLog, adopts: Option<Adopts>, team: Team) -> Result<Outcome> {
        let setup = setup(
            &self.job,
            &self.plan,
            &self.options,
            log,
            adopts,
            &self.volume,
        )?;
        let (stop, progress) = (self.stop.clone(), self.progress.clone());
        serve(&self.job, &self.plan, setup, team, stop, progress).await
    }

    fn member(
        &self,
        me: MemberId,
        log: LogFacts,
        exchange: Arc<dyn Exchange>,
        held: Held,
    ) -> Result<Line> {
        let Self {
            job, plan, options, ..
        } = self;
        let store = open_store(job, options.secrets.as_ref())?.below(&log.id.to_string());
        let connected = connectors::connect(job, plan, options, log)?;
        let (key_groups, slots) = (given::key_groups(job), slots(job));
        let dir = self.volume.join("state");
        let volume = Volume {
            id: me,
            dir: (!options.memory_state).then_some(&*dir),
            key_groups,
            log: log.id,
            memory: options.memory,
        };
        let state = volume.open(plan)?;
        let works = Works::new(WorksParts {
            log: log.id,
            store,
            key_groups,
            graph: Arc::new(plan.graph.clone()),
            sources: connected.sources,
            sinks: connected.sinks,
            exchange,
            clock: Arc::new(SystemClock),
            slots,
            threads: SlotThreads::Own,
            at_once: !trigger(job).planned(),
            early_bytes: early_bytes(options.memory, slots),
            held,
        });
        let nonces = Box::new(|| Nonce::from_bytes(SystemEntropy.bytes16()));
        Ok(works.member(me, state, nonces).0)
    }
}
