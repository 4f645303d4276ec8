//! What a reader of the log knows: a pure function of its records, one `apply` each. Owns the rules of publication
//! (`pub(log)`), of trials, of parents and numbers, and refuses a record that breaks them. Reads and writes nothing.
//!
//! The specification is `fold` of the job log's model; `fold/tests.rs` holds a port of it beside this one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Generation, LogId, Micros, Nonce, OperatorUid, Seq, ShardId, SinkName};
use crate::record::{
    Claim, ClaimKind, ClosureRecord, Commit, Created, EpochRecord, Kind, LossAccepted, Parent,
    Plan, Record, StopReason, Stopped,
};
use crate::switches::Switches;

#[cfg(test)]
mod tests;

/// A record that the log's rules do not allow after what stands before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} of log {log} breaks the log's rules: {why}")]
pub struct Illegal {
    pub log: LogId,
    pub seq: Seq,
    pub why: String,
}

/// A version that runs on trial: its epochs are committed and staged, not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Where it began, and where a rollback goes.
    pub base: Epoch,
    /// The generation of its Upgrade claim.
    pub generation: Generation,
}

/// A commit that is still needed in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitEntry {
    pub seq: Seq,
    pub generation: Generation,
    pub time: Micros,
    pub commit: Commit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BornShard {
    pub partition: i32,
    pub epoch: Epoch,
    pub nonce: Nonce,
}

/// A closure that the log names and no `Drop` has given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosureEntry {
    pub seq: Seq,
    pub time: Micros,
    pub record: ClosureRecord,
}

/// Epochs first..=last that one generation committed without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    first: Epoch,
    last: Epoch,
    generation: Generation,
}

/// Epochs first..=last, each the parent of the next; `parent` is that of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Branch {
    first: Epoch,
    last: Epoch,
    parent: Epoch,
}

/// The state of a log after some of its records. Serialised whole into every closure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    log: LogId,
    name: String,
    key_groups: u16,
    parent: Option<Parent>,
    created: Micros,
    seq: Seq,
    time: Micros,
    closure_seq: Seq,
    generation: Generation,
    claim: Option<Claim>,
    claims_since_commit: u32,
    trial: Option<Trial>,
    head: Epoch,
    newest: Epoch,
    highest: Epoch,
    done: Epoch,
    branches: Vec<Branch>,
    published: Vec<Run>,
    staged: Vec<Run>,
    commits: BTreeMap<Epoch, CommitEntry>,
    shards: BTreeMap<SinkName, BTreeMap<ShardId, BornShard>>,
    pins: BTreeMap<String, Epoch>,
    stopped: Option<Stopped>,
    planned: Option<Plan>,
    end: Option<Plan>,
    losses: Vec<LossAccepted>,
    replan: bool,
    closures: Vec<ClosureEntry>,
    dropped_uids: BTreeSet<OperatorUid>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    requests: BTreeSet<String>,
    /// Epochs in which operators began empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    forgets: BTreeSet<Epoch>,
    #[serde(default)]
    claimed: Micros,
    #[serde(skip)]
    switches: Switches,
}

impl Fold {
    /// The state after the first record, which must be `Created`.
    ///
    /// # Errors
    /// `Illegal` when it is not the first record of a log.
    pub fn begin(first: &Record, switches: Switches) -> Result<Fold, Illegal> {
        let illegal = |why: &str| Illegal {
            log: first.log,
            seq: first.seq,
            why: why.to_owned(),
        };
        let Kind::Created(Created {
            name,
            key_groups,
            parent,
        }) = &first.kind
        else {
            return Err(illegal("the first record must be Created"));
        };
        if first.seq != Seq::new(1) || first.generation != Generation::ZERO {
            return Err(illegal("Created must be record 1 of generation 0"));
        }
        let root = parent.as_ref().map_or(Epoch::ZERO, |p| p.epoch);
        Ok(Fold {
            log: first.log,
            name: name.clone(),
            key_groups: *key_groups,
            parent: parent.clone(),
            created: first.time,
            seq: first.seq,
            time: first.time,
            closure_seq: Seq::ZERO,
            generation: Generation::ZERO,
            claim: None,
            claims_since_commit: 0,
            trial: None,
            head: root,
            newest: root,
            highest: root,
            done: root,
            branches: Vec::new(),
            published: Vec::new(),
            staged: Vec::new(),
            commits: BTreeMap::new(),
            shards: BTreeMap::new(),
            pins: BTreeMap::new(),
            stopped: None,
            planned: None,
            end: None,
            losses: Vec::new(),
            replan: false,
            closures: Vec::new(),
            dropped_uids: BTreeSet::new(),
            requests: BTreeSet::new(),
            forgets: BTreeSet::new(),
            claimed: Micros::default(),
            switches,
        })
    }

    pub fn with_switches(mut self, switches: Switches) -> Fold {
        self.switches = switches;
        self
    }

    /// Takes in the next record. On an error nothing has changed.
    ///
    /// # Errors
    /// `Illegal` with the rule that it breaks.
    pub fn apply(&mut self, record: &Record) -> Result<(), Illegal> {
        self.allows(record)?;
        match &record.kind {
            Kind::Created(_) => {}
            Kind::Claim(c) => self.apply_claim(record, c),
            Kind::Epoch(e) => self.apply_epoch(record, e),
            Kind::Closure(c) => {
                self.closure_seq = record.seq;
                self.closures.push(ClosureEntry {
                    seq: record.seq,
                    time: record.time,
                    record: c.clone(),
                });
                self.prune(c.epoch);
            }
            Kind::Accepted(_) => {
                for run in std::mem::take(&mut self.staged) {
                    push_run(&mut self.published, run);
                }
                self.trial = None;
            }
            Kind::SinkBorn(b) => {
                let shard = BornShard {
                    partition: b.partition,
                    epoch: b.epoch,
                    nonce: b.nonce,
                };
                self.shards
                    .entry(b.sink.clone())
                    .or_default()
                    .insert(b.shard, shard);
            }
            Kind::Pin(p) => {
                self.pins.insert(p.name.clone(), p.epoch);
            }
            Kind::Unpin(u) => {
                self.pins.remove(&u.name);
            }
            Kind::Stopped(s) => {
                self.stopped = Some(s.clone());
                if s.why != StopReason::Suspended {
                    self.end = None;
                }
            }
            Kind::LossAccepted(l) => {
                self.losses.push(l.clone());
                self.replan = true;
            }
            Kind::Drop(d) => {
                self.dropped_uids.extend(d.uids.iter().cloned());
                if !d.files.is_empty() {
                    let files: BTreeSet<&str> = d.files.iter().map(String::as_str).collect();
                    self.closures
                        .retain(|c| !files.contains(c.record.path.as_str()));
                }
            }
        }
        self.seq = record.seq;
        self.time = record.time;
        Ok(())
    }

    /// Whether `record` may come next.
    ///
    /// # Errors
    /// As `apply`.
    pub fn allows(&self, record: &Record) -> Result<(), Illegal> {
        self.check(record).map_err(|why| Illegal {
            log: self.log,
            seq: record.seq,
            why,
        })
    }

    fn check(&self, r: &Record) -> Result<(), String> {
        if r.log != self.log {
            return Err(format!("it belongs to log {}", r.log));
        }
        if r.seq != self.seq.next() {
            return Err(format!("it should be record {}", self.seq.next()));
        }
        if r.closure_seq != self.closure_seq {
            return Err(format!(
                "it names closure {}, the newest is {}",
                r.closure_seq, self.closure_seq
            ));
        }
        let writer = if matches!(r.kind, Kind::Claim(_)) {
            self.generation.next()
        } else {
            self.generation
        };
        if r.generation != writer {
            return Err(format!(
                "written by generation {}, only {writer} may",
                r.generation
            ));
        }
        match &r.kind {
            Kind::Created(_) => Err("the log is created already".to_owned()),
            Kind::Claim(c) => self.check_claim(c),
            Kind::Epoch(e) => self.check_epoch(e),
            Kind::Closure(c) => {
                if c.through > self.seq {
                    return Err(format!(
                        "a closure through record {} cannot stand at {}",
                        c.through, r.seq
                    ));
                }
                self.known(c.epoch)
            }
            Kind::Accepted(a) => {
                if self.trial.is_none() {
                    return Err("Accepted without a trial".to_owned());
                }
                if a.generation != self.generation || a.epoch != self.head {
                    return Err(format!(
                        "it accepts epoch {} of generation {}",
                        a.epoch, a.generation
                    ));
                }
                Ok(())
            }
            Kind::SinkBorn(b) => {
                if self.shard(&b.sink, b.shard).is_some() {
                    return Err(format!(
                        "shard {} of sink {} is born already",
                        b.shard, b.sink
                    ));
                }
                if self
                    .shards
                    .get(&b.sink)
                    .is_some_and(|s| s.values().any(|x| x.partition == b.partition))
                {
                    return Err(format!(
                        "partition {} of sink {} is taken",
                        b.partition, b.sink
                    ));
                }
                Ok(())
            }
            Kind::Pin(p) => self.known(p.epoch),
            Kind::Unpin(_) | Kind::LossAccepted(_) | Kind::Drop(_) => Ok(()),
            Kind::Stopped(s) => self.known(s.epoch),
        }
    }

    fn known(&self, epoch: Epoch) -> Result<(), String> {
        if epoch == self.root() || self.branch_of(epoch).is_some() {
            Ok(())
        } else {
            Err(format!("epoch {epoch} was never committed"))
        }
    }

    fn check_claim(&self, c: &Claim) -> Result<(), String> {
        if self
            .stopped
            .as_ref()
            .is_some_and(|s| s.why == StopReason::Drained)
        {
            return Err("the job is drained, it never goes on".to_owned());
        }
        let due = match c.kind {
            ClaimKind::Recovery => self.head,
            ClaimKind::Handover => {
                if c.handover_from != Some(self.generation) {
                    return Err(format!(
                        "a handover must be from generation {}",
                        self.generation
                    ));
                }
                self.head
            }
            ClaimKind::Upgrade => self.trial.map_or(self.head, |t| t.base),
            ClaimKind::Rollback => match self.trial {
                Some(trial) => trial.base,
                None if self.switches.skip_check() => return Ok(()),
                None => {
                    return Err("a rollback outside a trial: the version is accepted".to_owned());
                }
            },
            ClaimKind::GoBack => {
                if !self.is_publishable(c.restore_epoch) {
                    return Err(format!(
                        "epoch {} is none that may be published",
                        c.restore_epoch
                    ));
                }
                c.restore_epoch
            }
        };
        if c.restore_epoch != due {
            return Err(format!(
                "it restores epoch {}, it should restore {due}",
                c.restore_epoch
            ));
        }
        Ok(())
    }

    fn check_epoch(&self, e: &EpochRecord) -> Result<(), String> {
        let EpochRecord {
            commit,
            plan,
            done_through,
        } = e;
        if commit.is_some() || plan.is_some() {
            if self.generation == Generation::ZERO {
                return Err("nobody has claimed the log".to_owned());
            }
            if let Some(s) = &self.stopped {
                return Err(format!("the job is stopped at epoch {}", s.epoch));
            }
        }
        let next = self.highest.next();
        if let Some(c) = commit {
            if c.epoch != next {
                return Err(format!("it commits epoch {}, the next is {next}", c.epoch));
            }
            if c.parent != self.head {
                return Err(format!(
                    "epoch {} goes on from {}, it should from {}",
                    c.epoch, c.parent, self.head
                ));
            }
            for b in &c.bases {
                if b.epoch == Epoch::ZERO || !self.is_ancestor(b.epoch, c.parent) {
                    return Err(format!(
                        "a base of epoch {} is no ancestor of {}",
                        b.epoch, c.epoch
                    ));
                }
            }
        }
        if let Some(p) = plan {
            if p.epoch != if commit.is_some() { next.next() } else { next } {
                return Err(format!("it plans epoch {}", p.epoch));
            }
            if commit.is_none() && self.planned.is_some() && !self.replan {
                return Err(format!("epoch {} is planned already", p.epoch));
            }
        }
        let newest = commit.as_ref().map_or(self.newest, |c| c.epoch);
        if *done_through > newest {
            return Err(format!(
                "done through {done_through}, the newest commit is {newest}"
            ));
        }
        let first_staged = match (self.staged.first(), commit, self.trial) {
            (Some(run), _, _) => Some(run.first),
            (None, Some(c), Some(_)) => Some(c.epoch),
            _ => None,
        };
        if first_staged.is_some_and(|first| *done_through >= first) {
            return Err(format!("done through {done_through}, which is staged"));
        }
        Ok(())
    }

    fn apply_claim(&mut self, r: &Record, c: &Claim) {
        match c.kind {
            ClaimKind::Recovery => {
                if self.switches.staged_unmarked() {
                    for run in std::mem::take(&mut self.staged) {
                        push_run(&mut self.published, run);
                    }
                }
            }
            ClaimKind::Handover => {
                // A handover happens after Done(N); staged epochs stay undone.
                if let Some(last) = self.published.last() {
                    self.done = self.done.max(last.last);
                }
            }
            ClaimKind::Upgrade => {
                self.staged.clear();
                self.trial = Some(Trial {
                    base: c.restore_epoch,
                    generation: r.generation,
                });
                self.leave_branch();
            }
            ClaimKind::Rollback => {
                let staged = std::mem::take(&mut self.staged);
                if self.switches.finish_trial() {
                    for run in staged {
                        push_run(&mut self.published, run);
                    }
                }
                self.trial = None;
                self.leave_branch();
            }
            ClaimKind::GoBack => {
                self.staged.clear();
                if self.switches.no_finish() {
                    self.published.retain_mut(|run| {
                        run.last = run.last.min(c.restore_epoch);
                        run.first <= run.last
                    });
                }
                self.trial = None;
                self.leave_branch();
            }
        }
        self.head = c.restore_epoch;
        self.generation = r.generation;
        self.claim = Some(c.clone());
        self.requests.extend(c.request.clone());
        self.claimed = r.time;
        self.claims_since_commit = self.claims_since_commit.saturating_add(1);
        self.stopped = None;
    }

    /// A plan is made for one parent: who goes on from another, or with other SQL, plans anew under a number of its own.
    fn leave_branch(&mut self) {
        if let Some(plan) = self.planned.take() {
            self.highest = self.highest.max(plan.epoch);
        }
        self.end = None;
        self.replan = false;
    }

    fn apply_epoch(&mut self, r: &Record, e: &EpochRecord) {
        if let Some(c) = &e.commit {
            match self.branches.last_mut() {
                Some(b) if b.last == c.parent && b.last.next() == c.epoch => b.last = c.epoch,
                _ => self.branches.push(Branch {
                    first: c.epoch,
                    last: c.epoch,
                    parent: c.parent,
                }),
            }
            self.head = c.epoch;
            self.newest = c.epoch;
            self.highest = c.epoch;
            self.claims_since_commit = 0;
            self.planned = None;
            self.replan = false;
            let run = Run {
                first: c.epoch,
                last: c.epoch,
                generation: r.generation,
            };
            push_run(
                if self.trial.is_some() {
                    &mut self.staged
                } else {
                    &mut self.published
                },
                run,
            );
            let entry = CommitEntry {
                seq: r.seq,
                generation: r.generation,
                time: r.time,
                commit: c.clone(),
            };
            self.commits.insert(c.epoch, entry);
            if c.forgets_state {
                self.forgets.insert(c.epoch);
            }
        }
        if let Some(p) = &e.plan {
            if p.end.is_some() {
                self.end = Some(Plan {
                    epoch: p.epoch,
                    end: p.end.clone(),
                    ..Plan::default()
                });
            }
            self.planned = Some(p.clone());
            self.replan = false;
        }
        self.done = self.done.max(e.done_through);
    }

    /// Forgets commits that a closure of `epoch` makes needless: its ancestors that need no publication any more, and
    /// those that were dropped.
    fn prune(&mut self, epoch: Epoch) {
        let needless: Vec<Epoch> = self
            .commits
            .keys()
            .copied()
            .filter(|&e| {
                let ancestor = self.is_ancestor(e, epoch);
                let undone =
                    in_runs(&self.staged, e) || (e > self.done && in_runs(&self.published, e));
                !undone && (ancestor || !self.is_ancestor(e, self.head))
            })
            .collect();
        for e in needless {
            self.commits.remove(&e);
        }
        // Which generation committed an epoch matters to nobody once it is published.
        let done = self.done;
        let mut merged: Vec<Run> = Vec::with_capacity(self.published.len());
        for run in self.published.drain(..) {
            match merged.last_mut() {
                Some(last) if run.last <= done && last.last.next() == run.first => {
                    last.last = run.last;
                    last.generation = run.generation;
                }
                _ => merged.push(run),
            }
        }
        self.published = merged;
    }

    // ---- what the state says -----------------------------------------------------------------------------------------

    pub fn log(&self) -> LogId {
        self.log
    }

    /// `<namespace>/<name>` of the job.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn key_groups(&self) -> u16 {
        self.key_groups
    }

    pub fn parent_log(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    /// When the log was created.
    pub fn created(&self) -> Micros {
        self.created
    }

    /// Seq of the last record taken in.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Time of the last record taken in.
    pub fn time(&self) -> Micros {
        self.time
    }

    /// Seq of the newest `Closure` record, 0 when there is none.
    pub fn closure_seq(&self) -> Seq {
        self.closure_seq
    }

    /// The newest generation; 0 before the first Claim.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The newest Claim.
    pub fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Claims that no commit followed: the delay before the next one doubles with each.
    pub fn claims_since_commit(&self) -> u32 {
        self.claims_since_commit
    }

    pub fn trial(&self) -> Option<Trial> {
        self.trial
    }

    /// The epoch that the job goes on from: the newest commit after the last Claim, else what that Claim restored.
    pub fn head(&self) -> Epoch {
        self.head
    }

    /// H of rule 10: the newest epoch of the whole log, on whatever branch. Markers are compared with it.
    pub fn newest(&self) -> Epoch {
        self.newest
    }

    /// What a marker is compared with: one that is ahead says that this process is a zombie.
    pub fn marker_bound(&self) -> Epoch {
        if self.switches.branch_marker() {
            self.head
        } else {
            self.newest
        }
    }

    /// What a Recovery or Handover claim restores.
    pub fn restore_epoch(&self) -> Epoch {
        if self.switches.restore_newest()
            || (self.switches.restore_dropped() && self.trial.is_none())
        {
            self.newest
        } else {
            self.head
        }
    }

    /// The number of the next commit: one more than the highest ever seen (rule 5).
    pub fn next_epoch(&self) -> Epoch {
        if self.switches.reuse() {
            self.head.next()
        } else {
            self.highest.next()
        }
    }

    /// Every epoch of `pub` up to this one is published, as the log says.
    pub fn done_through(&self) -> Epoch {
        self.done
    }

    /// `pub(log)` after `done_through`: what may be published and is not known to be, in order.
    pub fn to_publish(&self) -> impl DoubleEndedIterator<Item = (Epoch, Generation)> + '_ {
        let done = self.done;
        expand(&self.published).filter(move |(e, _)| *e > done)
    }

    /// Committed in the running trial, not to be published before `Accepted`.
    pub fn staged(&self) -> impl DoubleEndedIterator<Item = (Epoch, Generation)> + '_ {
        expand(&self.staged)
    }

    /// The newest epoch of `pub`.
    pub fn last_publishable(&self) -> Option<Epoch> {
        self.published.last().map(|r| r.last)
    }

    /// Whether `epoch` is in `pub(log)`, published or not.
    pub fn is_publishable(&self, epoch: Epoch) -> bool {
        in_runs(&self.published, epoch)
    }

    /// Whether `epoch` waits for `Accepted`.
    pub fn is_staged(&self, epoch: Epoch) -> bool {
        in_runs(&self.staged, epoch)
    }

    /// `done_through` for the next record, given the first epoch of `pub` that some shard has not published yet
    /// (`None`: all are). Staged epochs are not waited for and not counted.
    pub fn done_before(&self, first_unpublished: Option<Epoch>) -> Epoch {
        let through = match first_unpublished {
            Some(epoch) => epoch.prev().unwrap_or_default(),
            None if self.trial.is_some() => self.last_publishable().unwrap_or(self.done),
            None => self.newest,
        };
        match self.staged.first() {
            Some(run) => through
                .min(run.first.prev().unwrap_or_default())
                .max(self.done),
            None => through.max(self.done),
        }
    }

    /// A commit that is still in memory: not yet published, or newer than the newest closure.
    pub fn commit(&self, epoch: Epoch) -> Option<&CommitEntry> {
        self.commits.get(&epoch)
    }

    pub fn commits(&self) -> impl Iterator<Item = &CommitEntry> + '_ {
        self.commits.values()
    }

    /// The epoch that stands before the first commit: 0, or that of the parent log.
    pub fn root(&self) -> Epoch {
        self.parent.as_ref().map_or(Epoch::ZERO, |p| p.epoch)
    }

    fn branch_of(&self, epoch: Epoch) -> Option<&Branch> {
        let at = self
            .branches
            .partition_point(|b| b.first <= epoch)
            .checked_sub(1)?;
        self.branches.get(at).filter(|b| epoch <= b.last)
    }

    /// The parent of a committed epoch.
    pub fn parent(&self, epoch: Epoch) -> Option<Epoch> {
        let b = self.branch_of(epoch)?;
        if epoch == b.first {
            Some(b.parent)
        } else {
            epoch.prev()
        }
    }

    /// Whether `a` is `n` or lies on its parent chain. By ancestry, never by number.
    pub fn is_ancestor(&self, a: Epoch, n: Epoch) -> bool {
        let mut n = n;
        loop {
            let Some(b) = self.branch_of(n) else {
                return a == n && n == self.root();
            };
            if a >= b.first {
                return a <= n;
            }
            n = b.parent;
        }
    }

    /// `epoch` and its ancestors, newest first, without the root.
    pub fn ancestors(&self, epoch: Epoch) -> impl Iterator<Item = Epoch> + '_ {
        let root = self.root();
        std::iter::successors(Some(epoch).filter(|&e| e != root), move |&e| {
            self.parent(e).filter(|&p| p != root)
        })
    }

    pub fn shard(&self, sink: &SinkName, shard: ShardId) -> Option<BornShard> {
        self.shards.get(sink)?.get(&shard).copied()
    }

    pub fn shards(&self) -> &BTreeMap<SinkName, BTreeMap<ShardId, BornShard>> {
        &self.shards
    }

    /// A partition of the marker topic that this sink has never used.
    pub fn free_partition(&self, sink: &SinkName) -> i32 {
        self.shards
            .get(sink)
            .and_then(|s| s.values().map(|b| b.partition).max())
            .map_or(0, |p| p + 1)
    }

    pub fn pins(&self) -> &BTreeMap<String, Epoch> {
        &self.pins
    }

    /// Why the job stands still, until the next Claim.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// The plan that is in the log and not committed: it runs again as it is.
    pub fn planned(&self) -> Option<&Plan> {
        self.planned.as_ref()
    }

    /// Where the running `availableNow` or `once` ends: fixed in its first plan, forgotten when it stops.
    pub fn end(
        &self,
    ) -> Option<
        &BTreeMap<crate::ids::SourceName, BTreeMap<crate::ids::SplitId, crate::record::Position>>,
    > {
        self.end.as_ref().and_then(|p| p.end.as_ref())
    }

    pub fn losses(&self) -> &[LossAccepted] {
        &self.losses
    }

    pub fn closures(&self) -> &[ClosureEntry] {
        &self.closures
    }

    /// The newest epoch that `epoch` stands on, itself included, in which operators began empty: state of an earlier one is not
    /// its state.
    pub fn forgotten_at(&self, epoch: Epoch) -> Option<Epoch> {
        let mut newest_first = self.forgets.iter().rev().copied();
        newest_first.find(|f| self.is_ancestor(*f, epoch))
    }

    /// When the newest claim was made.
    pub fn claimed(&self) -> Micros {
        self.claimed
    }

    /// Whether a claim has fulfilled the request of this name.
    pub fn fulfilled(&self, request: &str) -> bool {
        self.requests.contains(request)
    }

    pub fn dropped_uids(&self) -> &BTreeSet<OperatorUid> {
        &self.dropped_uids
    }

    pub(crate) fn switches(&self) -> Switches {
        self.switches
    }
}

fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.generation == run.generation && last.last.next() == run.first => {
            last.last = run.last
        }
        _ => runs.push(run),
    }
}

fn in_runs(runs: &[Run], epoch: Epoch) -> bool {
    let at = runs.partition_point(|r| r.first <= epoch);
    at > 0 && epoch <= runs[at - 1].last
}

fn expand(runs: &[Run]) -> impl DoubleEndedIterator<Item = (Epoch, Generation)> + '_ {
    runs.iter()
        .flat_map(|r| (r.first.get()..=r.last.get()).map(|e| (Epoch::new(e), r.generation)))
}
