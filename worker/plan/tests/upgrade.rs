//! What becomes of state when the SQL changes.

mod job;

use job::plan;
use penstock_plan::{Fate, Plan, plan_json, verdict};

fn grouped(select: &str) -> Plan {
    let sql = format!("INSERT INTO changes SELECT {select} FROM flights GROUP BY origin");
    plan(&sql, "  sqlOptions: {allowUnboundedState: true}\n").expect("it plans")
}

fn fates(old: &Plan, new: &Plan, drop: &[&str]) -> Vec<(String, Fate)> {
    let drop: Vec<String> = drop.iter().map(|s| (*s).to_owned()).collect();
    verdict(&plan_json(old), new, &drop)
        .into_iter()
        .map(|v| (v.uid.0, v.fate))
        .collect()
}

#[test]
fn renaming_a_column_keeps_the_state() {
    let fates = fates(
        &grouped("origin, COUNT(*) AS n"),
        &grouped("origin, COUNT(*) AS flights, 1 AS one"),
        &[],
    );
    assert_eq!(fates, [("changes/aggregate-0".to_owned(), Fate::Restores)]);
}

#[test]
fn another_aggregate_is_refused_until_its_state_may_go() {
    let (old, new) = (
        grouped("origin, COUNT(*) AS n"),
        grouped("origin, SUM(delay) AS n"),
    );
    assert!(matches!(fates(&old, &new, &[])[0].1, Fate::Refused(_)));
    assert_eq!(
        fates(&old, &new, &["changes/aggregate-0"])[0].1,
        Fate::Dropped
    );
}

#[test]
fn an_operator_that_goes_must_be_named_and_one_that_comes_starts_empty() {
    let (with, without) = (
        grouped("origin, COUNT(*) AS n"),
        plan("INSERT INTO out SELECT origin FROM flights", "").expect("it plans"),
    );
    assert!(matches!(fates(&with, &without, &[])[0].1, Fate::Refused(_)));
    assert_eq!(
        fates(&without, &with, &[]),
        [("changes/aggregate-0".to_owned(), Fate::StartsEmpty)]
    );
}
