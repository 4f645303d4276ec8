//! What becomes of state when the SQL changes.

mod job;

use job::plan;
use penstock_crds::job::{Upgrade, UpgradeStrategy};
use penstock_plan::{Fate, Outcome, Plan, Terms, Verdict, plan_json, verdict};

fn grouped(select: &str) -> Plan {
    let sql = format!("INSERT INTO changes SELECT {select} FROM flights GROUP BY origin");
    plan(&sql, "  sqlOptions: {allowUnboundedState: true}\n").expect("it plans")
}

fn judge(old: &Plan, new: &Plan, drop: &[&str]) -> Verdict {
    let drop: Vec<String> = drop.iter().map(|s| (*s).to_owned()).collect();
    let terms = Terms {
        drop_state: &drop,
        stateless: false,
    };
    verdict(&plan_json(old), new, terms)
}

fn fates(old: &Plan, new: &Plan, drop: &[&str]) -> Vec<(String, Fate)> {
    judge(old, new, drop)
        .operators
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
fn another_aggregate_is_refused_even_where_it_is_named() {
    let (old, new) = (
        grouped("origin, COUNT(*) AS n"),
        grouped("origin, SUM(delay) AS n"),
    );
    for named in [&[][..], &["changes/aggregate-0"]] {
        let fates = fates(&old, &new, named);
        assert!(matches!(fates[0].1, Fate::Refused(_)), "{fates:?}");
    }
    // One that stays as it is keeps its state.
    let fates = fates(&old, &old, &["changes/aggregate-0"]);
    assert_eq!(fates[0].1, Fate::Restores);
}

#[test]
fn an_operator_that_goes_must_be_named_and_one_that_comes_starts_empty() {
    let (with, without) = (
        grouped("origin, COUNT(*) AS n"),
        plan("INSERT INTO out SELECT origin FROM flights", "").expect("it plans"),
    );
    assert!(matches!(fates(&with, &without, &[])[0].1, Fate::Refused(_)));
    let named = fates(&with, &without, &["changes/aggregate-0"]);
    assert_eq!(named[0].1, Fate::Dropped);
    assert_eq!(
        fates(&without, &with, &[]),
        [("changes/aggregate-0".to_owned(), Fate::StartsEmpty)]
    );
}

/// The job of the table: a window aggregate, in a cluster.
const BEFORE: &str = "INSERT INTO out SELECT origin, MAX(delay) AS d, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) WHERE distance > 10 GROUP BY origin, window_start, window_end";
const SECOND: &str = "; INSERT INTO second SELECT dest, COUNT(*) AS n, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY dest, window_start, window_end";
const JOINED: &str = "CREATE VIEW a AS SELECT origin, MAX(delay) AS d, window_start, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) WHERE distance > 10 GROUP BY origin, window_start, window_end;
CREATE VIEW b AS SELECT origin, COUNT(*) AS n, window_start, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end;
INSERT INTO out SELECT a.origin, a.d, b.n FROM a JOIN b ON a.origin = b.origin AND a.window_start = b.window_start AND a.window_end = b.window_end";

#[test]
fn every_kind_of_edit_has_its_verdict() {
    let edited = |from: &str, to: &str| {
        let sql = BEFORE.replace(from, to);
        assert_ne!(sql, BEFORE);
        sql
    };
    let second = format!("{BEFORE}{SECOND}");
    let cases = [
        ("nothing", BEFORE.to_owned(), "", Outcome::Restores),
        (
            "the filter",
            edited("distance > 10", "distance > 20"),
            "",
            Outcome::Restores,
        ),
        (
            "a source column that is read for the first time",
            edited("distance > 10", "fare > 10"),
            "",
            Outcome::Restores,
        ),
        (
            "MAX for MIN",
            edited("MAX(delay)", "MIN(delay)"),
            "",
            Outcome::Refused,
        ),
        (
            "one more aggregate",
            edited("AS d", "AS d, COUNT(*) AS n"),
            "",
            Outcome::Refused,
        ),
        (
            "a source column in one more aggregate",
            edited("AS d", "AS d, MAX(fare) AS f"),
            "",
            Outcome::Refused,
        ),
        (
            "one more key",
            edited("GROUP BY origin", "GROUP BY origin, dest"),
            "",
            Outcome::Refused,
        ),
        (
            "another size of the window",
            edited("'1' HOUR", "'2' HOUR"),
            "",
            Outcome::Refused,
        ),
        ("an INSERT of its own", second, "", Outcome::StartsEmpty),
        ("a join", JOINED.to_owned(), "", Outcome::Refused),
        (
            "MAX for MIN, started fresh",
            edited("MAX(delay)", "MIN(delay)"),
            "  startFresh: true\n",
            Outcome::Refused,
        ),
        (
            "MAX for MIN, stateless",
            edited("MAX(delay)", "MIN(delay)"),
            "  upgrade: {strategy: Stateless}\n",
            Outcome::StartsEmpty,
        ),
        (
            "a join, stateless",
            JOINED.to_owned(),
            "  upgrade: {strategy: Stateless}\n",
            Outcome::StartsEmpty,
        ),
        (
            "MAX for MIN, by name",
            edited("MAX(delay)", "MIN(delay)"),
            "  upgrade: {dropState: [out/window-aggregate-0]}\n",
            Outcome::Refused,
        ),
    ];
    let old = plan_json(&plan(BEFORE, "").expect("it plans"));
    for (edit, sql, extra, expected) in cases {
        let job = job::job(&sql, extra);
        let new = penstock_plan::plan(&job).unwrap_or_else(|faults| panic!("{edit}: {faults:?}"));
        let verdict = verdict(&old, &new, Terms::of(&job.spec.upgrade));
        assert_eq!(verdict.outcome(), expected, "{edit}: {verdict:?}");
        let told = verdict.diagnostics();
        let refused = told.iter().any(|d| d.is_error());
        assert_eq!(refused, expected == Outcome::Refused, "{edit}: {told:?}");
        assert_eq!(told.is_empty(), expected == Outcome::Restores, "{edit}");
    }
}

#[test]
fn a_job_without_state_has_nothing_to_lose() {
    let of = |column: &str| plan(&format!("INSERT INTO out SELECT {column} FROM flights"), "");
    let (old, new) = (
        of("origin").expect("it plans"),
        of("dest").expect("it plans"),
    );
    let verdict = judge(&old, &new, &[]);
    assert_eq!(verdict.outcome(), Outcome::Restores);
    assert!(verdict.diagnostics().is_empty());
    let stateless = Upgrade {
        strategy: UpgradeStrategy::Stateless,
        ..Upgrade::default()
    };
    let all = penstock_plan::verdict(&plan_json(&old), &new, Terms::of(&stateless));
    assert!(all.diagnostics().is_empty(), "{all:?}");
}
