//! What stands in the log: a record, its kinds, and its bytes (one line of JSON, one line with the checksum).
//! Owns the format and its versions. What a sequence of records means is `fold`'s.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::envelope::{self, DecodeError};
use crate::ids::{
    Epoch, Generation, KeyGroup, LogId, MemberId, Micros, Nonce, OperatorUid, Seq, ShardId,
    SinkName, SourceName, SplitId,
};

/// The format that this crate writes.
pub const FORMAT: u16 = 1;
/// The newest reader this crate is: a record that asks for a higher one is refused.
pub const READER: u16 = 1;
/// A record above this many bytes is not written, and not read.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// One entry of the job log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub format: u16,
    pub min_reader: u16,
    /// The log it belongs to: a record copied from another job's folder is refused.
    pub log: LogId,
    pub seq: Seq,
    /// The generation that wrote it; a Claim carries the generation it begins.
    pub generation: Generation,
    pub nonce: Nonce,
    /// When it was written, by the writer's clock; never before the record ahead of it.
    pub time: Micros,
    /// Seq of the newest `Closure` record before this one, 0 when there is none.
    pub closure_seq: Seq,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    Created(Created),
    Claim(Claim),
    Epoch(EpochRecord),
    Closure(ClosureRecord),
    Accepted(Accepted),
    SinkBorn(SinkBorn),
    Pin(Pin),
    Unpin(Unpin),
    Stopped(Stopped),
    LossAccepted(LossAccepted),
    Drop(Drop),
}

/// The first record of every log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// `<namespace>/<name>` of the job.
    pub name: String,
    pub key_groups: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// Where a log begins that does not begin empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parent {
    /// Location of the parent's prefix, as `store::open` takes it.
    pub location: String,
    pub log: LogId,
    pub epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimKind {
    /// Restores the newest commit after the last Claim, else that Claim's `restore_epoch`. Goes on with a trial.
    Recovery,
    /// As Recovery, by the same coordinator, after Done(restore_epoch). Goes on with a trial.
    Handover,
    /// Begins a trial at the head, or at the base of the trial that it replaces.
    Upgrade,
    /// Ends a trial at its base and drops its epochs.
    Rollback,
    /// A person goes back to an epoch of `pub`; ends and drops a trial.
    GoBack,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub kind: ClaimKind,
    pub restore_epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover_from: Option<Generation>,
    pub plan_hash: String,
    pub members: Vec<MemberId>,
    pub assignment: Assignment,
    /// Who asked (GoBack), or the uid of the job that adopts this log (rule 11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The version of the job that runs, in a cluster: another one is another version, whatever its plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The name of the request that this claim fulfils (GoBack): it is fulfilled once, however often it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// What belongs to whom in a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Owner by key group: index is the key group.
    pub key_groups: Vec<MemberId>,
    pub splits: BTreeMap<SourceName, BTreeMap<SplitId, MemberId>>,
    /// Owner by shard: index is the shard.
    pub shards: BTreeMap<SinkName, Vec<MemberId>>,
}

/// One append commits an epoch, plans the next and says how far the sinks are done; each part may be absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Every epoch of `pub` up to this one is published.
    pub done_through: Epoch,
}

/// How far a split has been read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Position {
    /// The next offset, row or byte to read.
    Offset(i64),
    /// A position in the source's own words.
    Token(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitState {
    pub position: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_event_time: Option<Micros>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idle: bool,
    /// The split has ended and will bring nothing more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
}

pub type Offsets = BTreeMap<SourceName, BTreeMap<SplitId, SplitState>>;

/// An epoch's whole: what it read, what it changed, what it is to publish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    pub epoch: Epoch,
    /// The epoch it goes on from: not epoch - 1 after going back.
    pub parent: Epoch,
    /// The epoch's clock: `now()` and TTL.
    pub now: Micros,
    /// Operators begin empty in this epoch: what they held up to its parent is left behind. Positions and watermarks go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgets_state: bool,
    /// Splits whose state changed (all of them is as good): laid over the parent's.
    #[serde(default)]
    pub offsets: Offsets,
    /// Splits that need no state any more: taken out of the parent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forgotten: BTreeMap<SourceName, BTreeSet<SplitId>>,
    /// Files finished in this epoch: added to the parent's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen_files: BTreeMap<SourceName, BTreeSet<String>>,
    /// Watermark by operator: laid over the parent's.
    #[serde(default)]
    pub watermarks: BTreeMap<OperatorUid, Micros>,
    #[serde(default)]
    pub packs: Vec<PackRef>,
    /// Bases finished since the last commit. Each is a snapshot at an epoch that is `parent` or an ancestor of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<BaseRef>,
    /// Figures for people (rows in, rows out, duration…), never read back by a decision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
}

/// A pack, as a commit names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackRef {
    /// Below the log's prefix.
    pub path: String,
    pub length: u64,
    /// Bytes of the index and trailer at the pack's end: one range read gets them.
    pub index_length: u32,
    /// Checksum of the index, which holds the checksum of every section: so of the whole.
    pub crc: u32,
    pub key_groups: Vec<KeyGroup>,
    /// Number of chunks per sink and shard, so that nobody opens a pack for a shard that is not in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<SinkName, BTreeMap<ShardId, u32>>,
    /// Sizes of the objects `<path>-out-<n>` beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outs: Vec<u64>,
    /// The log whose worker wrote it, where that is another one: it was copied from there, and says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<LogId>,
}

impl PackRef {
    /// Path of the n-th object of outputs.
    pub fn out_path(&self, n: usize) -> String {
        format!("{}-out-{n}", self.path)
    }
}

/// A snapshot of one key group at a committed epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseRef {
    pub key_group: KeyGroup,
    pub epoch: Epoch,
    /// Path of the base's manifest, below the log's prefix.
    pub path: String,
    pub length: u64,
    pub crc: u32,
    pub files: Vec<BaseFile>,
    /// As of a pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<LogId>,
}

/// A file of a base. Several bases may name the same one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseFile {
    /// The name that the state store gives it (`000012.sst`, `MANIFEST-…`).
    pub name: String,
    /// What makes it the same file in another base.
    pub id: String,
    /// Below the log's prefix.
    pub path: String,
    pub length: u64,
    pub crc: u32,
}

/// The input of an epoch, fixed before it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub epoch: Epoch,
    pub ranges: Ranges,
    /// Where the run ends, fixed in its first plan (`availableNow`, `once`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<BTreeMap<SourceName, BTreeMap<SplitId, Position>>>,
    /// The watermark in force while the epoch runs, by source.
    #[serde(default)]
    pub watermark: BTreeMap<SourceName, Micros>,
    pub now: Micros,
}

pub type Ranges = BTreeMap<SourceName, BTreeMap<SplitId, Range>>;

/// Half open: `from` is read, `to` is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub from: Position,
    pub to: Position,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosureRecord {
    pub epoch: Epoch,
    pub path: String,
    pub length: u64,
    pub crc: u32,
    /// Seq of the last record that the closure has taken in.
    pub through: Seq,
}

/// Ends a trial: its epochs may be published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    pub generation: Generation,
    pub epoch: Epoch,
}

/// A shard's initial marker is written: from now on a missing one is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkBorn {
    pub sink: SinkName,
    pub shard: ShardId,
    /// Partition of the marker topic, allotted here, never reused.
    pub partition: i32,
    pub epoch: Epoch,
    /// The nonce that the initial marker carries.
    pub nonce: Nonce,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    pub epoch: Epoch,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unpin {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopped {
    pub epoch: Epoch,
    pub why: StopReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    Suspended,
    Completed,
    /// The input counts as ended; no Claim follows.
    Drained,
    Failed {
        code: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossAccepted {
    pub source: SourceName,
    pub split: SplitId,
    pub from: Position,
    pub to: Position,
    pub by: String,
}

/// Said before anything is deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// Operators whose state is given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<OperatorUid>,
    /// Objects below the log's prefix that may be gone from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
}

impl Record {
    /// The bytes of the record: a line of JSON and a line with its checksum.
    ///
    /// # Errors
    /// `TooLarge` above `MAX_RECORD_BYTES`.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let bytes = envelope::seal(self)?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(DecodeError::TooLarge {
                bytes: bytes.len() as u64,
                limit: MAX_RECORD_BYTES as u64,
            });
        }
        Ok(bytes)
    }

    /// Reads what `encode` wrote. Refuses a damaged record, and one that asks for a newer reader before looking further.
    pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(DecodeError::TooLarge {
                bytes: bytes.len() as u64,
                limit: MAX_RECORD_BYTES as u64,
            });
        }
        envelope::open(bytes, READER)
    }
}

impl Kind {
    /// The kind's name, for people and for labels.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Created(_) => "Created",
            Kind::Claim(_) => "Claim",
            Kind::Epoch(_) => "Epoch",
            Kind::Closure(_) => "Closure",
            Kind::Accepted(_) => "Accepted",
            Kind::SinkBorn(_) => "SinkBorn",
            Kind::Pin(_) => "Pin",
            Kind::Unpin(_) => "Unpin",
            Kind::Stopped(_) => "Stopped",
            Kind::LossAccepted(_) => "LossAccepted",
            Kind::Drop(_) => "Drop",
        }
    }
}
