//! From the graph to running slots: one task per node and slot, channels along the edges. Owns the wiring; what a node does
//! is the operators', what a connector does is behind its trait.

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_checkpoint::ids::OperatorUid;
use penstock_plan::emission;
use penstock_plan::graph::{Distribution, Edge, Node, NodeId, Op, Phase, StreamGraph};
use tokio::sync::{Notify, mpsc};

use crate::clock::Clock;
use crate::error::{EngineError, Result};
use crate::member::protocol::Start;
use crate::member::{Readers, SlotFactory, SlotHandle};
use crate::message::EventTime;
use crate::network::{self, Channel, Exchange, Inlet, Outlet};
use crate::operators;
use crate::process;
use crate::sinks::{Guarantee, SinkRef};
use crate::sources::Source;
use crate::state::{SlotState, StateWorker};
use crate::task::{
    HashBy, Inputs, KeySampler, OperatorTask, Route, Scan, ScanColumns, SinkStage, SinkTask, Slot,
    SlotEvent, SourceRules, SourceTask, SplitNames,
};

/// Where slots run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotThreads {
    /// A thread each.
    Own,
    /// Tasks of the caller's runtime: a simulation.
    Shared,
}

/// A source, ready to make readers.
#[derive(Clone)]
pub struct SourceParts {
    pub rules: Arc<SourceRules>,
    pub source: Arc<dyn Source>,
    /// Makes the columns of the scan from what the reader decodes.
    pub columns: ScanColumns,
}

/// Everything a generation's slots are made of.
pub struct GraphSlots {
    pub graph: Arc<StreamGraph>,
    pub key_groups: u16,
    /// Channels to other members.
    pub exchange: Arc<dyn Exchange>,
    /// By index; the rules' index is the same.
    pub sources: Vec<SourceParts>,
    /// By index: name, sink, the guarantee that the job asks for.
    pub sinks: Vec<(String, SinkRef, Guarantee)>,
    pub clock: Arc<dyn Clock>,
    pub early_bytes: usize,
    /// Changes of sinks that publish at once leave within an epoch.
    pub at_once: bool,
    pub threads: SlotThreads,
}

/// Channels of one slot, by node.
#[derive(Default)]
struct Wires {
    inlets: BTreeMap<NodeId, (Vec<Box<dyn Inlet>>, Vec<usize>)>,
    routes: BTreeMap<NodeId, Vec<Route>>,
}

impl SlotFactory for GraphSlots {
    fn readers(&self, slots: usize) -> Result<Vec<Readers>> {
        let reader = |s: &SourceParts| Ok((s.rules.name.clone(), s.source.reader()?));
        let of_slot = |_| self.sources.iter().map(reader).collect();
        (0..slots).map(of_slot).collect()
    }

    fn start(
        &self,
        start: &Start,
        readers: Vec<Readers>,
        state: &mut StateWorker,
        events: mpsc::UnboundedSender<SlotEvent>,
        names: &SplitNames,
    ) -> Result<Vec<SlotHandle>> {
        let seat = start.seat;
        let failed = events.clone();
        let slot = seat.slot(0);
        self.exchange.begin(
            start.generation.get(),
            Box::new(move |error| {
                // Nobody listens when the generation is over already.
                let _ = failed.send(SlotEvent::Failed { slot, error });
            }),
        );
        let notifies: Vec<Arc<Notify>> = (0..seat.slots).map(|_| Arc::new(Notify::new())).collect();
        let mut wires = self.wire(start, &notifies)?;
        let mut handles = Vec::new();
        for (own, readers) in readers.into_iter().enumerate() {
            let index = seat.slot(own);
            let mut state = state.slot(seat.groups(index, self.key_groups))?;
            let stateful = self.graph.nodes.iter().filter(|n| n.fingerprint.is_some());
            state.keep_only(stateful.map(|n| n.uid.0.as_str()));
            let (commands, inbox) = mpsc::unbounded_channel();
            let wires = std::mem::take(&mut wires[own]);
            let mut slot = self.slot(index, start, readers, state, wires, names)?;
            slot.notify = notifies[own].clone();
            slot.commands = inbox;
            slot.events = events.clone();
            handles.push(self.spawn(slot, commands)?);
        }
        Ok(handles)
    }
}

impl GraphSlots {
    fn spawn(
        &self,
        slot: Slot,
        commands: mpsc::UnboundedSender<crate::task::SlotCommand>,
    ) -> Result<SlotHandle> {
        match self.threads {
            SlotThreads::Shared => {
                process::spawn(slot.run());
                Ok(SlotHandle {
                    commands,
                    ended: Box::new(|| {}),
                })
            }
            SlotThreads::Own => {
                let failed = |e: std::io::Error| {
                    EngineError::fail("PR0304", "slot", "no thread could be started").caused_by(e)
                };
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .map_err(failed)?;
                let thread = std::thread::Builder::new()
                    .name(format!("slot-{}", slot.index))
                    .spawn(move || runtime.block_on(slot.run()))
                    .map_err(failed)?;
                let ended = Box::new(move || {
                    // A slot that panicked has nothing left to hand over.
                    let _ = thread.join();
                });
                Ok(SlotHandle { commands, ended })
            }
        }
    }

    fn wire(&self, start: &Start, notifies: &[Arc<Notify>]) -> Result<Vec<Wires>> {
        let seat = start.seat;
        let mut wires: Vec<Wires> = notifies.iter().map(|_| Wires::default()).collect();
        for (number, edge) in self.graph.edges.iter().enumerate() {
            match &edge.distribution {
                Distribution::Forward => {
                    for (s, w) in wires.iter_mut().enumerate() {
                        let (outlet, inlet) =
                            network::local(notifies[s].clone(), notifies[s].clone());
                        w.listen(edge, Box::new(inlet));
                        w.routes
                            .entry(edge.from)
                            .or_default()
                            .push(Route::forward(Box::new(outlet)));
                    }
                }
                Distribution::Hash(columns) => {
                    let by = HashBy {
                        main: columns.clone(),
                        late: self
                            .late_columns(edge.from)
                            .unwrap_or_else(|| columns.clone()),
                        key_groups: self.key_groups,
                    };
                    let mut outlets: Vec<Vec<Box<dyn Outlet>>> =
                        notifies.iter().map(|_| Vec::new()).collect();
                    for from in 0..seat.all_slots() {
                        for to in 0..seat.all_slots() {
                            let channel = Channel {
                                generation: start.generation.get(),
                                edge: number,
                                from,
                                to,
                            };
                            let (sender, receiver) = (seat.of_slot(from), seat.of_slot(to));
                            let own = |(member, own)| (member == seat.member).then_some(own);
                            let id = |(member, _): (usize, usize)| start.members[member];
                            match (own(sender), own(receiver)) {
                                (Some(from), Some(to)) => {
                                    let (outlet, inlet) = network::local(
                                        notifies[from].clone(),
                                        notifies[to].clone(),
                                    );
                                    outlets[from].push(Box::new(outlet));
                                    wires[to].listen(edge, Box::new(inlet));
                                }
                                (Some(from), None) => {
                                    let slot = notifies[from].clone();
                                    let outlet =
                                        self.exchange.outlet(channel, id(receiver), slot)?;
                                    outlets[from].push(outlet);
                                }
                                (None, Some(to)) => {
                                    let slot = notifies[to].clone();
                                    let inlet = self.exchange.inlet(channel, id(sender), slot)?;
                                    wires[to].listen(edge, inlet);
                                }
                                (None, None) => {}
                            }
                        }
                    }
                    for (wires, outlets) in wires.iter_mut().zip(outlets) {
                        let routes = wires.routes.entry(edge.from).or_default();
                        routes.push(Route::hash(by.clone(), outlets));
                    }
                }
            }
        }
        Ok(wires)
    }

    /// Key columns of a partial operator's input, and so of the rows that it passes whole.
    fn late_columns(&self, node: NodeId) -> Option<Vec<usize>> {
        match &self.graph.nodes[node.0].op {
            Op::WindowAggregate {
                phase: Phase::Partial,
                keys,
                ..
            }
            | Op::Deduplicate {
                phase: Phase::Partial,
                keys,
                ..
            } => Some(keys.clone()),
            _ => None,
        }
    }

    fn slot(
        &self,
        index: usize,
        start: &Start,
        mut readers: Readers,
        state: SlotState,
        mut wires: Wires,
        names: &SplitNames,
    ) -> Result<Slot> {
        let restored = |uid: &str| {
            let at = start.restore.state.watermarks.get(&OperatorUid::new(uid));
            at.map_or(EventTime::MIN, |t| EventTime::from_micros(t.get()))
        };
        let at_once = emission::at_once(&self.graph, |sink| {
            let found = self.sinks.iter().find(|(name, _, _)| name == sink);
            self.at_once && found.is_some_and(|(_, _, g)| *g == Guarantee::AtLeastOnce)
        });
        let mut sources = Vec::new();
        let mut operators = Vec::new();
        let mut sinks = Vec::new();
        for (node, at_once) in self.graph.nodes.iter().zip(at_once) {
            let uid = node.uid.0.clone();
            let routes = wires.routes.remove(&node.id).unwrap_or_default();
            let (inlets, ports) = wires.inlets.remove(&node.id).unwrap_or_default();
            let inputs = Inputs::new(inlets, &ports, restored(&uid));
            match &node.op {
                Op::Source { name, .. } => {
                    let parts = self.source(name)?;
                    let missing = || {
                        EngineError::fail(
                            "PR0304",
                            format!("source {name}"),
                            "the plan reads it twice",
                        )
                    };
                    let reader = readers.remove(name).ok_or_else(missing)?;
                    sources.push(SourceTask::new(
                        uid.clone(),
                        parts.rules.clone(),
                        reader,
                        Scan::new(&parts.columns)?,
                        routes,
                        restored(&uid),
                        names.clone(),
                        start.planned_mode,
                    ));
                }
                Op::Sink { name, mode, key } => {
                    let stage = self.sink(name)?;
                    sinks.push(SinkTask::new(
                        uid,
                        stage,
                        inputs,
                        *mode,
                        key.clone(),
                        at_once,
                    ));
                }
                _ => {
                    let operator = self.operator(node, at_once)?;
                    let sampler = self.sampler(node, index);
                    operators.push(OperatorTask::new(
                        uid, operator, inputs, routes, at_once, sampler,
                    ));
                }
            }
        }
        sources.sort_by_key(|s| s.rules().index);
        // Placeholders that `start` replaces: a slot is never without its ends.
        let (_, commands) = mpsc::unbounded_channel();
        let (events, _) = mpsc::unbounded_channel();
        Ok(Slot {
            index,
            sources,
            operators,
            sinks,
            stages: self.stages(index)?,
            state,
            rules: self.sources.iter().map(|s| s.rules.clone()).collect(),
            names: names.clone(),
            clock: self.clock.clone(),
            notify: Arc::new(Notify::new()),
            commands,
            events,
            early_bytes: self.early_bytes,
            kept_bytes: 0,
            now_ms: start.now_ms,
            epoch: start.first_epoch.get(),
            late_counts: vec![0; self.sources.len().max(1)],
            late_letters: Vec::new(),
            owed: None,
            asked: false,
            assigned: 0,
            said_done: false,
            said_failing: false,
            looked: None,
            skew_age: None,
        })
    }

    /// Of an operator whose rows come by key, or that aggregates by key before they do.
    fn sampler(&self, node: &Node, slot: usize) -> Option<KeySampler> {
        let mut columns = Vec::new();
        let mut exchanged = false;
        let mut edges: Vec<&Edge> = self
            .graph
            .edges
            .iter()
            .filter(|e| e.to == node.id)
            .collect();
        edges.sort_by_key(|e| e.port);
        for edge in edges {
            columns.push(match &edge.distribution {
                Distribution::Hash(by) => {
                    exchanged |= !by.is_empty();
                    by.clone()
                }
                Distribution::Forward => self.late_columns(node.id).unwrap_or_default(),
            });
        }
        let seed = (slot as u64) << 32 | node.id.0 as u64;
        let some = columns.iter().any(|by| !by.is_empty());
        some.then(|| KeySampler::new(columns, exchanged.then_some(self.key_groups), seed))
    }

    fn stages(&self, slot: usize) -> Result<Vec<SinkStage>> {
        let written = |name: &str| {
            self.graph
                .nodes
                .iter()
                .any(|n| matches!(&n.op, Op::Sink { name: s, .. } if s == name))
        };
        self.sinks
            .iter()
            .map(|(name, sink, guarantee)| {
                let encoder = if written(name) {
                    Some(sink.encoder()?)
                } else {
                    None
                };
                let direct = match guarantee {
                    Guarantee::ExactlyOnce => None,
                    Guarantee::AtLeastOnce => Some(sink.direct()?),
                };
                Ok(SinkStage::new(
                    name.clone(),
                    sink.clone(),
                    encoder,
                    direct,
                    slot as u64,
                ))
            })
            .collect()
    }

    fn operator(&self, node: &Node, at_once: bool) -> Result<Box<dyn operators::Operator>> {
        let inputs: Vec<&Edge> = {
            let mut inputs: Vec<&Edge> = self
                .graph
                .edges
                .iter()
                .filter(|e| e.to == node.id)
                .collect();
            inputs.sort_by_key(|e| e.port);
            inputs
        };
        let schemas: Vec<_> = inputs
            .iter()
            .map(|e| self.graph.nodes[e.from.0].schema.clone())
            .collect();
        let kinds: Vec<_> = inputs.iter().map(|e| e.kind.clone()).collect();
        let late = inputs.first().and_then(|e| {
            let partial = matches!(
                self.graph.nodes[e.from.0].op,
                Op::WindowAggregate {
                    phase: Phase::Partial,
                    ..
                } | Op::Deduplicate {
                    phase: Phase::Partial,
                    ..
                }
            );
            let before = self
                .graph
                .edges
                .iter()
                .find(|b| partial && b.to == e.from)?;
            Some(self.graph.nodes[before.from.0].schema.clone())
        });
        let stateful = self.graph.nodes.iter().filter(|n| n.fingerprint.is_some());
        let switches = operators::Switches {
            at_once,
            hot_bytes: self.early_bytes / 2 / stateful.count().max(1),
            ..operators::Switches::default()
        };
        operators::build(node, &schemas, late, &kinds, switches)
    }

    fn source(&self, name: &str) -> Result<&SourceParts> {
        self.sources
            .iter()
            .find(|s| s.rules.name == name)
            .ok_or_else(|| {
                EngineError::fail(
                    "PR0304",
                    format!("source {name}"),
                    "the plan names a source that the job has not",
                )
            })
    }

    fn sink(&self, name: &str) -> Result<usize> {
        self.sinks.iter().position(|s| s.0 == name).ok_or_else(|| {
            EngineError::fail(
                "PR0304",
                format!("sink {name}"),
                "the plan names a sink that the job has not",
            )
        })
    }
}

impl Wires {
    fn listen(&mut self, edge: &Edge, inlet: Box<dyn Inlet>) {
        let (inlets, ports) = self.inlets.entry(edge.to).or_default();
        inlets.push(inlet);
        ports.push(edge.port);
    }
}
