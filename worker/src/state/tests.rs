//! Contract of the state.
use super::*;

#[test]
fn a_value_is_seen_through_every_tier() {
    let t = TableId::of("u", "t");
    let mut s = SlotState::in_memory(0..4, 4);
    s.register(t, None);
    s.put(t, 1, b"a", b"1", 0);
    let l1 = s.freeze(1).expect("changed");
    s.put(t, 1, b"b", b"2", 0);
    s.delete_prefix(t, 1, b"a");
    s.put(t, 1, b"ab", b"3", 0);
    let l2 = s.freeze(2).expect("changed");
    s.delete(t, 1, b"b");
    let read = |s: &mut SlotState| {
        s.get_many(t, &[(1, b"a"), (1, b"b"), (1, b"ab"), (2, b"a")], 0)
            .expect("reads")
    };
    assert_eq!(
        read(&mut s),
        vec![None, None, Some(Bytes::from_static(b"3")), None]
    );
    assert_eq!(
        s.scan(t, 1, b"", None, 9, 0).expect("scans"),
        vec![(Bytes::from_static(b"ab"), Bytes::from_static(b"3"))]
    );
    let mut r = SlotState::in_memory(0..4, 4);
    for l in [&l1, &l2] {
        assert_eq!(l.key_groups(), vec![1]);
        r.load_segment(&l.segment(1).expect("encodes"))
            .expect("loads");
    }
    assert_eq!(
        read(&mut r),
        vec![
            None,
            Some(Bytes::from_static(b"2")),
            Some(Bytes::from_static(b"3")),
            None
        ]
    );
}
