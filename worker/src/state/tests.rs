//! The contract of the state against a plain model, on both backends, and what must never be read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const GROUPS: u16 = 3;
const TTL: u64 = 50;

fn tables() -> [(TableId, Option<u64>); 2] {
    [
        (TableId::of("a", "plain"), None),
        (TableId::of("a", "timed"), Some(TTL)),
    ]
}

#[derive(Debug, Clone)]
enum Op {
    Put(usize, u16, Vec<u8>, u8),
    Delete(usize, u16, Vec<u8>),
    DeletePrefix(usize, u16, Vec<u8>),
    Get(usize, Vec<(u16, Vec<u8>)>),
    Scan(usize, u16, Vec<u8>, Option<Vec<u8>>, usize),
    Freeze,
    /// Commits all frozen epochs; whether to wait for the applier.
    Commit(bool),
    Spill,
    Tick(u8),
    Flush,
    /// The process ends in order, or is killed, and comes back with its volume.
    Reopen {
        kill: bool,
    },
    /// The volume is lost: bases and later segments.
    LoseVolume,
    TakeBases,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few letters, the extreme bytes among them; long enough to pass the eight bytes that presence looks at.
    let letter = prop_oneof![Just(0u8), Just(b'a'), Just(0xff)];
    prop_oneof![
        3 => prop::collection::vec(letter.clone(), 0..4),
        1 => prop::collection::vec(letter, 8..11),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let t = 0..2usize;
    let g = 0..GROUPS;
    prop_oneof![
        12 => (t.clone(), g.clone(), key(), any::<u8>()).prop_map(|(t, g, k, v)| Op::Put(t, g, k, v)),
        3 => (t.clone(), g.clone(), key()).prop_map(|(t, g, k)| Op::Delete(t, g, k)),
        3 => (t.clone(), g.clone(), key()).prop_map(|(t, g, k)| Op::DeletePrefix(t, g, k)),
        6 => (t.clone(), prop::collection::vec((g.clone(), key()), 1..6)).prop_map(|(t, k)| Op::Get(t, k)),
        6 => (t, g, key(), prop::option::of(key()), 1..6usize)
            .prop_map(|(t, g, p, a, n)| Op::Scan(t, g, p, a, n)),
        5 => Just(Op::Freeze),
        3 => any::<bool>().prop_map(Op::Commit),
        2 => Just(Op::Spill),
        2 => (0..40u8).prop_map(Op::Tick),
        1 => Just(Op::Flush),
        1 => any::<bool>().prop_map(|kill| Op::Reopen { kill }),
        1 => Just(Op::LoseVolume),
        1 => Just(Op::TakeBases),
    ]
}

type Model = BTreeMap<(usize, u16, Vec<u8>), (u8, i64)>;

struct Committed {
    epoch: u64,
    segments: BTreeMap<u16, Vec<u8>>,
}

fn checksum(epoch: u64) -> u32 {
    epoch as u32 * 7 + 1
}

fn options(dir: Option<&Path>, nonce: u64) -> StateOptions {
    StateOptions {
        dir: dir.map(Path::to_owned),
        total_groups: GROUPS,
        log_id: "log".into(),
        schema_fingerprint: "schema".into(),
        nonce,
        budget: Budget::new(64 << 20),
        stateful: true,
        planted: Planted::default(),
    }
}

struct World {
    rocks: bool,
    starts: u64,
    worker: Option<StateWorker>,
    slot: Option<SlotState>,
    model: Model,
    /// The model at each frozen epoch that is not committed.
    pending: Vec<(std::sync::Arc<FrozenLayer>, Model)>,
    committed: Vec<Committed>,
    committed_model: Model,
    bases: BTreeMap<u16, Base>,
    epoch: u64,
    now: i64,
    planted: Planted,
    /// Too small a budget evicts the clean cache and spills what is frozen.
    budget: usize,
    /// Last: an instance whose folder goes before it is closed waits a second for it.
    root: tempfile::TempDir,
}

impl World {
    fn new(rocks: bool, planted: Planted, budget: usize) -> Self {
        let mut world = Self {
            root: tempfile::tempdir().unwrap(),
            rocks,
            starts: 0,
            worker: None,
            slot: None,
            model: Model::new(),
            pending: Vec::new(),
            committed: Vec::new(),
            committed_model: Model::new(),
            bases: BTreeMap::new(),
            epoch: 0,
            now: 1000,
            planted,
            budget,
        };
        world.start();
        world
    }

    fn dir(&self) -> Option<std::path::PathBuf> {
        self.rocks
            .then(|| self.root.path().join(format!("v{}", self.starts)))
    }

    /// Recovers the newest commit: what the volume holds, else the base, then the segments that follow.
    fn start(&mut self) {
        let dir = self.dir();
        self.starts += 1;
        let next = self.dir();
        if let (Some(from), Some(to)) = (dir, next)
            && from.exists()
        {
            fs::rename(from, to).unwrap();
        }
        let mut options = options(self.dir().as_deref(), self.starts);
        options.planted = self.planted;
        options.budget = Budget::new(self.budget);
        let worker = StateWorker::open(options).unwrap();
        let groups: Vec<u16> = (0..GROUPS).collect();
        let known: Vec<u64> = self.committed.iter().map(|c| c.epoch).collect();
        let stands = worker
            .instances()
            .open_groups(&groups, &|e, c| known.contains(&e) && c == checksum(e))
            .unwrap();
        for (group, mut at) in stands {
            if at.is_none()
                && let Some(base) = self.bases.get(&group)
            {
                let Identity {
                    epoch,
                    commit_checksum,
                    ..
                } = base.identity;
                worker
                    .instances()
                    .restore_base(group, &base.files, epoch, commit_checksum)
                    .unwrap();
                at = Some(epoch);
            }
            for c in &self.committed {
                if at.is_none_or(|at| c.epoch > at)
                    && let Some(bytes) = c.segments.get(&group)
                {
                    let segment = Segment::parse(Bytes::from(bytes.clone())).unwrap();
                    worker
                        .instances()
                        .load_segments(group, &[segment], c.epoch, checksum(c.epoch))
                        .unwrap();
                }
            }
        }
        let mut slot = worker.slot(0..GROUPS).unwrap();
        for (table, ttl) in tables() {
            slot.register(table, ttl);
        }
        self.worker = Some(worker);
        self.slot = Some(slot);
        self.pending.clear();
        self.model = self.committed_model.clone();
    }

    fn slot(&mut self) -> &mut SlotState {
        self.slot.as_mut().unwrap()
    }

    fn worker(&self) -> &StateWorker {
        self.worker.as_ref().unwrap()
    }

    fn visible(&self, t: usize, written: i64) -> bool {
        tables()[t]
            .1
            .is_none_or(|ttl| self.now - written <= ttl as i64)
    }

    fn value(v: u8) -> Vec<u8> {
        vec![v; usize::from(v) % 19]
    }

    fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let now = self.now;
        match op {
            Op::Put(t, g, k, v) => {
                self.slot()
                    .put(tables()[*t].0, *g, k, &Self::value(*v), now);
                self.model.insert((*t, *g, k.clone()), (*v, now));
            }
            Op::Delete(t, g, k) => {
                self.slot().delete(tables()[*t].0, *g, k);
                self.model.remove(&(*t, *g, k.clone()));
            }
            Op::DeletePrefix(t, g, p) => {
                self.slot().delete_prefix(tables()[*t].0, *g, p);
                self.model
                    .retain(|(mt, mg, mk), _| !(mt == t && mg == g && mk.starts_with(p)));
            }
            Op::Get(t, keys) => {
                let asked: Vec<(u16, &[u8])> = keys.iter().map(|(g, k)| (*g, &k[..])).collect();
                let got = self.slot().get_many(tables()[*t].0, &asked, now).unwrap();
                for ((g, k), got) in keys.iter().zip(got) {
                    let wanted = self
                        .model
                        .get(&(*t, *g, k.clone()))
                        .filter(|(_, at)| self.visible(*t, *at))
                        .map(|(v, _)| Bytes::from(Self::value(*v)));
                    prop_assert_eq!(got, wanted, "get {} {} {:?}", t, g, k);
                }
            }
            Op::Scan(t, g, p, after, n) => self.scan(*t, *g, p, after.as_deref(), *n)?,
            Op::Freeze => {
                self.epoch += 1;
                let epoch = self.epoch;
                if let Some(layer) = self.slot().freeze(epoch) {
                    self.pending.push((layer, self.model.clone()));
                }
            }
            Op::Commit(wait) => {
                for (layer, model) in std::mem::take(&mut self.pending) {
                    let epoch = layer.epoch();
                    let segments = layer
                        .key_groups()
                        .into_iter()
                        .map(|g| (g, layer.segment(g).unwrap()))
                        .collect();
                    self.committed.push(Committed { epoch, segments });
                    self.committed_model = model;
                    self.worker().commit(Commit {
                        epoch,
                        checksum: checksum(epoch),
                        now_ms: now,
                        layers: vec![layer],
                    });
                }
                if *wait {
                    self.worker().wait_applied().unwrap();
                }
            }
            Op::Spill => self.slot().spill(),
            Op::Tick(ms) => self.now += i64::from(*ms),
            Op::Flush => self.worker().flush().unwrap(),
            Op::Reopen { kill } => {
                let snapshot = kill.then(|| self.snapshot()).flatten();
                self.slot = None;
                self.worker = None;
                if let (Some(snapshot), Some(dir)) = (snapshot, self.dir()) {
                    fs::remove_dir_all(&dir).unwrap();
                    fs::rename(snapshot, &dir).unwrap();
                }
                self.start();
            }
            Op::LoseVolume => {
                self.slot = None;
                self.worker = None;
                if let Some(dir) = self.dir() {
                    fs::remove_dir_all(&dir).unwrap();
                }
                self.start();
            }
            Op::TakeBases => {
                self.worker().wait_applied().unwrap();
                for g in 0..GROUPS {
                    if let Ok(base) = self.worker().base_maker(g).and_then(|make| make()) {
                        self.keep(g, base);
                    }
                }
            }
        }
        Ok(())
    }

    /// What a kill at this moment leaves on the volume: the files, not what is in write buffers.
    /// A kill is one moment and a copy is not: `RocksDB` deletes and renames files by itself, so
    /// what changed under the copy is copied again.
    fn snapshot(&self) -> Option<std::path::PathBuf> {
        self.worker().wait_applied().unwrap();
        let dir = self.dir()?;
        let to = self.root.path().join("killed");
        for g in 0..GROUPS {
            let kg = format!("kg-{g:05}");
            let (from, to) = (dir.join(&kg), to.join(&kg));
            let mut tries = 0;
            while !copied(&from, &to).unwrap() {
                tries += 1;
                assert!(tries < 100, "{} never stands still", from.display());
            }
        }
        Some(to)
    }

    /// Uploads a base: each unique name once.
    fn keep(&mut self, group: u16, mut base: Base) {
        let store = self.root.path().join("store");
        fs::create_dir_all(&store).unwrap();
        for f in &mut base.files {
            let to = store.join(&f.unique);
            if to.exists() {
                assert_eq!(
                    fs::read(&to).unwrap(),
                    fs::read(&f.path).unwrap(),
                    "{}",
                    f.unique
                );
            } else {
                fs::copy(&f.path, &to).unwrap();
            }
        }
        StateWorker::forget_base(&base).unwrap();
        for f in &mut base.files {
            f.path = store.join(&f.unique);
        }
        self.bases.insert(group, base);
    }

    fn scan(
        &mut self,
        t: usize,
        g: u16,
        p: &[u8],
        after: Option<&[u8]>,
        n: usize,
    ) -> Result<(), TestCaseError> {
        let now = self.now;
        let got = self
            .slot()
            .scan(tables()[t].0, g, p, after, n, now)
            .unwrap();
        let wanted: Vec<(Bytes, Bytes)> = self
            .model
            .iter()
            .filter(|((mt, mg, k), (_, at))| {
                *mt == t
                    && *mg == g
                    && k.starts_with(p)
                    && after.is_none_or(|a| &k[..] > a)
                    && self.visible(t, *at)
            })
            .take(n)
            .map(|((_, _, k), (v, _))| (Bytes::from(k.clone()), Bytes::from(Self::value(*v))))
            .collect();
        prop_assert_eq!(got, wanted, "scan {} {} {:?} after {:?}", t, g, p, after);
        Ok(())
    }
}

/// Whether the copy at `to` is of one moment: the files of `from` before are those after.
fn copied(from: &Path, to: &Path) -> std::io::Result<bool> {
    let files = || -> std::io::Result<Vec<(std::ffi::OsString, u64)>> {
        let mut all = Vec::new();
        for f in fs::read_dir(from)? {
            let f = f?;
            match f.metadata() {
                Ok(m) => all.push((f.file_name(), m.len())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        all.sort();
        Ok(all)
    };
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    let before = files()?;
    for (name, _) in before.iter().filter(|(name, _)| name != "LOCK") {
        match fs::copy(from.join(name), to.join(name)) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(before == files()?)
}

fn contract(rocks: bool, ops: &[Op], planted: Planted) -> Result<(), TestCaseError> {
    with_budget(rocks, ops, planted, AMPLE)
}

const AMPLE: usize = 64 << 20;

/// From nothing fits to almost everything fits.
fn budget() -> impl Strategy<Value = usize> {
    prop_oneof![Just(AMPLE), Just(1000), 4_000..40_000usize]
}

fn with_budget(
    rocks: bool,
    ops: &[Op],
    planted: Planted,
    budget: usize,
) -> Result<(), TestCaseError> {
    let mut world = World::new(rocks, planted, budget);
    for op in ops {
        world.run(op)?;
    }
    for t in 0..2 {
        for g in 0..GROUPS {
            world.scan(t, g, &[], None, usize::MAX)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]
    #[test]
    fn state_over_memory_equals_the_model(ops in prop::collection::vec(op(), 1..120), budget in budget()) {
        with_budget(false, &ops, Planted::default(), budget)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, max_shrink_iters: 200, ..Default::default() })]
    #[test]
    fn state_over_rocksdb_equals_the_model(ops in prop::collection::vec(op(), 1..120), budget in budget()) {
        with_budget(true, &ops, Planted::default(), budget)?;
    }

    #[test]
    fn corrupt_segments_are_refused(at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<bool>()) {
        let t = TableId::of("u", "t");
        let mut s = SlotState::in_memory(0..1, 1);
        s.delete_prefix(t, 0, b"w");
        for i in 0..20u8 {
            s.put(t, 0, &[b'w', i], &[i; 9], 0);
        }
        let mut bytes = s.freeze(1).unwrap().segment(0).unwrap();
        prop_assert_eq!(decode_segment(&bytes).unwrap().len(), 21);
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= flip;
        }
        prop_assert!(decode_segment(&bytes).is_err());
        // With a checksum that matches, bounds are all that protects: no panic.
        if let Some(body) = bytes.len().checked_sub(4) {
            let crc = crc32c::crc32c(&bytes[..body]);
            bytes[body..].copy_from_slice(&crc.to_le_bytes());
            let _ = decode_segment(&bytes);
        }
    }
}

#[test]
fn a_value_is_seen_through_every_tier() {
    let t = TableId::of("u", "t");
    let mut s = SlotState::in_memory(0..4, 4);
    s.register(t, None);
    s.put(t, 1, b"a", b"1", 0);
    let l1 = s.freeze(1).unwrap();
    s.put(t, 1, b"b", b"2", 0);
    s.delete_prefix(t, 1, b"a");
    s.put(t, 1, b"ab", b"3", 0);
    let l2 = s.freeze(2).unwrap();
    s.delete(t, 1, b"b");
    let read = |s: &mut SlotState| {
        s.get_many(t, &[(1, b"a"), (1, b"b"), (1, b"ab"), (2, b"a")], 0)
            .unwrap()
    };
    let three = Some(Bytes::from_static(b"3"));
    assert_eq!(read(&mut s), vec![None, None, three.clone(), None]);
    let mut r = SlotState::in_memory(0..4, 4);
    for l in [&l1, &l2] {
        assert_eq!(l.key_groups(), vec![1]);
        r.load_segment(&l.segment(1).unwrap()).unwrap();
    }
    let two = Some(Bytes::from_static(b"2"));
    assert_eq!(read(&mut r), vec![None, two, three, None]);
}

#[test]
fn a_range_delete_replayed_after_a_later_put_is_caught() {
    let ops = [
        Op::Put(0, 0, b"w1".to_vec(), 1),
        Op::Freeze,
        Op::DeletePrefix(0, 0, b"w".to_vec()),
        Op::Put(0, 0, b"w2".to_vec(), 2),
        Op::Freeze,
        Op::Commit(true),
        Op::Reopen { kill: true },
    ];
    let planted = Planted {
        volume_without_identity: false,
        range_delete_after_put: true,
    };
    for rocks in [false, true] {
        contract(rocks, &ops, Planted::default()).unwrap();
        contract(rocks, &ops, planted).unwrap_err();
    }
}

#[test]
fn a_table_deleted_whole_and_written_again_in_one_epoch_is_found() {
    let ops = [
        Op::Put(0, 0, b"a".to_vec(), 1),
        Op::Freeze,
        Op::DeletePrefix(0, 0, Vec::new()),
        Op::Put(0, 0, b"b".to_vec(), 2),
        Op::Freeze,
        Op::Commit(true),
        Op::Reopen { kill: true },
    ];
    for rocks in [false, true] {
        contract(rocks, &ops, Planted::default()).unwrap();
    }
}

#[test]
fn what_an_operator_left_behind_is_deleted_when_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (stays, goes) = (TableId::of("stays", "rows"), TableId::of("goes", "rows"));
    for dir in [None, Some(folder.path())] {
        let worker = StateWorker::open(options(dir, 1)).unwrap();
        worker
            .instances()
            .open_groups(&[0, 1, 2], &|_, _| true)
            .unwrap();
        let commit = |slot: &mut SlotState, epoch| {
            worker.commit(Commit {
                epoch,
                checksum: checksum(epoch),
                now_ms: 0,
                layers: slot.freeze(epoch).into_iter().collect(),
            });
            worker.wait_applied().unwrap();
        };
        let held = |slot: &mut SlotState, table| {
            let keys: [(u16, &[u8]); 2] = [(0, b"12345678"), (2, b"12345678")];
            let found = slot.get_many(table, &keys, 0).unwrap();
            found.iter().flatten().count()
        };
        let mut slot = worker.slot(0..GROUPS).unwrap();
        for (table, group) in [(stays, 0), (stays, 2), (goes, 0), (goes, 2)] {
            slot.put(table, group, b"12345678", b"v", 0);
        }
        commit(&mut slot, 1);
        let mut slot = worker.slot(0..GROUPS).unwrap();
        slot.keep_only(["stays", "goes", "new"]);
        assert!(slot.freeze(2).is_none(), "nothing is strange");
        slot.keep_only(["stays", "new"]);
        assert_eq!((held(&mut slot, stays), held(&mut slot, goes)), (2, 0));
        commit(&mut slot, 2);
        let mut slot = worker.slot(0..GROUPS).unwrap();
        assert_eq!((held(&mut slot, stays), held(&mut slot, goes)), (2, 0));
        slot.keep_only(["stays"]);
        assert!(slot.freeze(3).is_none(), "it is gone already");
    }
}

/// One committed epoch in group 0 of a fresh volume.
fn volume(dir: &Path) {
    let worker = StateWorker::open(options(Some(dir), 1)).unwrap();
    worker
        .instances()
        .open_groups(&[0, 1, 2], &|_, _| true)
        .unwrap();
    let mut slot = worker.slot(0..GROUPS).unwrap();
    slot.put(tables()[0].0, 0, b"k", b"v", 0);
    let layer = slot.freeze(5).unwrap();
    worker.commit(Commit {
        epoch: 5,
        checksum: checksum(5),
        now_ms: 0,
        layers: vec![layer],
    });
    worker.flush().unwrap();
}

#[test]
fn an_instance_is_used_only_with_its_identity() {
    let ancestor = |e: u64, c: u32| e == 5 && c == checksum(5);
    let open = |change: &dyn Fn(&mut StateOptions), group: u16, spoil: &dyn Fn(&Path)| {
        let root = tempfile::tempdir().unwrap();
        volume(root.path());
        spoil(root.path());
        let mut o = options(Some(root.path()), 2);
        change(&mut o);
        let worker = StateWorker::open(o).unwrap();
        worker.instances().open_group(group, &ancestor).unwrap()
    };
    let same = |_: &mut StateOptions| {};
    let whole = |_: &Path| {};
    assert_eq!(open(&same, 0, &whole), Some(5));
    assert_eq!(open(&|o| o.log_id = "other".into(), 0, &whole), None);
    assert_eq!(
        open(&|o| o.schema_fingerprint = "other".into(), 0, &whole),
        None
    );
    let swap = |d: &Path| {
        fs::remove_dir_all(d.join("kg-00001")).unwrap();
        fs::rename(d.join("kg-00000"), d.join("kg-00001")).unwrap();
    };
    assert_eq!(open(&same, 1, &swap), None);
    let spoil = |d: &Path| fs::write(d.join("kg-00000/CURRENT"), b"MANIFEST-999999\n").unwrap();
    assert_eq!(open(&same, 0, &spoil), None);
    let root = tempfile::tempdir().unwrap();
    volume(root.path());
    let worker = StateWorker::open(options(Some(root.path()), 2)).unwrap();
    let other_branch = |e: u64, c: u32| e == 5 && c == checksum(6);
    assert_eq!(
        worker.instances().open_group(0, &other_branch).unwrap(),
        None
    );
}

#[test]
fn a_restored_instance_keeps_the_names_of_its_files() {
    let root = tempfile::tempdir().unwrap();
    volume(&root.path().join("a"));
    let a = StateWorker::open(options(Some(&root.path().join("a")), 2)).unwrap();
    assert_eq!(a.instances().open_group(0, &|_, _| true).unwrap(), Some(5));
    let base = a.base_maker(0).unwrap()().unwrap();
    let b = StateWorker::open(options(Some(&root.path().join("b")), 3)).unwrap();
    b.instances()
        .restore_base(0, &base.files, 5, checksum(5))
        .unwrap();
    let again = b.base_maker(0).unwrap()().unwrap();
    let shared = |base: &Base| -> Vec<String> {
        base.files
            .iter()
            .filter(|f| f.shared)
            .map(|f| f.unique.clone())
            .collect()
    };
    assert!(!shared(&base).is_empty());
    assert!(shared(&base).iter().all(|f| shared(&again).contains(f)));
    assert!(
        b.instances()
            .restore_base(1, &base.files, 5, checksum(5))
            .is_err()
    );
    assert!(
        b.instances()
            .restore_base(0, &base.files, 6, checksum(6))
            .is_err()
    );
}

#[test]
fn too_many_changes_ask_for_a_barrier_and_then_spill() {
    let root = tempfile::tempdir().unwrap();
    let mut o = options(Some(root.path()), 1);
    o.budget = Budget::new(40 << 20);
    let budget = std::sync::Arc::clone(&o.budget);
    let worker = StateWorker::open(o).unwrap();
    worker
        .instances()
        .open_groups(&[0, 1, 2], &|_, _| true)
        .unwrap();
    let mut slot = worker.slot(0..GROUPS).unwrap();
    let t = tables()[0].0;
    let mut asked = false;
    let keys = 200_000u32;
    for i in 0..keys {
        slot.put(t, (i % 3) as u16, &i.to_be_bytes(), &[i as u8; 100], 0);
        asked |= slot.wants_barrier();
        assert!(budget.used(Share::Dirty) <= budget.limit(Share::Dirty) + (1 << 20));
    }
    assert!(asked);
    assert!(slot.dirty_bytes() > budget.limit(Share::Dirty));
    let layer = slot.freeze(1).unwrap();
    worker.commit(Commit {
        epoch: 1,
        checksum: 1,
        now_ms: 0,
        layers: vec![layer],
    });
    let check = |slot: &mut SlotState| {
        for i in (0..keys).step_by(997) {
            let got = slot
                .get_many(t, &[((i % 3) as u16, &i.to_be_bytes())], 0)
                .unwrap();
            assert_eq!(got[0].as_deref(), Some(&[i as u8; 100][..]));
        }
    };
    check(&mut slot);
    worker.wait_applied().unwrap();
    check(&mut slot);
    assert_eq!(budget.used(Share::Frozen), 0);
    drop(slot);
    assert_eq!(budget.used(Share::Dirty) + budget.used(Share::Clean), 0);
}

#[test]
fn what_tables_take_on_disk_is_told_by_table() {
    let root = tempfile::tempdir().unwrap();
    let [(large, _), (small, _)] = tables();
    let write = |nonce: u64, epoch: u64, keys: u32| {
        let worker = StateWorker::open(options(Some(root.path()), nonce)).unwrap();
        worker
            .instances()
            .open_groups(&[0, 1, 2], &|_, _| true)
            .unwrap();
        let mut slot = worker.slot(0..GROUPS).unwrap();
        for i in 0..keys {
            let value: Vec<u8> = i.to_be_bytes().repeat(25);
            slot.put(large, (i % 3) as u16, &i.to_be_bytes(), &value, 0);
            if i % 10 == 0 {
                slot.put(small, (i % 3) as u16, &i.to_be_bytes(), &value, 0);
            }
        }
        let layers = slot.freeze(epoch).into_iter().collect();
        worker.commit(Commit {
            epoch,
            checksum: 1,
            now_ms: 0,
            layers,
        });
        worker.flush().unwrap();
        [large, small].map(|t| slot.on_disk(&[t]))
    };
    assert_eq!(write(1, 1, 30_000), [0, 0]);
    // A worker that has just begun looks before it applies.
    let [large, small] = write(2, 2, 0);
    assert!(large > 5 * small && small > 10_000, "{large} and {small}");
}
