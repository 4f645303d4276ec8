//! What coordinator and members say to each other: within a process through channels, between processes as CBOR (`remote`).

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_checkpoint::ids::{Epoch, Generation, KeyGroup, Nonce};
use penstock_checkpoint::record::{BaseFile, BaseRef, PackRef};
use penstock_checkpoint::recovery::RestorePlan;

use super::seat::Seat;
use crate::error::EngineError;
use crate::message::{Barrier, EventTime, Progressed};
use crate::network::Peer;
use crate::sinks::Turn;
use crate::sources::SplitId;
use crate::task::{Assignment, DeadLetter, PlannedEpoch, SlotCounts, SplitProgress};

/// A shard of a sink: index of the sink, number of the shard.
pub type Shard = (usize, u16);

/// The coordinator's span of an epoch, as a W3C traceparent: what members do for it is a part of it. `None` where no spans are sent.
pub type Trace = Option<String>;

/// What the log knows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BornMarker {
    pub partition: i32,
    pub nonce: Nonce,
}

/// From the coordinator.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub enum ToMember {
    /// Begins a generation: restore, then run.
    Start(Box<Start>),
    Assign {
        source: usize,
        splits: Vec<Assignment>,
    },
    Inject(Barrier, Trace),
    Plan(
        BTreeMap<usize, Vec<Assignment>>,
        BTreeMap<usize, EventTime>,
        Barrier,
        Trace,
    ),
    Drain,
    /// A shard's first rows: open it and write its initial marker.
    Bear {
        shard: Shard,
        partition: i32,
        epoch: Epoch,
        nonce: Nonce,
    },
    /// The epoch is committed: apply its state; publish it unless it is staged.
    Committed {
        epoch: Epoch,
        publish: bool,
        now_ms: i64,
        /// Of all members: a shard's rows may lie in another one's.
        packs: Arc<Vec<PackRef>>,
    },
    /// What was staged may be published, in this order, before anything that is committed from now on.
    Publish(Vec<(Turn, Vec<PackRef>)>),
    /// Late rows of the splits that this member reads, whoever judged them: the answer to `FromMember::Late`.
    Late {
        epoch: u64,
        letters: Vec<DeadLetter>,
    },
    /// Make a base of a key group, in the background; these files of an older one may be named again.
    MakeBase {
        group: KeyGroup,
        reuse: Vec<BaseFile>,
    },
    /// The log says that the job has stopped: sinks that hold rows back let them go. Also without a `Start`.
    Close {
        born: BTreeMap<Shard, BornMarker>,
        newest: Epoch,
    },
    Halt,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Start {
    /// Whom it is said to.
    pub seat: Seat,
    /// Who sits where.
    pub members: Vec<Peer>,
    pub generation: Generation,
    pub restore: Arc<RestorePlan>,
    /// Epochs that the restored one stands on, itself included, as ranges: a volume at one of them may be used.
    pub ancestors: Arc<Vec<(u64, u64)>>,
    pub planned_mode: bool,
    /// Epochs to publish again, with their packs in the order of the commit.
    pub backlog: Vec<(Turn, Vec<PackRef>)>,
    pub born: BTreeMap<Shard, BornMarker>,
    /// H of rule 10: a marker ahead of it says that this process is a zombie.
    pub newest: Epoch,
    /// Number of the first epoch of this generation.
    pub first_epoch: Epoch,
    pub now_ms: i64,
}

/// From a member.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum FromMember {
    Started,
    /// Late rows that operators of this member judged, in jobs where several operators do: their part of the epoch waits until all
    /// members have said so. The coordinator does not hear of it.
    Late {
        epoch: u64,
        letters: Vec<DeadLetter>,
    },
    /// The member's part of an epoch is durable.
    Snapshot(Box<Snapshot>),
    /// The shard's marker stands, with this nonce.
    Born {
        shard: Shard,
        nonce: Nonce,
    },
    /// Every epoch up to this one that was given for publication is out, on the shards of this member.
    Done {
        through: Epoch,
    },
    /// No shard holds rows back any more: the answer to `Close`.
    Closed,
    /// A shard cannot publish for now; for status.
    Held {
        sink: usize,
        text: String,
    },
    /// A base is uploaded, and waits for a commit to name it; `None`: it failed, and the log says why.
    Base {
        group: KeyGroup,
        base: Option<Box<BaseRef>>,
    },
    WantsBarrier,
    /// Every source is read to its end, of so many assignments.
    SourcesDone {
        assigned: u64,
    },
    Failing {
        source: String,
        text: String,
    },
    Failed(#[serde(with = "super::remote::error")] EngineError),
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    pub barrier: Barrier,
    /// In the order in which their rows go out.
    pub packs: Vec<PackRef>,
    pub bytes: u64,
    pub splits: BTreeMap<usize, BTreeMap<SplitId, SplitProgress>>,
    pub watermarks: BTreeMap<String, Progressed>,
    pub counts: Vec<SlotCounts>,
    /// Rows staged for sinks in this epoch.
    pub rows_out: u64,
}

/// One slot's share of a planned epoch.
pub fn planned(
    ranges: Vec<Assignment>,
    watermark: Option<EventTime>,
    barrier: Barrier,
) -> PlannedEpoch {
    PlannedEpoch {
        ranges,
        watermark,
        barrier,
    }
}
