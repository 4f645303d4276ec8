//! A small job's log as a coordinator would write it, with real packs, bases and closures, and what a reader makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_checkpoint::base::{self, BaseManifest};
use penstock_checkpoint::clock::ManualClock;
use penstock_checkpoint::decide::{ClaimPoint, Wish};
use penstock_checkpoint::fold::Fold;
use penstock_checkpoint::ids::*;
use penstock_checkpoint::log::{JobLog, LogError, Options};
use penstock_checkpoint::pack::*;
use penstock_checkpoint::record::*;
use penstock_checkpoint::store::CheckpointStore;
use penstock_checkpoint::transfer;

pub const GROUPS: u16 = 4;

pub type Table = BTreeMap<(u16, Vec<u8>), Vec<u8>>;

/// What a reader finds.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    pub head: Epoch,
    pub offset: Option<Position>,
    pub table: Table,
    /// Of what is to be published: epoch and value.
    pub outputs: Vec<(Epoch, Vec<u8>)>,
}

pub fn options(seed: u64, clock: &Arc<ManualClock>) -> Options {
    Options {
        clock: clock.clone(),
        entropy: Box::new(SeededEntropy::new(seed)),
        ..Options::default()
    }
}

pub fn claim(_: &Fold, point: ClaimPoint) -> Claim {
    Claim {
        kind: point.kind,
        restore_epoch: point.restore_epoch,
        handover_from: point.handover_from,
        plan_hash: "plan".into(),
        members: vec![MemberId::ZERO],
        assignment: Assignment {
            key_groups: vec![MemberId::ZERO; GROUPS as usize],
            ..Assignment::default()
        },
        by: None,
        version: None,
        request: None,
    }
}

/// One committed epoch after another; `truth` follows what each comes to.
pub struct Builder {
    pub log: JobLog,
    pub clock: Arc<ManualClock>,
    pub generation: Generation,
    pub worlds: BTreeMap<Epoch, Table>,
    bases: BTreeMap<u16, BaseRef>,
}

impl Builder {
    pub async fn new(store: CheckpointStore) -> Self {
        let clock = Arc::new(ManualClock::at(Micros::from_millis(1_700_000_000_000)));
        let created = Created {
            name: "ns/job".into(),
            key_groups: GROUPS,
            parent: None,
        };
        let log = JobLog::create(
            store,
            LogId::from_bytes([4; 16]),
            created,
            options(1, &clock),
        )
        .await
        .unwrap();
        let worlds = BTreeMap::from([(Epoch::ZERO, Table::new())]);
        let mut this = Self {
            log,
            clock,
            generation: Generation::ZERO,
            worlds,
            bases: BTreeMap::new(),
        };
        this.claim(Wish::Recover).await;
        this
    }

    pub async fn claim(&mut self, wish: Wish) {
        self.generation = self.log.claim(wish, claim).await.unwrap().generation;
        self.log.write_closure(self.generation).await.unwrap();
    }

    pub async fn epoch(&mut self) -> Epoch {
        let (epoch, parent) = (self.log.fold().next_epoch(), self.log.fold().head());
        let n = epoch.get();
        let mut table = self.worlds[&parent].clone();
        let id = PackId {
            log: self.log.fold().log(),
            epoch,
            generation: self.generation,
            nonce: self.log.nonce(),
        };
        let mut w = PackWriter::new(id, MemberId::ZERO);
        for kg in 0..GROUPS {
            let mut s = SegmentBuilder::default();
            if n.is_multiple_of(7) {
                s.delete_range(b"b", b"c");
                table.retain(|(g, k), _| *g != kg || !k.starts_with(b"b"));
            }
            for (letter, key) in [(b'a', n % 5), (b'b', n % 3), (b'c', n % 11)] {
                let key = vec![letter, key as u8];
                if (n + u64::from(letter)).is_multiple_of(4) {
                    s.delete(&key);
                    table.remove(&(kg, key));
                } else {
                    let value = format!("{n}-{kg}").into_bytes();
                    s.put(&key, &value);
                    table.insert((kg, key), value);
                }
            }
            w.segment(KeyGroup::new(kg), &s);
        }
        let mut chunks = ChunkBuilder::new(40);
        for i in 0..5 {
            let value = format!("row {n} {i}");
            chunks.push(&OutputRecord {
                value: Some(value.as_bytes()),
                ..OutputRecord::default()
            });
        }
        for c in chunks.take() {
            w.chunk(&"out".into(), ShardId::ZERO, &c);
        }
        let (objects, pack) = w.finish();
        transfer::write_pack(self.log.store(), objects)
            .await
            .unwrap();
        let mut bases = Vec::new();
        if n % 6 == 5 && parent > Epoch::ZERO {
            let kg = (n / 6 % u64::from(GROUPS)) as u16;
            bases.push(self.base(kg, parent).await);
        }
        let state = SplitState {
            position: Position::Offset(n as i64 * 10),
            max_event_time: None,
            idle: false,
            done: false,
        };
        let commit = Commit {
            epoch,
            parent,
            now: Micros::new(n as i64),
            offsets: BTreeMap::from([("in".into(), BTreeMap::from([("t/0".into(), state)]))]),
            packs: pack.into_iter().collect(),
            bases,
            ..Commit::default()
        };
        let done = self
            .log
            .fold()
            .done_before(self.log.fold().to_publish().map(|(e, _)| e).rev().nth(1));
        let kind = Kind::Epoch(EpochRecord {
            commit: Some(commit),
            plan: None,
            done_through: done,
        });
        self.log.append(self.generation, kind).await.unwrap();
        self.worlds.insert(epoch, table);
        epoch
    }

    async fn base(&mut self, kg: u16, epoch: Epoch) -> BaseRef {
        let mut body = Vec::new();
        for ((g, k), v) in &self.worlds[&epoch] {
            if *g == kg {
                body.extend([k.len() as u8, v.len() as u8]);
                body.extend(k);
                body.extend(v);
            }
        }
        let folder = base::folder(KeyGroup::new(kg), epoch, self.generation, self.log.nonce());
        let file = BaseFile {
            name: "1.sst".into(),
            id: format!("{epoch}-{kg}"),
            path: format!("{folder}/1.sst"),
            length: body.len() as u64,
            crc: crc32c::crc32c(&body),
        };
        self.log.store().put(&file.path, body.into()).await.unwrap();
        let manifest =
            BaseManifest::new(self.log.fold().log(), KeyGroup::new(kg), epoch, vec![file]);
        let (bytes, base) = manifest.encode(&folder).unwrap();
        self.log
            .store()
            .put(&base.path, bytes.into())
            .await
            .unwrap();
        self.bases.insert(kg, base.clone());
        base
    }
}

async fn object(store: &CheckpointStore, path: &str) -> Result<bytes::Bytes, LogError> {
    store.get(path).await?.ok_or_else(|| LogError::Missing {
        object: store.key(path),
    })
}

/// Everything that a restore of `target` (`None`: the head) reads, checked.
pub async fn read(
    store: &CheckpointStore,
    options: Options,
    target: Option<Epoch>,
) -> Result<World, LogError> {
    let Some(mut log) = JobLog::open(store.clone(), options).await? else {
        return Err(LogError::Missing {
            object: store.key("log"),
        });
    };
    let target = target.unwrap_or(log.fold().head());
    let plan = log.restore(target).await?;
    let refuse = |path: &str, source| LogError::Unreadable {
        object: store.key(path),
        source,
    };
    let id = log.fold().log();
    let mut table = Table::new();
    for (kg, chain) in &plan.state.chains {
        if let Some(b) = &chain.base {
            let manifest = object(store, &b.path).await?;
            let manifest =
                BaseManifest::decode(&manifest, b, id).map_err(|e| refuse(&b.path, e))?;
            for f in &manifest.files {
                let body = object(store, &f.path).await?;
                let mut body = base::check_file(f, &body).map_err(|e| refuse(&f.path, e))?;
                while let [k, v, rest @ ..] = body {
                    let (key, rest) = rest.split_at(*k as usize);
                    let (value, rest) = rest.split_at(*v as usize);
                    table.insert((kg.get(), key.to_vec()), value.to_vec());
                    body = rest;
                }
            }
        }
        for s in &chain.segments {
            let pack = plan
                .state
                .pack(*s)
                .expect("a segment's pack is in the state");
            let index = transfer::read_index(store, id, pack).await?;
            let Some(section) = index.section(&SectionName::State(*kg)) else {
                continue;
            };
            let bytes = transfer::read_section(store, pack, section).await?;
            let segment = Segment::open(&bytes).map_err(|e| refuse(&pack.path, e))?;
            for d in segment.range_deletes() {
                table.retain(|(g, k), _| *g != kg.get() || &k[..] < d.from || &k[..] >= d.to);
            }
            for c in segment.changes() {
                match c.value {
                    Some(v) => table.insert((kg.get(), c.key.to_vec()), v.to_vec()),
                    None => table.remove(&(kg.get(), c.key.to_vec())),
                };
            }
        }
    }
    let mut outputs = Vec::new();
    for (epoch, _) in &plan.to_publish {
        let entry = log
            .fold()
            .commit(*epoch)
            .expect("what is to be published is in memory");
        for pack in &entry.commit.packs {
            let index = transfer::read_index(store, id, pack).await?;
            let sections: Vec<_> = index.chunks(&"out".into(), ShardId::ZERO).collect();
            for (_, section) in sections {
                let bytes = transfer::read_section(store, pack, section).await?;
                for r in Outputs::new(&bytes, section.items) {
                    let r = r.map_err(|e| refuse(&pack.path, e))?;
                    outputs.push((*epoch, r.value.unwrap_or_default().to_vec()));
                }
            }
        }
    }
    let offset = plan
        .state
        .offsets
        .values()
        .flat_map(|s| s.values())
        .next()
        .map(|s| s.position.clone());
    Ok(World {
        head: target,
        offset,
        table,
        outputs,
    })
}
