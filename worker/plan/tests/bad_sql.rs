//! Golden messages of SQL texts that are refused: by name, with position and the way out. Much of this would be ignored or
//! misread if it were not refused.

mod job;

use std::fmt::Write;

use job::{job, plan};

const WINDOWED: &str = "(SELECT origin, window_start, window_end, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end)";

fn cases() -> Vec<String> {
    let hourly = "TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)";
    [
        // Syntax and statements.
        "INSERT INTO out SELEC * FROM plain",
        "INSERT INTO out SELECT k FROM plain WHERE",
        "INSERT INTO out SELECT 'open FROM plain",
        "INSERT INTO out SELECT k FROM plain extra words here",
        "SELECT * FROM plain",
        "CREATE TABLE t (id BIGINT, WATERMARK FOR id AS id) WITH ('connector' = 'kafka')",
        "CREATE FUNCTION f AS 'com.example.F'",
        "SET 'table.exec.mini-batch.enabled' = 'true'",
        "INSERT OVERWRITE out SELECT k FROM plain",
        "CREATE MATERIALIZED VIEW v AS SELECT k FROM plain; INSERT INTO out SELECT k FROM v",
        "CREATE VIEW v AS SELECT k FROM plain",
        "CREATE VIEW plain AS SELECT * FROM flights; INSERT INTO out SELECT * FROM plain",
        // Names.
        "INSERT INTO out SELECT orgin FROM flights",
        "INSERT INTO out SELECT Origin FROM flights",
        "INSERT INTO out SELECT f.origin FROM flights g",
        "INSERT INTO out SELECT * FROM flihgts",
        "INSERT INTO uot SELECT * FROM plain",
        "INSERT INTO out SELECT uper(v) FROM plain",
        "INSERT INTO out SELECT bid.pricee FROM events",
        "INSERT INTO out SELECT k FROM db.plain",
        "INSERT INTO out (a, b) SELECT k FROM plain",
        "INSERT INTO out SELECT k AS a, v AS a FROM plain",
        "CREATE VIEW w AS SELECT l.k, r.k FROM plain l, plain r; INSERT INTO out SELECT * FROM w",
        // Types.
        "INSERT INTO out SELECT k + v FROM plain WHERE v = INTERVAL '1' DAY",
        "INSERT INTO out SELECT abs(v, 1) FROM plain",
        "INSERT INTO out SELECT NULL AS a FROM plain",
        "INSERT INTO out SELECT origin FROM flights UNION ALL SELECT tags FROM flights",
        "INSERT INTO out SELECT origin, COUNT(*) FROM flights",
        // Windows.
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE flights, DESCRIPTOR(received), INTERVAL '1' HOUR)",
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE plain, DESCRIPTOR(k), INTERVAL '1' HOUR)",
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE flights, DESCRIPTOR(tss), INTERVAL '1' HOUR)",
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' MONTH)",
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '0' SECOND)",
        "INSERT INTO out SELECT * FROM TUMBLE(TABLE flights, DESCRIPTOR(ts))",
        "INSERT INTO out SELECT * FROM TUMBLE(flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
        "INSERT INTO out SELECT * FROM HOP(TABLE flights, DESCRIPTOR(ts), INTERVAL '6' HOUR, INTERVAL '1' HOUR)",
        "INSERT INTO out SELECT count(*) FROM flights GROUP BY window(ts, '1 minute', '10 minutes')",
        "INSERT INTO out SELECT * FROM SESSION(TABLE flights PARTITION BY origin, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
        "INSERT INTO out SELECT * FROM TABLE(CUMULATE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '1' DAY))",
        "INSERT INTO out SELECT count(*) FROM flights GROUP BY session_window(ts, '5 minutes')",
        "INSERT INTO out SELECT window_start, COUNT(*) FROM TUMBLE(TABLE plain, DESCRIPTOR(), INTERVAL '1' HOUR) GROUP BY window_start, window_end",
        // Silently ignored or misread otherwise.
        "INSERT INTO out SELECT f.origin FROM flights AS f LEFT JOIN plain FOR SYSTEM_TIME AS OF f.ts AS p ON f.dest = p.v",
        "INSERT INTO out SELECT * FROM plain TABLESAMPLE BERNOULLI (10)",
        "INSERT INTO out SELECT k FROM plain EMIT ON UPDATE",
        "INSERT INTO out SELECT k FROM plain EMIT CHANGES",
        "INSERT INTO out SELECT k FROM plain EMIT ON THURSDAYS",
        "INSERT INTO out SELECT DATE_FORMAT(ts, 'yyyy-MM-dd') FROM flights",
        "INSERT INTO out SELECT k FROM plain FOR UPDATE",
        "INSERT INTO out SELECT k FROM plain SORT BY k",
        "INSERT INTO out SELECT FIRST_VALUE(delay ORDER BY ts) FROM flights",
        "INSERT INTO out SELECT PROCTIME() FROM plain",
        // Joins.
        "INSERT INTO out SELECT l.origin FROM flights l JOIN flights r ON l.dest = r.origin",
        "INSERT INTO out SELECT l.origin FROM flights l JOIN flights r ON l.dest = r.origin AND r.ts BETWEEN l.ts AND l.ts + INTERVAL '1' HOUR",
        "INSERT INTO out SELECT l.origin FROM flights l LEFT JOIN flights r ON l.dest = r.origin",
        "INSERT INTO out SELECT l.origin FROM flights l FULL OUTER JOIN flights r ON l.dest = r.origin",
        "INSERT INTO out SELECT l.origin FROM flights l LEFT SEMI JOIN flights r ON l.dest = r.origin",
        "INSERT INTO out SELECT l.origin FROM flights l NATURAL JOIN flights r",
        "INSERT INTO out SELECT l.origin FROM flights l, LATERAL (SELECT * FROM plain) r",
        "INSERT INTO out SELECT k FROM plain WHERE v IN (SELECT origin FROM flights)",
        "INSERT INTO out SELECT k FROM plain WHERE EXISTS (SELECT 1 FROM flights)",
        "INSERT INTO out SELECT (SELECT MAX(delay) FROM flights) FROM plain",
        // Rows that are ordered, counted, numbered.
        "INSERT INTO out SELECT k FROM plain ORDER BY k",
        "INSERT INTO out SELECT k FROM plain LIMIT 10",
        "INSERT INTO changes SELECT origin FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY delay) AS rn FROM flights) WHERE rn <= 10",
        "INSERT INTO out SELECT origin, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY delay) AS rn FROM flights",
        "INSERT INTO out SELECT origin, SUM(delay) OVER (PARTITION BY origin ORDER BY ts) FROM flights",
        "INSERT INTO out SELECT origin, RANK() OVER (PARTITION BY origin ORDER BY ts) FROM flights",
        "INSERT INTO out SELECT * FROM flights MATCH_RECOGNIZE (PARTITION BY origin ORDER BY ts MEASURES A.delay AS d PATTERN (A B+) DEFINE B AS B.delay > A.delay)",
        "INSERT INTO out SELECT u FROM flights, UNNEST(tags) AS t(u)",
        "INSERT INTO out SELECT unnest(tags) FROM flights",
        "INSERT INTO out SELECT k FROM plain UNION SELECT delay FROM flights",
        "INSERT INTO out SELECT k FROM plain INTERSECT SELECT delay FROM flights",
        "INSERT INTO out SELECT k FROM plain EXCEPT SELECT delay FROM flights",
        "INSERT INTO out SELECT 1",
        "INSERT INTO out VALUES (1)",
        "INSERT INTO changes SELECT origin, COUNT(*) FROM flights GROUP BY ROLLUP (origin)",
        "WITH RECURSIVE r AS (SELECT 1) SELECT * FROM r",
        "INSERT INTO out SELECT DISTINCT ON (k) k, v FROM plain",
        // State and kinds.
        "INSERT INTO changes SELECT origin, COUNT(*) FROM flights GROUP BY origin",
        "INSERT INTO out SELECT DISTINCT origin FROM flights",
        "INSERT INTO changes SELECT origin FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY ts) AS rn FROM flights) WHERE rn = 1",
        "INSERT INTO out SELECT COUNT(*) FROM flights",
        &format!("INSERT INTO out SELECT origin, window_start, COUNT(*) AS n FROM {hourly} GROUP BY origin, window_start, window_end EMIT ON UPDATE"),
        "INSERT INTO changes SELECT origin, delay FROM flights",
        "INSERT INTO keyed SELECT origin FROM flights",
        &format!("INSERT INTO out SELECT a.n FROM {WINDOWED} a JOIN (SELECT window_start, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '2' HOUR)) b ON a.window_start = b.window_start AND a.window_end = b.window_end"),
    ]
    .iter()
    .map(|s| (*s).to_owned())
    .collect()
}

#[test]
fn every_bad_text_is_refused_by_name() {
    let mut golden = String::new();
    let mut wrong = vec![];
    for sql in cases() {
        match plan(&sql, "") {
            Ok(plan) => wrong.push(format!(
                "accepted: {sql}\n{}",
                penstock_plan::explain(&plan)
            )),
            Err(faults) => {
                writeln!(golden, "> {sql}").expect("a string takes all");
                for fault in faults {
                    if fault.path == "spec.sql"
                        && fault.sql_position.is_none()
                        && fault.code.as_str() != "PS0108"
                    {
                        wrong.push(format!("without a position: {fault}"));
                    }
                    if fault.code.entry().is_none() {
                        wrong.push(format!("not in the table of codes: {fault}"));
                    }
                    writeln!(golden, "  {fault}").expect("a string takes all");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, { insta::assert_snapshot!("bad_sql", golden) });
}

#[test]
fn positions_count_lines_and_columns_of_the_sql() {
    let faults = plan("INSERT INTO out\nSELECT\n  mercant_id\nFROM flights", "")
        .expect_err("the column is unknown");
    let position = faults[0].sql_position.expect("it has a position");
    assert_eq!((position.line, position.column), (3, 3));
}

#[test]
fn state_without_bound_passes_with_a_ttl_or_when_allowed() {
    let sql = "INSERT INTO changes SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin";
    assert!(plan(sql, "").is_err());
    assert!(plan(sql, "  state: {ttl: 1h}\n").is_ok());
    assert!(plan(sql, "  sqlOptions: {allowUnboundedState: true}\n").is_ok());
}

#[test]
fn the_same_job_gives_the_same_plan() {
    let sql = "INSERT INTO out SELECT origin, upper(dest) AS d FROM flights WHERE delay > 3";
    let one = penstock_plan::plan(&job(sql, "")).expect("it plans");
    let two = penstock_plan::plan(&job(sql, "")).expect("it plans");
    assert_eq!(one.plan_hash, two.plan_hash);
    let other = plan(&sql.replace('3', "4"), "").expect("it plans");
    assert_ne!(one.plan_hash, other.plan_hash);
}
