use std::sync::Arc;

use arrow::array::{Int64Array, StringArray};

use super::*;
use crate::sinks::staged::records;

fn batch(kinds: Option<&[RowKind]>) -> Batch {
    let k = Int64Array::from(vec![1, 1, 2, 3]);
    let v = StringArray::from(vec![Some("a"), Some("a/b c"), None, Some("é")]);
    let columns: Vec<(&str, ArrayRef)> = vec![("k", Arc::new(k)), ("v", Arc::new(v))];
    let mut batch = Batch::inserts(RecordBatch::try_from_iter(columns).unwrap());
    batch.kinds = kinds.map(Arc::from);
    batch
}

fn plan(key: KeyKind, changes: Changes) -> RowPlan {
    RowPlan {
        name: "s".to_owned(),
        format: ValueFormat::Json(Timestamps::Iso8601),
        key,
        changes,
        shard_by: vec![],
        key_groups: 8,
        shards: 1,
        round_robin: None,
    }
}

fn encode(plan: &RowPlan, batch: &Batch) -> Result<Vec<(Option<String>, Option<String>)>> {
    let mut out = vec![StagedRecords::default()];
    plan.encoder().encode(batch, 0, &mut out)?;
    let text = |b: Option<&[u8]>| b.map(|b| String::from_utf8(b.to_vec()).unwrap());
    let all = records(&out[0].data).map(|r| r.map(|r| (text(r.key), text(r.value))));
    all.collect()
}

fn some(key: &str, value: &str) -> (Option<String>, Option<String>) {
    (Some(key.to_owned()), (value != "-").then(|| value.to_owned()))
}

const CHANGES: [RowKind; 4] = [RowKind::UpdateBefore, RowKind::UpdateAfter, RowKind::Delete, RowKind::Insert];

#[test]
fn changes_become_upserts_and_tombstones() {
    let got = encode(&plan(KeyKind::Columns(vec![0]), Changes::Tombstones), &batch(Some(&CHANGES))).unwrap();
    assert_eq!(
        got,
        [
            some("{\"k\":1}", "{\"k\":1,\"v\":\"a/b c\"}"),
            some("{\"k\":2}", "-"),
            some("{\"k\":3}", "{\"k\":3,\"v\":\"é\"}"),
        ]
    );
}

#[test]
fn changes_are_marked_where_there_is_no_null_value() {
    let got = encode(&plan(KeyKind::None, Changes::Marked), &batch(Some(&CHANGES))).unwrap();
    let values: Vec<String> = got.into_iter().filter_map(|(_, v)| v).collect();
    assert_eq!(
        values,
        [
            r#"{"$op":"+U","k":1,"v":"a/b c"}"#,
            r#"{"$op":"-D","k":2,"v":null}"#,
            r#"{"$op":"+I","k":3,"v":"é"}"#
        ]
    );
}

#[test]
fn a_changed_row_is_refused_in_append_mode() {
    let error = encode(&plan(KeyKind::None, Changes::AppendOnly), &batch(Some(&CHANGES))).unwrap_err();
    assert_eq!(error.code, "PR0209");
}

#[test]
fn folders_are_taken_out_of_the_value() {
    let got = encode(&plan(KeyKind::Folder(vec![1]), Changes::AppendOnly), &batch(None)).unwrap();
    assert_eq!(
        got,
        [
            some("v=a", "{\"k\":1}"),
            some("v=a%2Fb c", "{\"k\":1}"),
            some("v=__HIVE_DEFAULT_PARTITION__", "{\"k\":2}"),
            some("v=%C3%A9", "{\"k\":3}"),
        ]
    );
}

#[test]
fn rows_of_a_key_share_a_shard() {
    let mut plan = plan(KeyKind::None, Changes::AppendOnly);
    (plan.shards, plan.shard_by) = (8, vec![0]);
    let mut out = vec![StagedRecords::default(); 8];
    plan.encoder().encode(&batch(None), 0, &mut out).unwrap();
    let k = |s: &StagedRecords| records(&s.data).map(|r| r.unwrap().value.unwrap()[5]).collect::<Vec<u8>>();
    assert_eq!(out.iter().filter(|s| k(s).contains(&b'1')).count(), 1);
}
