//! A world: one job, its store, broker and input, and the processes that run it. Owns how a process is put together, from the
//! same parts as `penstock run`, and nothing of what befalls it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use penstock_checkpoint::Switches;
use penstock_checkpoint::gc::Retention;
use penstock_checkpoint::ids::{Entropy, LogId, MemberId, Micros, Nonce, SeededEntropy};
use penstock_checkpoint::log::{JobLog, Options};
use penstock_checkpoint::record::Created;
use penstock_checkpoint::store::{self, CheckpointStore, Faulty, Objects};
use penstock_crds::sink::Sink as SinkSpec;
use penstock_plan::graph::OutputMode;
use penstock_plan::source_plan::SinkPlan;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use super::broker::{Broker, Lapse};
use super::job::{GROUPS, Job};
use super::net::Board;
use super::sink::BrokerSink;
use super::store::Traced;
use super::trace::Trace;
use super::wire::{self, Wire};
use crate::clock::{Clock, Millis};
use crate::coordinator::progress::Progress;
use crate::coordinator::{Adopts, Asked, Outcome, Settings, Trigger};
use crate::error::{EngineError, Result};
use crate::job::assembly::{
    self, Assembly, Held, Nonces, Team, Works, assemble, state_fingerprint,
};
use crate::job::connectors::LogFacts;
use crate::job::connectors::{self, Connected};
use crate::job::generations::{cut_short, one_after_another};
use crate::job::slots::{GraphSlots, SlotThreads};
use crate::job::workers::{Ground, Post, Worker};
use crate::member::storage;
use crate::member::team::Line;
use crate::network::{Exchange, Peer};
use crate::planted::Bug;
use crate::process::simulated::Process;
use crate::sinks::SinkRef;
use crate::sinks::rows::{KeyKind, RowPlan, ValueFormat};
use crate::sources::memory::MemorySource;
use crate::state::simulated::MemoryVolume;
use crate::state::{Budget, Planted, StateOptions, StateWorker};

/// What is left out of the engine, or of what surrounds it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bugs {
    pub log: Switches,
    pub engine: Option<Bug>,
    pub state: Planted,
    pub broker: Option<Lapse>,
    /// No bug of the engine: somebody deletes the marker topic's records. It must ask a person then.
    pub markers_lost: bool,
}

/// When epochs end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Continuous,
    /// `availableNow`, again and again until no more rows come; then with `drain`.
    Available,
    /// `processingTime` until no more rows come; then as above.
    Periodic,
}

/// Virtual time: tokio's, from some day on.
#[derive(Debug, Clone, Copy)]
pub(super) struct VirtualClock(Instant);

impl VirtualClock {
    pub(super) fn now() -> Self {
        Self(Instant::now())
    }
}

const FIRST_DAY: i64 = 1_700_000_000_000;

impl Clock for VirtualClock {
    fn now(&self) -> Millis {
        Millis::new(FIRST_DAY + self.boot().as_millis() as i64)
    }

    fn boot(&self) -> Duration {
        self.0.elapsed()
    }
}

impl penstock_checkpoint::clock::Clock for VirtualClock {
    fn now(&self) -> Micros {
        Micros::new(FIRST_DAY * 1000 + self.boot().as_micros() as i64)
    }

    fn boottime(&self) -> Duration {
        self.boot()
    }
}

pub(super) struct World {
    pub job: Job,
    pub mode: Mode,
    pub slots: usize,
    /// A generation has one to so many, all in its process.
    pub most_members: usize,
    /// So many processes run the job together, each as a worker of its own; otherwise they are each other's rivals.
    pub workers: Option<u32>,
    pub board: Board,
    pub interval: Duration,
    pub bugs: Bugs,
    pub trace: Trace,
    pub objects: Arc<store::Memory>,
    /// Every pack that anybody ever wrote.
    pub archive: Arc<store::Memory>,
    pub closure_every: u64,
    pub base_epochs: u64,
    pub broker: Arc<Mutex<Broker>>,
    pub wire: Arc<Mutex<wire::Faults>>,
    pub source: MemorySource,
    pub log_id: LogId,
    pub clock: VirtualClock,
    /// No more rows will come.
    pub closed: Arc<Mutex<bool>>,
}

/// A process at work, or what became of it.
pub(super) struct Running {
    pub number: u64,
    /// It began when no more rows would come.
    pub drains: bool,
    pub process: Process,
    pub volume: MemoryVolume,
    pub store: Arc<Faulty>,
    pub stop: watch::Sender<bool>,
    pub ended: Arc<Mutex<Option<Result<Outcome>>>>,
}

impl World {
    /// The log's place, without a fault in the way.
    pub(super) fn store(&self) -> CheckpointStore {
        self.store_over(self.objects.clone())
    }

    /// Where every pack still is.
    pub(super) fn archive(&self) -> CheckpointStore {
        self.store_over(self.archive.clone())
    }

    fn store_over(&self, objects: Arc<dyn Objects>) -> CheckpointStore {
        CheckpointStore::new(objects, "sim").below(&self.log_id.to_string())
    }

    pub(super) fn log_options(&self, seed: u64) -> Options {
        Options {
            clock: Arc::new(self.clock),
            entropy: Box::new(SeededEntropy::new(seed)),
            switches: self.bugs.log,
            closure_every: self.closure_every,
        }
    }

    pub(super) async fn create_log(&self) {
        let created = Created {
            name: "default/sim".to_owned(),
            key_groups: GROUPS,
            parent: None,
        };
        let now = penstock_checkpoint::clock::Clock::now(&self.clock);
        self.objects.set_now(now);
        JobLog::create(self.store(), self.log_id, created, self.log_options(0))
            .await
            .expect("the store is well");
    }

    /// Starts a process on a volume that no other uses.
    pub(super) fn start(
        self: &Arc<Self>,
        number: u64,
        member: MemberId,
        seed: u64,
        volume: MemoryVolume,
        faults: store::Faults,
    ) -> Running {
        let process = Process::new(seed);
        let faulty = Arc::new(Faulty::new(self.objects.clone(), seed ^ 1, faults));
        let (stop, stopping) = watch::channel(false);
        let ended = Arc::new(Mutex::new(None));
        self.trace
            .note(number, "start", &format!("{:?}", volume.epochs()), "");
        let work = {
            let (world, volume, ended) = (self.clone(), volume.clone(), ended.clone());
            let objects = Traced {
                inner: faulty.clone(),
                archive: self.archive.clone(),
                objects: self.objects.clone(),
                clock: self.clock,
                trace: self.trace.clone(),
                process: number,
            };
            let store = self.store_over(Arc::new(objects));
            let post = self
                .workers
                .map(|all| self.board.join(member, all, &process));
            async move {
                let served = world
                    .clone()
                    .serve(number, seed, store, volume, stopping, post);
                let outcome = served.await;
                let said = match &outcome {
                    Ok(outcome) => format!("{outcome:?}"),
                    Err(e) => e.to_string(),
                };
                world.trace.note(number, "end", &said, "");
                *ended.lock() = Some(outcome);
            }
        };
        tokio::spawn(process.gate(work));
        Running {
            number,
            drains: *self.closed.lock(),
            process,
            volume,
            store: faulty,
            stop,
            ended,
        }
    }

    async fn serve(
        self: Arc<Self>,
        number: u64,
        seed: u64,
        store: CheckpointStore,
        volume: MemoryVolume,
        stop: watch::Receiver<bool>,
        post: Option<Post>,
    ) -> Result<Outcome> {
        let progress = Arc::new(Progress::default());
        let wire = Wire {
            broker: self.broker.clone(),
            faults: self.wire.clone(),
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed ^ 3))),
            trace: self.trace.clone(),
            process: number,
        };
        let drain = *self.closed.lock();
        let trigger = match self.mode {
            Mode::Continuous => Trigger::Continuous,
            Mode::Periodic if !drain => Trigger::ProcessingTime {
                interval: self.interval,
            },
            Mode::Periodic | Mode::Available => Trigger::AvailableNow { drain },
        };
        let machine = Arc::new(Machine {
            world: self,
            rng: Mutex::new(StdRng::seed_from_u64(seed ^ 2)),
            trigger,
            store,
            volume,
            wire,
            progress: progress.clone(),
            stop: stop.clone(),
        });
        let worker = post.map(|post| {
            let ground: Arc<dyn Ground> = machine.clone();
            Worker::new(post, ground, progress.clone(), stop.clone())
        });
        let ended = one_after_another(&stop, &progress, || async {
            match &worker {
                Some(worker) => worker.run().await,
                None => machine.generation().await,
            }
        });
        let ended = ended.await;
        let ended = ended.map(|ended| ended.unwrap_or_else(|| cut_short(&progress)));
        if let Some(worker) = &worker {
            worker.tell_end(&ended).await;
        }
        ended
    }

    fn sink(&self, spec: &SinkSpec, plan: Option<&SinkPlan>, wire: &Wire) -> SinkRef {
        let mode = plan.map_or(OutputMode::Append, |p| p.mode);
        let record_key = plan.and_then(|p| p.record_key.clone()).unwrap_or_default();
        let format = spec.format.as_ref().and_then(|f| f.kind());
        let key = if record_key.is_empty() {
            KeyKind::None
        } else {
            KeyKind::Columns(record_key.clone())
        };
        let of = self.job.spec.spec.sinks.iter();
        Arc::new(BrokerSink {
            rows: RowPlan {
                name: spec.name.clone(),
                format: format
                    .and_then(ValueFormat::from_spec)
                    .unwrap_or(ValueFormat::Json(Default::default())),
                key,
                changes: RowPlan::changes_of(mode, true),
                shard_by: record_key,
                key_groups: GROUPS,
                shards: spec.shards as u16,
                round_robin: None,
            },
            sink: of.take_while(|s| s.name != spec.name).count(),
            log_id: self.log_id.to_string(),
            wire: wire.clone(),
        })
    }
}

/// What a process has of its world.
struct Machine {
    world: Arc<World>,
    /// Draws the seed of each generation.
    rng: Mutex<StdRng>,
    trigger: Trigger,
    store: CheckpointStore,
    volume: MemoryVolume,
    wire: Wire,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
}

impl Machine {
    fn seed(&self) -> u64 {
        self.rng.lock().random()
    }

    async fn open(&self, seed: u64) -> Result<JobLog> {
        JobLog::open(self.store.clone(), self.world.log_options(seed))
            .await
            .map_err(storage)?
            .ok_or_else(|| EngineError::fail("PR0405", "log", "its folder holds no record"))
    }

    fn connect(&self) -> Result<Connected> {
        let world = &self.world;
        let Job { spec, plan } = &world.job;
        let mut connected = connectors::connect_by(
            spec,
            plan,
            |_, _| Ok(Arc::new(world.source.clone())),
            |spec, plan| Ok(world.sink(spec, plan, &self.wire)),
        )?;
        for source in &mut connected.infos {
            source.discover_every = world.interval * 2;
        }
        Ok(connected)
    }

    fn state(&self, number: usize, seed: u64) -> Result<StateWorker> {
        let mut lag = StdRng::seed_from_u64(seed ^ 4 ^ (number as u64) << 8);
        let options = StateOptions {
            dir: None,
            total_groups: GROUPS,
            log_id: self.world.log_id.to_string(),
            schema_fingerprint: state_fingerprint(&self.world.job.plan),
            nonce: seed ^ number as u64,
            budget: Budget::new(64 << 20),
            stateful: true,
            planted: self.world.bugs.state,
        };
        let lag = Box::new(move || lag.random_ratio(1, 3));
        StateWorker::simulated(options, self.volume.of(number), lag)
    }

    /// One generation with all its members in this process.
    async fn generation(&self) -> Result<Outcome> {
        let seed = self.seed();
        // As many as this generation has: what one had may be another's now.
        let members = StdRng::seed_from_u64(seed ^ 6).random_range(1..=self.world.most_members);
        let state = |number: usize| {
            let peer = Peer::here(MemberId::new(number as u32));
            Ok((peer, self.state(number, seed)?))
        };
        let states = (0..members).map(state).collect::<Result<Vec<_>>>()?;
        let log = self.open(seed).await?;
        let ended = self.assemble(log, seed, states, Team::Here(members), self.stop.clone());
        ended.await.map(|(outcome, _)| outcome)
    }

    async fn assemble(
        &self,
        log: JobLog,
        seed: u64,
        states: Vec<(Peer, StateWorker)>,
        team: Team,
        stop: watch::Receiver<bool>,
    ) -> Result<(Outcome, JobLog)> {
        let world = &self.world;
        let Job { spec, plan } = &world.job;
        let sinks = spec.spec.sinks.iter();
        let settings = Settings {
            job: "simulated".to_owned(),
            trigger: self.trigger,
            interval: world.interval,
            retention: Retention {
                epochs: 3,
                duration: Duration::from_secs(1),
            },
            plan_hash: plan.plan_hash.clone(),
            members: team.members(),
            goes_on: team.goes_on(),
            slots: world.slots,
            sinks: sinks.map(|s| (s.name.clone(), s.shards as u16)).collect(),
            key_groups: GROUPS,
            base_epochs: world.base_epochs,
            epoch_bytes: 1 << 20,
            accept_loss: Vec::new(),
            release: None,
            adopts: None,
            go_back: None,
            asked: Asked::nothing(),
        };
        let mut seeds = SeededEntropy::new(seed ^ 5);
        let mut connected = self.connect()?;
        let sources = std::mem::take(&mut connected.infos);
        let id = log.fold().log();
        let (exchange, lines, held) = team.ways();
        assemble(Assembly {
            settings,
            log,
            sources,
            works: self.works(id, connected, exchange, held),
            states,
            lines,
            nonces: Box::new(move || nonces(seeds.number())),
            stop,
            progress: self.progress.clone(),
        })
        .await
    }

    fn works(
        &self,
        log: LogId,
        connected: Connected,
        exchange: Arc<dyn Exchange>,
        held: Held,
    ) -> Works {
        let world = &self.world;
        Works {
            log,
            store: self.store.clone(),
            slots: world.slots,
            held,
            factory: Arc::new(GraphSlots {
                graph: Arc::new(world.job.plan.graph.clone()),
                key_groups: GROUPS,
                exchange,
                sources: connected.sources,
                sinks: connected.sinks,
                clock: Arc::new(world.clock),
                early_bytes: 16 << 20,
                at_once: true,
                threads: SlotThreads::Shared,
            }),
        }
    }
}

fn nonces(seed: u64) -> Nonces {
    let mut own = SeededEntropy::new(seed);
    Box::new(move || Nonce::from_bytes(own.bytes16()))
}

#[async_trait]
impl Ground for Machine {
    fn runs(&self) -> u64 {
        0
    }

    fn facts(&self, log: &JobLog) -> LogFacts {
        LogFacts::of(&self.world.job.spec, log.fold())
    }

    async fn log(&self) -> Result<(JobLog, Option<Adopts>)> {
        let seed = self.seed();
        Ok((self.open(seed).await?, None))
    }

    fn interval(&self) -> Duration {
        self.world.interval
    }

    fn slots(&self) -> usize {
        self.world.slots
    }

    fn volume_of(&self, _: MemberId, _: LogId) -> Result<StateWorker> {
        self.state(0, self.seed())
    }

    fn loads_from(&self, _: LogId) -> Result<CheckpointStore> {
        Ok(self.store.clone())
    }

    async fn lead(
        &self,
        log: JobLog,
        _: Option<Adopts>,
        team: Team,
        stop: watch::Receiver<bool>,
    ) -> Result<(Outcome, JobLog)> {
        let Team::Workers { me, .. } = &team else {
            unreachable!("workers are processes of their own")
        };
        let seed = self.seed();
        let state = assembly::state(team.held(), self.world.log_id, || self.state(0, seed))?;
        let states = vec![(*me, state)];
        self.assemble(log, seed, states, team, stop).await
    }

    fn member(
        &self,
        me: MemberId,
        log: LogFacts,
        exchange: Arc<dyn Exchange>,
        held: Held,
    ) -> Result<Line> {
        let seed = self.seed();
        let works = self.works(log.id, self.connect()?, exchange, held);
        let state = assembly::state(works.held.as_deref(), log.id, || self.state(0, seed))?;
        Ok(works.member(me, state, nonces(seed ^ 5)).0)
    }
}
