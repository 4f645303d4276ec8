//! Packs are read as they were written, and no damage is read as data.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id() -> PackId {
    PackId {
        log: LogId::from_bytes([1; 16]),
        epoch: Epoch::new(7),
        generation: Generation::new(2),
        nonce: Nonce::from_bytes([2; 16]),
    }
}

type Table = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
type Out = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<i64>,
    Option<i32>,
    Vec<(String, Vec<u8>)>,
);

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn out() -> impl Strategy<Value = Out> {
    let headers = prop::collection::vec(("[a-z]{0,5}", bytes()), 0..3);
    (
        prop::option::of(bytes()),
        prop::option::of(bytes()),
        any::<Option<i64>>(),
        any::<Option<i32>>(),
        headers,
    )
}

fn borrowed(o: &Out) -> OutputRecord<'_> {
    OutputRecord {
        key: o.0.as_deref(),
        value: o.1.as_deref(),
        timestamp: o.2,
        partition: o.3,
        headers: o
            .4
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect(),
    }
}

fn write(tables: &BTreeMap<u16, Table>, outs: &[Out], limit: usize) -> (Vec<PackObject>, PackRef) {
    let mut w = PackWriter::new(id(), MemberId::new(3));
    for (kg, table) in tables {
        let mut s = SegmentBuilder::default();
        s.delete_range(b"a", b"b");
        for (k, v) in table {
            match v {
                Some(v) => s.put(k, v),
                None => s.delete(k),
            }
        }
        w.segment(KeyGroup::new(*kg), &s);
    }
    let mut chunks = ChunkBuilder::new(limit);
    outs.iter().for_each(|o| chunks.push(&borrowed(o)));
    for c in chunks.take() {
        w.chunk(&"sink".into(), ShardId::new(5), &c);
    }
    w.token(&"files".into(), ShardId::ZERO, b"token");
    let (objects, pack) = w.finish();
    (objects, pack.unwrap())
}

proptest! {
    #[test]
    fn a_pack_reads_as_it_was_written(
        tables in prop::collection::btree_map(0u16..8, prop::collection::btree_map(bytes(), prop::option::of(bytes()), 0..20), 0..5),
        outs in prop::collection::vec(out(), 0..30),
        limit in 1usize..200,
    ) {
        let (objects, pack) = write(&tables, &outs, limit);
        let body = &objects.last().unwrap().body;
        let index = PackIndex::of_whole(&pack, id().log, body).unwrap();
        prop_assert_eq!(pack.key_groups.len(), tables.len());
        for (kg, table) in &tables {
            let s = index.section(&SectionName::State(KeyGroup::new(*kg))).unwrap();
            let read = Segment::open(s.check(&body[s.offset as usize..][..s.length as usize]).unwrap()).unwrap();
            prop_assert_eq!(read.range_deletes(), &[RangeDelete { from: b"a", to: b"b" }]);
            let got: Table = read.changes().map(|c| (c.key.to_vec(), c.value.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(&got, table);
        }
        let mut got = 0;
        let sink = SinkName::from("sink");
        for (n, (chunk, s)) in index.chunks(&sink, ShardId::new(5)).enumerate() {
            prop_assert_eq!(chunk as usize, n);
            for r in Outputs::new(&body[s.offset as usize..][..s.length as usize], s.items) {
                prop_assert_eq!(r.unwrap(), borrowed(&outs[got]));
                got += 1;
            }
        }
        prop_assert_eq!(got, outs.len());
    }

    #[test]
    fn nothing_that_is_not_a_segment_or_a_chunk_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), n in any::<u32>()) {
        let _ = Segment::open(&bytes);
        let _ = Outputs::new(&bytes, n).count();
        let _ = crate::Record::decode(&bytes);
    }

    #[test]
    fn a_damaged_pack_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let tables = BTreeMap::from([(1u16, Table::from([(b"k".to_vec(), Some(b"v".to_vec()))]))]);
        let (objects, pack) = write(&tables, &[], 10);
        let mut body = objects[0].body.to_vec();
        let at = at.index(body.len());
        if cut { body.truncate(at) } else { body[at] ^= 1 << bit }
        let whole = PackIndex::of_whole(&pack, id().log, &body).and_then(|index| {
            index.sections().try_for_each(|(_, s)| s.check(&body[s.offset as usize..][..s.length as usize]).map(|_| ()))
        });
        prop_assert!(whole.is_err());
    }
}

#[test]
fn large_outputs_go_beside_the_pack() {
    let outs: Vec<Out> = (0..400)
        .map(|n| (None, Some(vec![n as u8; 2000]), None, None, vec![]))
        .collect();
    let (objects, pack) = write(&BTreeMap::new(), &outs, 100_000);
    assert_eq!(pack.outs.len(), objects.len() - 1);
    assert!(!pack.outs.is_empty());
    assert!(objects.last().unwrap().body.len() < INLINE_OUTPUTS + 10_000);
    let index = PackIndex::of_whole(&pack, id().log, &objects.last().unwrap().body).unwrap();
    let mut n = 0;
    for (_, s) in index.chunks(&"sink".into(), ShardId::new(5)) {
        let object = s
            .out
            .map_or(objects.last().unwrap(), |o| &objects[o as usize]);
        assert_eq!(
            object.path,
            s.out
                .map_or(pack.path.clone(), |o| pack.out_path(o as usize))
        );
        let bytes = s
            .check(&object.body[s.offset as usize..][..s.length as usize])
            .unwrap();
        for r in Outputs::new(bytes, s.items) {
            assert_eq!(r.unwrap().value, Some(&vec![n as u8; 2000][..]));
            n += 1;
        }
    }
    assert_eq!(n, 400);
    assert!(
        PackIndex::of_whole(
            &pack,
            LogId::from_bytes([9; 16]),
            &objects.last().unwrap().body
        )
        .is_err()
    );
}
