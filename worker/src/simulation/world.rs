//! A world: one job, its store, broker and input, and the processes that run it. Owns how a process is put together, from the
//! same parts as `penstock run`, and nothing of what befalls it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
use super::sink::BrokerSink;
use super::store::Traced;
use super::trace::Trace;
use super::wire::{self, Wire};
use crate::clock::{Clock, Millis};
use crate::coordinator::progress::Progress;
use crate::coordinator::{Asked, Outcome, Settings, Trigger};
use crate::error::{EngineError, Result};
use crate::job::{
    Assembly, SlotThreads, assemble, connectors, cut_short, one_after_another, state_fingerprint,
};
use crate::member::storage;
use crate::network::hub::Hub;
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
            async move {
                let served = world.clone().serve(number, seed, store, volume, stopping);
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
    ) -> Result<Outcome> {
        let mut rng = StdRng::seed_from_u64(seed ^ 2);
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
        let clones = (store, volume, wire, progress.clone(), stop.clone());
        let ended = one_after_another(&stop, &progress, || {
            let (seed, world) = (rng.random::<u64>(), self.clone());
            let (store, volume, wire, progress, stop) = clones.clone();
            async move {
                world
                    .generation(seed, trigger, store, volume, wire, progress, stop)
                    .await
            }
        });
        Ok(ended.await?.unwrap_or_else(|| cut_short(&progress)))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "everything that a process has, and a generation is given"
    )]
    async fn generation(
        &self,
        seed: u64,
        trigger: Trigger,
        store: CheckpointStore,
        volume: MemoryVolume,
        wire: Wire,
        progress: Arc<Progress>,
        stop: watch::Receiver<bool>,
    ) -> Result<Outcome> {
        let log = JobLog::open(store, self.log_options(seed))
            .await
            .map_err(storage)?
            .ok_or_else(|| EngineError::fail("PR0405", "log", "its folder holds no record"))?;
        let Job { spec, plan } = &self.job;
        let sinks: Vec<(String, u16)> = spec
            .spec
            .sinks
            .iter()
            .map(|s| (s.name.clone(), s.shards as u16))
            .collect();
        let mut connected = connectors::connect_by(
            spec,
            plan,
            |_, _| Ok(Arc::new(self.source.clone())),
            |spec, plan| Ok(self.sink(spec, plan, &wire)),
        )?;
        for source in &mut connected.infos {
            source.discover_every = self.interval * 2;
        }
        // As many as this generation has: what one had may be another's now.
        let members = StdRng::seed_from_u64(seed ^ 6).random_range(1..=self.most_members);
        let state = |number: usize| {
            let mut lag = StdRng::seed_from_u64(seed ^ 4 ^ (number as u64) << 8);
            let options = StateOptions {
                dir: None,
                total_groups: GROUPS,
                log_id: self.log_id.to_string(),
                schema_fingerprint: state_fingerprint(plan),
                nonce: seed ^ number as u64,
                budget: Budget::new(64 << 20),
                stateful: true,
                planted: self.bugs.state,
            };
            let lag = Box::new(move || lag.random_ratio(1, 3));
            let state = StateWorker::simulated(options, volume.of(number), lag)?;
            Ok((MemberId::new(number as u32), state))
        };
        let states = (0..members).map(state).collect::<Result<Vec<_>>>()?;
        let mut nonces = SeededEntropy::new(seed ^ 5);
        let settings = Settings {
            job: "simulated".to_owned(),
            trigger,
            interval: self.interval,
            retention: Retention {
                epochs: 3,
                duration: Duration::from_secs(1),
            },
            plan_hash: plan.plan_hash.clone(),
            members: states.iter().map(|(id, _)| *id).collect(),
            slots: self.slots,
            sinks,
            key_groups: GROUPS,
            base_epochs: self.base_epochs,
            epoch_bytes: 1 << 20,
            accept_loss: Vec::new(),
            release: None,
            adopts: None,
            go_back: None,
            asked: Asked::nothing(),
        };
        assemble(Assembly {
            settings,
            log,
            graph: Arc::new(plan.graph.clone()),
            connected,
            states,
            lines: BTreeMap::new(),
            exchange: Arc::new(Hub::default()),
            clock: Arc::new(self.clock),
            threads: SlotThreads::Shared,
            at_once: true,
            early_bytes: 16 << 20,
            held: None,
            nonces: Box::new(move || {
                let mut own = SeededEntropy::new(u64::from_le_bytes(
                    nonces.bytes16()[..8].try_into().unwrap(),
                ));
                Box::new(move || Nonce::from_bytes(own.bytes16()))
            }),
            stop,
            progress,
        })
        .await
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
