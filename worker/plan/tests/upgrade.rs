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
            "another key of the same type",
            edited("GROUP BY origin", "GROUP BY dest").replace("SELECT origin", "SELECT dest"),
            "",
            Outcome::Refused,
        ),
        (
            "another argument of the same type",
            edited("MAX(delay)", "MAX(-delay)"),
            "",
            Outcome::Refused,
        ),
        (
            "a FILTER of the aggregate",
            edited("MAX(delay)", "MAX(delay) FILTER (WHERE fare > 1)"),
            "",
            Outcome::Refused,
        ),
        (
            "names of results, through a view",
            format!(
                "CREATE VIEW far AS SELECT ts AS at, origin AS place, delay AS late FROM flights WHERE distance > 10;\n{}",
                edited(
                    "SELECT origin, MAX(delay)",
                    "SELECT place AS origin, MAX(late)"
                )
                .replace("TABLE flights, DESCRIPTOR(ts)", "TABLE far, DESCRIPTOR(at)")
                .replace("WHERE distance > 10 GROUP BY origin", "GROUP BY place")
            ),
            "",
            Outcome::Restores,
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

/// Verdict on an edit of a job that may keep state for ever.
fn edited(old: &str, new: &str) -> Outcome {
    let of = |sql: &str| {
        let allow = "  sqlOptions: {allowUnboundedState: true}\n";
        plan(sql, allow).unwrap_or_else(|faults| panic!("{sql}: {faults:?}"))
    };
    judge(&of(old), &of(new), &[]).outcome()
}

#[test]
fn columns_are_known_by_where_their_values_come_from() {
    const FIRST: &str = "INSERT INTO out SELECT origin, dest, ts FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY dest ORDER BY ts) AS rn FROM flights) WHERE rn = 1";
    const BEST: &str = "INSERT INTO changes SELECT origin, dest, carrier FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY origin ORDER BY dest) = 1";
    const RAW: &str = "INSERT INTO out SELECT l.carrier, r.dest FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) l JOIN TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) r ON l.window_start = r.window_start AND l.window_end = r.window_end AND l.carrier = r.dest";
    const COUNTS: &str = "INSERT INTO changes SELECT origin, COUNT(dest) AS a, COUNT(carrier) AS b FROM flights GROUP BY origin";
    const OF_COUNTS: &str = "INSERT INTO changes SELECT n, COUNT(*) AS places FROM (SELECT origin, COUNT(dest) AS n FROM flights GROUP BY origin) GROUP BY n";
    const WHOLE: &str =
        "INSERT INTO whole SELECT carrier, COUNT(*) AS n FROM flights GROUP BY carrier";
    const TWICE: &str = "CREATE VIEW doubled AS SELECT origin, delay * 2 AS twice FROM flights;
INSERT INTO changes SELECT origin, SUM(twice + 1) AS s FROM doubled GROUP BY origin";
    const BOTH: &str = "INSERT INTO changes SELECT place, COUNT(*) AS n FROM (SELECT origin AS place FROM flights UNION ALL SELECT dest AS place FROM flights) GROUP BY place";
    use Outcome::{Refused, Restores, StartsEmpty};
    let cases = [
        ("a deduplication's key", FIRST, FIRST.replace("BY dest", "BY origin"), Refused),
        ("its name", FIRST, FIRST.replace("SELECT origin, dest", "SELECT origin AS a, dest AS b"), Restores),
        ("its order", BEST, BEST.replace("ORDER BY dest", "ORDER BY carrier"), Refused),
        ("what it keeps", BEST, BEST.replace("dest, carrier", "dest, upper(carrier) AS carrier"), Restores),
        ("a join's key", RAW, RAW.replace("l.carrier = r.dest", "l.dest = r.carrier"), Refused),
        ("a join's sides", RAW, RAW.replace("l.carrier, r.dest", "l.carrier AS a, r.dest AS b"), Restores),
        ("a join's windows", RAW, RAW.replace("'1' HOUR", "'2' HOUR"), Refused),
        ("arguments that change places", COUNTS, COUNTS.replace("COUNT(dest) AS a, COUNT(carrier)", "COUNT(carrier) AS a, COUNT(dest)"), Refused),
        ("names that change places", COUNTS, COUNTS.replace("AS a", "AS c").replace("AS b", "AS a"), Restores),
        ("an aggregate below", OF_COUNTS, OF_COUNTS.replace("COUNT(dest)", "COUNT(carrier)"), Refused),
        ("a whole result's column", WHOLE, WHOLE.replace("SELECT carrier, COUNT(*)", "SELECT carrier, COUNT(*) * 2"), Refused),
        ("a whole result's name", WHOLE, WHOLE.replace("AS n", "AS flights"), Restores),
        ("an expression in a view", TWICE, TWICE.replace("* 2", "* 3"), Refused),
        ("another reader of the view", TWICE, format!("{TWICE};\nINSERT INTO out SELECT twice FROM doubled"), Restores),
        ("another reader that keeps state", TWICE, format!("{TWICE};\nINSERT INTO keyed SELECT origin AS dest, MAX(twice) AS m FROM doubled GROUP BY origin"), StartsEmpty),
        ("a branch of a union", BOTH, BOTH.replace("SELECT dest AS place", "SELECT carrier AS place"), Refused),
        ("a condition in a branch", BOTH, BOTH.replace("SELECT dest AS place FROM flights", "SELECT dest AS place FROM flights WHERE delay > 0"), Restores),
        ("a computed key", "INSERT INTO changes SELECT day, COUNT(*) AS n FROM flights GROUP BY day", "INSERT INTO changes SELECT CAST(ts AS DATE) AS d, COUNT(*) AS n FROM flights GROUP BY CAST(ts AS DATE)".to_owned(), Restores),
    ];
    for (edit, old, new, expected) in cases {
        assert_ne!(old, new, "{edit}");
        assert_eq!(edited(old, &new), expected, "{edit}");
    }
}

#[test]
fn a_source_column_is_known_by_its_name() {
    let of = |from: &str, to: &str| {
        let sql =
            "INSERT INTO changes SELECT origin AS a, COUNT(*) AS n FROM flights GROUP BY origin";
        let text = job::manifest(
            &sql.replace("origin", to),
            job::PRINT,
            "  sqlOptions: {allowUnboundedState: true}\n",
        );
        let text = text.replace(&format!("name: {from}"), &format!("name: {to}"));
        let resources = penstock_crds::manifest::load(&text, "job.yaml").expect("it loads");
        penstock_plan::plan(resources[0].job().expect("a job")).expect("it plans")
    };
    let (old, new) = (of("origin", "origin"), of("origin", "airport"));
    assert_eq!(judge(&old, &new, &[]).outcome(), Outcome::Refused);
}

/// How the libraries below write an expression is part of every fingerprint: where it has changed, no state of a running job would
/// fit. Then keep the old text, or raise `STATE_FORMAT` and say so.
#[test]
fn fingerprints_stay_what_they_are() {
    let prints = |select: &str| {
        let json = plan_json(&grouped(select));
        let nodes = json["nodes"].as_array().expect("nodes").clone();
        let of = nodes.iter().filter_map(|n| n["fingerprint"].as_str());
        of.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(prints("origin, COUNT(*) AS n"), ["235f9875e4a193a2"]);
    let written = "origin, SUM(CASE WHEN dest LIKE 'J%' THEN CAST(fare AS DOUBLE) ELSE distance / 2 END) AS s, MAX(upper(carrier) || '-') AS m";
    assert_eq!(prints(written), ["b15eee40c595d7bd"]);
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
