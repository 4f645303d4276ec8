//! Several members as one: what the coordinator says goes to those whom it is about, and what they answer reaches it as if one member
//! had. Pure: who is reached by what is the caller's.

use std::collections::BTreeMap;

use penstock_checkpoint::ids::Epoch;
use tokio::sync::mpsc;

use super::protocol::{FromMember, Snapshot, ToMember};
use super::seat::Seat;
use crate::error::EngineError;
use crate::planted::{Bug, planted};
use crate::process;
use crate::task::DeadLetter;

/// What the members of a generation have answered so far.
#[derive(Debug)]
pub struct Team {
    /// Of the first member.
    seat: Seat,
    key_groups: u16,
    /// Shards of each sink.
    shards: Vec<u16>,
    started: usize,
    closed: usize,
    /// Of epochs that not all have passed, by member.
    snapshots: BTreeMap<u64, BTreeMap<usize, Box<Snapshot>>>,
    late: BTreeMap<u64, BTreeMap<usize, Vec<DeadLetter>>>,
    /// How far each has published, and how far the coordinator knows.
    done: Vec<Epoch>,
    told: Epoch,
    /// By member: how many assignments it knows of, all of whose splits it has read to their end.
    sources_done: BTreeMap<usize, u64>,
}

impl Team {
    /// `slots`: of each member. `shards`: of each sink.
    pub fn new(members: usize, slots: usize, key_groups: u16, shards: Vec<u16>) -> Self {
        Self {
            seat: Seat {
                member: 0,
                members,
                slots,
            },
            key_groups,
            shards,
            started: 0,
            closed: 0,
            snapshots: BTreeMap::new(),
            late: BTreeMap::new(),
            done: vec![Epoch::ZERO; members],
            told: Epoch::ZERO,
            sources_done: BTreeMap::new(),
        }
    }

    /// Who is told what.
    pub fn tell(&mut self, message: ToMember) -> Vec<(usize, ToMember)> {
        let one = match &message {
            ToMember::Bear { shard, .. } => Some(self.seat.of_shard(shard.1, self.shards[shard.0])),
            ToMember::MakeBase { group, .. } => {
                Some(self.seat.of_group(group.get(), self.key_groups))
            }
            ToMember::Assign { .. } => {
                self.sources_done.clear();
                None
            }
            ToMember::Start(_)
            | ToMember::Inject(..)
            | ToMember::Plan(..)
            | ToMember::Drain
            | ToMember::Committed { .. }
            | ToMember::Publish(_)
            | ToMember::Late { .. }
            | ToMember::Close { .. }
            | ToMember::Halt => None,
        };
        match one {
            Some(member) => vec![(member, message)],
            None => (0..self.seat.members)
                .map(|member| (member, self.seated(member, message.clone())))
                .collect(),
        }
    }

    fn seated(&self, member: usize, message: ToMember) -> ToMember {
        match message {
            ToMember::Start(mut start) => {
                start.seat = Seat {
                    member,
                    ..self.seat
                };
                ToMember::Start(start)
            }
            other => other,
        }
    }

    /// Late rows that a member judged. Once all have told theirs: those of each one's splits, each row where its split is read, so
    /// that whoever reads the split can tell it from itself.
    pub fn late(
        &mut self,
        member: usize,
        epoch: u64,
        letters: Vec<DeadLetter>,
    ) -> Vec<(usize, ToMember)> {
        let told = self.late.entry(epoch).or_default();
        told.insert(member, letters);
        if told.len() < self.seat.members {
            return Vec::new();
        }
        let told = self.late.remove(&epoch).unwrap_or_default();
        let mut shares = vec![Vec::new(); self.seat.members];
        for letter in told.into_values().flatten() {
            let (reader, _) = self.seat.of_slot(self.seat.of_split(&letter.split.0));
            shares[reader].push(letter);
        }
        let share = |(member, letters)| (member, ToMember::Late { epoch, letters });
        shares.into_iter().enumerate().map(share).collect()
    }

    /// What the coordinator hears, now that this member has said this.
    pub fn hear(&mut self, member: usize, message: FromMember) -> Option<FromMember> {
        let members = self.seat.members;
        match message {
            FromMember::Started => {
                self.started += 1;
                (self.started == members).then_some(FromMember::Started)
            }
            FromMember::Snapshot(part) => {
                let epoch = part.barrier.epoch;
                let parts = self.snapshots.entry(epoch).or_default();
                parts.insert(member, part);
                if parts.len() < members {
                    return None;
                }
                let parts = self.snapshots.remove(&epoch)?;
                parts
                    .into_values()
                    .reduce(|all, part| merged(all, *part))
                    .map(FromMember::Snapshot)
            }
            FromMember::Done { through } => {
                self.done[member] = self.done[member].max(through);
                let all = self.done.iter().copied().min()?;
                let more = all > self.told;
                self.told = self.told.max(all);
                more.then_some(FromMember::Done { through: all })
            }
            FromMember::Closed => {
                self.closed += 1;
                let all = self.closed == members;
                if all {
                    self.closed = 0;
                }
                all.then_some(FromMember::Closed)
            }
            FromMember::SourcesDone { assigned } => {
                self.sources_done.insert(member, assigned);
                let agree = self.sources_done.values().all(|a| *a == assigned);
                let all = self.sources_done.len() == members;
                (all && (agree || planted(Bug::StaleDone)))
                    .then_some(FromMember::SourcesDone { assigned })
            }
            FromMember::Born { .. }
            | FromMember::Held { .. }
            | FromMember::Base { .. }
            | FromMember::WantsBarrier
            | FromMember::Late { .. }
            | FromMember::Failing { .. }
            | FromMember::Failed(_) => Some(message),
        }
    }
}

/// How a member is spoken to.
pub struct Line {
    pub to: mpsc::UnboundedSender<ToMember>,
    pub from: mpsc::UnboundedReceiver<FromMember>,
}

/// Carries messages between the coordinator and the members of a generation, until the coordinator is gone.
pub async fn carry(
    mut team: Team,
    mut inbox: mpsc::UnboundedReceiver<ToMember>,
    coordinator: mpsc::UnboundedSender<FromMember>,
    lines: Vec<Line>,
) {
    let (said, mut heard) = mpsc::unbounded_channel();
    let mut members = Vec::new();
    for (member, Line { to, mut from }) in lines.into_iter().enumerate() {
        members.push(to);
        let said = said.clone();
        process::spawn(async move {
            while let Some(message) = from.recv().await {
                let _ = said.send((member, message));
            }
            // Nobody listens any more when it was told to end.
            let gone = EngineError::fail("PR0304", format!("member {member}"), "it is gone");
            let _ = said.send((member, FromMember::Failed(gone)));
        });
    }
    drop(said);
    loop {
        tokio::select! {
            biased;
            message = inbox.recv() => {
                let Some(message) = message else { return };
                for (member, message) in team.tell(message) {
                    // One that is gone has said why.
                    let _ = members[member].send(message);
                }
            }
            Some((member, message)) = heard.recv() => {
                if let FromMember::Late { epoch, letters } = message {
                    for (member, message) in team.late(member, epoch, letters) {
                        let _ = members[member].send(message);
                    }
                } else if let Some(message) = team.hear(member, message) {
                    let _ = coordinator.send(message);
                }
            }
        }
    }
}

/// Two members' parts of an epoch as one. Rows go out in the order of members.
fn merged(mut all: Box<Snapshot>, part: Snapshot) -> Box<Snapshot> {
    let Snapshot {
        barrier: _,
        packs,
        bytes,
        splits,
        watermarks,
        counts,
        rows_out,
    } = part;
    all.packs.extend(packs);
    all.bytes += bytes;
    for (source, splits) in splits {
        all.splits.entry(source).or_default().extend(splits);
    }
    for (uid, at) in watermarks {
        let together = all.watermarks.entry(uid).or_insert(at);
        *together = together.with(at);
    }
    all.counts.extend(counts);
    all.rows_out += rows_out;
    all
}
