//! A model of a broker with transactions, as the marker protocol meets it: writers by transactional id with epochs that
//! fence, transactions that stay open until somebody ends them, partitions read up to the last stable offset. Synchronous
//! and without faults; losing, delaying and repeating requests is `wire`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Where records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Of the sink with that index.
    Rows(usize),
    Markers,
}

pub(super) type Partition = (Topic, i32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
}

/// A sentence of the broker's contract, or of the publisher's use of it, that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lapse {
    /// `init` neither raises the epoch nor ends what is open.
    NoFencing,
    /// The marker is read before `init`.
    ReadBeforeInit,
    /// The marker is written in a transaction after that of its rows.
    MarkerOutside,
}

/// The writer's epoch is not the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fenced;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Committed,
    Aborted,
}

#[derive(Debug)]
struct Transaction {
    fate: Fate,
    began: Instant,
    touched: BTreeSet<Partition>,
}

#[derive(Debug, Default)]
struct Writer {
    epoch: u32,
    open: Option<usize>,
}

/// A record, or (`None`) the mark of a transaction's end.
#[derive(Debug)]
struct Entry {
    transaction: usize,
    message: Option<Message>,
}

/// A transaction that is open for longer is aborted by the broker.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Broker {
    writers: BTreeMap<String, Writer>,
    transactions: Vec<Transaction>,
    partitions: BTreeMap<Partition, Vec<Entry>>,
    pub(super) lapse: Option<Lapse>,
}

impl Broker {
    /// Fences older writers of the id and aborts what they left open; the epoch to write with.
    pub(super) fn init(&mut self, id: &str) -> u32 {
        let writer = self.writers.entry(id.to_owned()).or_default();
        if self.lapse == Some(Lapse::NoFencing) {
            return writer.epoch;
        }
        writer.epoch += 1;
        let epoch = writer.epoch;
        if let Some(open) = writer.open.take() {
            self.settle(open, Fate::Aborted);
        }
        epoch
    }

    fn writer(&mut self, id: &str, epoch: u32) -> Result<&mut Writer, Fenced> {
        self.writers
            .get_mut(id)
            .filter(|w| w.epoch == epoch)
            .ok_or(Fenced)
    }

    /// Appends to a partition, within the writer's transaction, which begins with its first record.
    pub(super) fn produce(
        &mut self,
        id: &str,
        epoch: u32,
        to: Partition,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<(), Fenced> {
        let next = self.transactions.len();
        let open = *self.writer(id, epoch)?.open.get_or_insert(next);
        if open == next {
            self.transactions.push(Transaction {
                fate: Fate::Open,
                began: Instant::now(),
                touched: BTreeSet::new(),
            });
        }
        self.transactions[open].touched.insert(to);
        let entries = messages.into_iter().map(|m| Entry {
            transaction: open,
            message: Some(m),
        });
        self.partitions.entry(to).or_default().extend(entries);
        Ok(())
    }

    /// Commits what the writer has open; again is no harm.
    pub(super) fn commit(&mut self, id: &str, epoch: u32) -> Result<(), Fenced> {
        if let Some(open) = self.writer(id, epoch)?.open.take() {
            self.settle(open, Fate::Committed);
        }
        Ok(())
    }

    fn settle(&mut self, transaction: usize, fate: Fate) {
        self.transactions[transaction].fate = fate;
        for to in std::mem::take(&mut self.transactions[transaction].touched) {
            self.partitions.entry(to).or_default().push(Entry {
                transaction,
                message: None,
            });
        }
    }

    /// Aborts what has been open for too long, and fences its writer.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<usize> = self
            .writers
            .values_mut()
            .filter_map(|w| {
                let open = w.open?;
                (now - self.transactions[open].began >= TIMEOUT).then(|| {
                    w.open = None;
                    w.epoch += 1;
                    open
                })
            })
            .collect();
        for transaction in late {
            self.settle(transaction, Fate::Aborted);
        }
    }

    /// What a `read_committed` consumer gets: up to the last stable offset, without what was aborted.
    pub(super) fn committed(&self, of: Partition) -> impl DoubleEndedIterator<Item = &Message> {
        let entries = self.partitions.get(&of).map_or(&[][..], Vec::as_slice);
        let stable = entries
            .iter()
            .position(|e| self.transactions[e.transaction].fate == Fate::Open)
            .unwrap_or(entries.len());
        entries[..stable].iter().filter_map(|e| {
            (self.transactions[e.transaction].fate == Fate::Committed)
                .then_some(e.message.as_ref())
                .flatten()
        })
    }

    /// Partitions of a sink's rows that anything was written to.
    pub(super) fn partitions(&self, topic: Topic) -> Vec<i32> {
        let of = self.partitions.keys().filter(|(t, _)| *t == topic);
        of.map(|(_, n)| *n).collect()
    }

    /// Somebody deletes every marker.
    pub(super) fn lose_markers(&mut self) {
        self.partitions
            .retain(|(topic, _), _| *topic != Topic::Markers);
    }

    /// Transactions that nobody has ended.
    pub(super) fn open(&self) -> usize {
        let open = self.writers.values().filter(|w| w.open.is_some());
        open.count()
    }
}
