//! A closure: everything that restoring one committed epoch needs, and the state of the log beside it, in one checksummed
//! object. Owns its shape, and how a commit carries the state of an epoch forward.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::envelope::{self, DecodeError};
use crate::fold::Fold;
use crate::ids::{Epoch, KeyGroup, LogId, Micros, Nonce, OperatorUid, Seq, SourceName};
use crate::record::{BaseRef, ClosureRecord, Commit, FORMAT, Offsets, PackRef, READER};

/// A closure above this many bytes is refused.
pub const MAX_CLOSURE_BYTES: u64 = 1 << 30;

/// The changelog of one key group: the base, then the segments of these packs in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseRef>,
    /// The epochs whose packs hold a segment after the base, each epoch's packs in the order of its commit.
    pub segments: Vec<Segment>,
}

/// One pack's segment of a key group. The pack is at `EpochState::packs[epoch][pack]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub epoch: Epoch,
    pub pack: u16,
}

/// What holds at one committed epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochState {
    pub epoch: Epoch,
    pub now: Micros,
    pub offsets: Offsets,
    pub seen_files: BTreeMap<SourceName, BTreeSet<String>>,
    pub watermarks: BTreeMap<OperatorUid, Micros>,
    pub chains: BTreeMap<KeyGroup, Chain>,
    /// Packs that some chain names, by epoch.
    pub packs: BTreeMap<Epoch, Vec<PackRef>>,
}

impl EpochState {
    /// The state before the first commit.
    pub fn empty(root: Epoch) -> Self {
        Self {
            epoch: root,
            ..Self::default()
        }
    }

    /// Carries the state from a commit's parent to the commit.
    ///
    /// # Errors
    /// A sentence, when the commit does not go on from this epoch. Then nothing has changed.
    pub fn advance(&mut self, commit: &Commit) -> Result<(), String> {
        let Commit {
            epoch,
            parent,
            now,
            forgets_state,
            offsets,
            forgotten,
            seen_files,
            watermarks,
            packs,
            bases,
            counts: _,
        } = commit;
        if *parent != self.epoch {
            return Err(format!(
                "epoch {epoch} goes on from {parent}, not from {}",
                self.epoch
            ));
        }
        self.epoch = *epoch;
        self.now = *now;
        if *forgets_state {
            self.chains.clear();
            self.packs.clear();
        }
        for (source, splits) in offsets {
            let of = self.offsets.entry(source.clone()).or_default();
            of.extend(
                splits
                    .iter()
                    .map(|(split, state)| (split.clone(), state.clone())),
            );
        }
        for (source, splits) in forgotten {
            if let Some(of) = self.offsets.get_mut(source) {
                of.retain(|split, _| !splits.contains(split));
            }
        }
        for (source, files) in seen_files {
            self.seen_files
                .entry(source.clone())
                .or_default()
                .extend(files.iter().cloned());
        }
        self.watermarks
            .extend(watermarks.iter().map(|(uid, at)| (uid.clone(), *at)));
        for (n, pack) in packs.iter().enumerate() {
            let segment = Segment {
                epoch: *epoch,
                pack: u16::try_from(n).unwrap_or(u16::MAX),
            };
            for kg in &pack.key_groups {
                self.chains.entry(*kg).or_default().segments.push(segment);
            }
        }
        if packs.iter().any(|p| !p.key_groups.is_empty()) {
            self.packs.insert(*epoch, packs.clone());
        }
        for base in bases {
            let chain = self.chains.entry(base.key_group).or_default();
            // A slower upload of an older base never replaces a newer one. All epochs of a chain lie on one branch, so
            // among them numbers do tell older from newer.
            if chain.base.as_ref().is_none_or(|b| b.epoch < base.epoch) {
                chain.segments.retain(|s| s.epoch > base.epoch);
                chain.base = Some(base.clone());
            }
        }
        if !bases.is_empty() {
            let named: BTreeSet<Epoch> = self
                .chains
                .values()
                .flat_map(|c| c.segments.iter().map(|s| s.epoch))
                .collect();
            self.packs.retain(|epoch, _| named.contains(epoch));
        }
        Ok(())
    }

    /// The pack of a segment.
    pub fn pack(&self, segment: Segment) -> Option<&PackRef> {
        self.packs
            .get(&segment.epoch)?
            .get(usize::from(segment.pack))
    }

    /// Bytes that restoring reads: bases, and packs with a segment after them.
    pub fn bytes(&self) -> u64 {
        let packs = self.packs.values().flatten().map(|p| p.length);
        let bases = self.chains.values().filter_map(|c| c.base.as_ref());
        let files = bases.flat_map(|b| b.files.iter().map(|f| f.length));
        packs.chain(files).sum()
    }

    /// Every object that restoring needs.
    pub fn objects(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for pack in self.packs.values().flatten() {
            name_pack(pack, &mut all);
        }
        for base in self.chains.values().filter_map(|c| c.base.as_ref()) {
            name_base(base, &mut all);
        }
        all
    }
}

pub(crate) fn name_pack(pack: &PackRef, into: &mut BTreeSet<String>) {
    into.insert(pack.path.clone());
    into.extend((0..pack.outs.len()).map(|n| pack.out_path(n)));
}

pub(crate) fn name_base(base: &BaseRef, into: &mut BTreeSet<String>) {
    into.insert(base.path.clone());
    into.extend(base.files.iter().map(|f| f.path.clone()));
}

/// Every object that a commit names.
pub fn objects_of(commit: &Commit) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    commit.packs.iter().for_each(|p| name_pack(p, &mut all));
    commit.bases.iter().for_each(|b| name_base(b, &mut all));
    all
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closure {
    pub format: u16,
    pub min_reader: u16,
    pub log: LogId,
    pub nonce: Nonce,
    pub state: EpochState,
    /// The log's state after the record `fold.seq()`, with the commits that are not published everywhere.
    pub fold: Fold,
    /// Named by commits since the closure before, and not in `state`: what garbage collection would else not know.
    pub passing: BTreeSet<String>,
}

impl Closure {
    /// The closure of `state` beside `fold`, whose commits since the last closure are still in it.
    pub fn new(state: EpochState, fold: Fold, nonce: Nonce) -> Self {
        let live = state.objects();
        let passing = fold
            .commits()
            .flat_map(|c| objects_of(&c.commit))
            .filter(|o| !live.contains(o))
            .collect();
        Self {
            format: FORMAT,
            min_reader: READER,
            log: fold.log(),
            nonce,
            state,
            fold,
            passing,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.state.epoch
    }

    pub fn through(&self) -> Seq {
        self.fold.seq()
    }

    pub fn path(&self) -> String {
        format!("closure/{:020}-{}", self.epoch(), self.nonce)
    }

    /// Its bytes and the record that names it.
    pub fn encode(&self) -> Result<(Vec<u8>, ClosureRecord), DecodeError> {
        let bytes = envelope::seal(self)?;
        let record = ClosureRecord {
            epoch: self.epoch(),
            path: self.path(),
            length: bytes.len() as u64,
            crc: crc32c::crc32c(&bytes),
            through: self.through(),
        };
        Ok((bytes, record))
    }

    /// Reads the object that `record` names: another closure, though whole, is refused.
    pub fn decode(
        bytes: &[u8],
        record: &ClosureRecord,
        log: LogId,
    ) -> Result<Closure, DecodeError> {
        let differs =
            |what: &str| DecodeError::damaged(format!("{what} differs from what the log says"));
        if record.length > MAX_CLOSURE_BYTES {
            return Err(DecodeError::TooLarge {
                bytes: record.length,
                limit: MAX_CLOSURE_BYTES,
            });
        }
        if bytes.len() as u64 != record.length {
            return Err(differs("its length"));
        }
        if crc32c::crc32c(bytes) != record.crc {
            return Err(differs("its checksum"));
        }
        let closure: Closure = envelope::open(bytes, READER)?;
        if closure.log != log || closure.fold.log() != log || closure.path() != record.path {
            return Err(differs("its name"));
        }
        if closure.epoch() != record.epoch || closure.through() != record.through {
            return Err(differs("its epoch"));
        }
        Ok(closure)
    }
}
