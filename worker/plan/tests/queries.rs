//! Plans of whole queries, as `penstock plan` shows them.

mod job;

use job::{NEXMARK_VIEWS, plan};
use penstock_plan::explain;

const ALLOW: &str = "  sqlOptions: {allowUnboundedState: true}\n";
const HOP: &str =
    "TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND))";

fn tumble(table: &str) -> String {
    format!("TABLE(TUMBLE(TABLE {table}, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))")
}

fn check(name: &str, sql: &str, extra: &str) {
    let text = match plan(sql, extra) {
        Ok(plan) => explain(&plan),
        Err(faults) => panic!(
            "{name}: {}",
            faults
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        ),
    };
    insta::with_settings!({snapshot_suffix => name, description => sql.to_owned(), omit_expression => true, prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("plan", text);
    });
}

fn nexmark(name: &str, query: &str) {
    check(
        name,
        &format!("{}INSERT INTO out {query}", NEXMARK_VIEWS.trim_start()),
        "",
    );
}

#[test]
fn nexmark_queries() {
    nexmark(
        "q0",
        "SELECT auction, bidder, price, `dateTime`, extra FROM bid",
    );
    nexmark(
        "q1",
        "SELECT auction, bidder, 0.908 * price AS price, `dateTime`, extra FROM bid",
    );
    nexmark(
        "q2",
        "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0",
    );
    nexmark(
        "q5",
        &format!(
            "SELECT AB.auction, AB.num, AB.starttime, AB.endtime FROM
  (SELECT auction, count(*) AS num, window_start AS starttime, window_end AS endtime FROM {HOP} GROUP BY auction, window_start, window_end) AS AB
  JOIN (SELECT max(CB.num) AS maxn, CB.starttime, CB.endtime FROM
    (SELECT count(*) AS num, window_start AS starttime, window_end AS endtime FROM {HOP} GROUP BY auction, window_start, window_end) AS CB
    GROUP BY CB.starttime, CB.endtime) AS MB
  ON AB.starttime = MB.starttime AND AB.endtime = MB.endtime AND AB.num >= MB.maxn"
        ),
    );
    nexmark(
        "q7t",
        &format!(
            "SELECT auction, bidder, price, `dateTime`, extra, window_end FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY price DESC) AS rn FROM {}) WHERE rn <= 1",
            tumble("bid")
        ),
    );
    nexmark(
        "q8",
        &format!(
            "SELECT P.id, P.name, P.starttime FROM
  (SELECT id, name, window_start AS starttime, window_end AS endtime FROM {} GROUP BY id, name, window_start, window_end) P
  JOIN (SELECT seller, window_start AS starttime, window_end AS endtime FROM {} GROUP BY seller, window_start, window_end) A
  ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime",
            tumble("person"),
            tumble("auction")
        ),
    );
}

#[test]
fn flights() {
    check(
        "flights",
        "INSERT INTO out SELECT origin, window_start, window_end, COUNT(*) AS flights, SUM(delay) AS delay, AVG(delay) AS mean
FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY origin, window_start, window_end;
INSERT INTO second SELECT origin, window_start, window_end, COUNT(*) AS flights, SUM(delay) AS delay
FROM TABLE(HOP(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '6' HOURS)) GROUP BY origin, window_start, window_end",
        "",
    );
}

#[test]
fn stateless_queries() {
    check(
        "filter",
        "INSERT INTO out SELECT origin, day, received FROM flights WHERE delay > 15 AND dest IN ('JFK', 'LGA')",
        "",
    );
    check("star", "INSERT INTO out SELECT * FROM plain", "");
    check(
        "column_list",
        "INSERT INTO out (a, b) SELECT k, upper(v) FROM plain",
        "",
    );
    check(
        "union",
        "INSERT INTO out SELECT origin AS place, delay FROM flights UNION ALL SELECT dest, delay + 1 FROM flights",
        "",
    );
    check(
        "two_inserts_one_sink",
        "INSERT INTO out SELECT origin AS place FROM flights;\nINSERT INTO out SELECT dest AS place FROM flights WHERE delay > 0",
        "",
    );
    check(
        "now",
        "INSERT INTO out SELECT k, now() AS at FROM plain",
        "",
    );
    check(
        "quoted",
        "INSERT INTO out SELECT \"k\" AS `a b` FROM plain AS p WHERE p.`k` > 1 + 1",
        "",
    );
    check(
        "shared_view",
        "CREATE VIEW late AS SELECT origin, delay * 2 AS twice, ts FROM flights WHERE delay > 0;\nINSERT INTO out SELECT origin FROM late;\nINSERT INTO second SELECT twice FROM late WHERE twice > 10",
        "",
    );
}

#[test]
fn windows() {
    check(
        "named_arguments",
        "INSERT INTO out SELECT window_end, COUNT(DISTINCT dest) AS dests, COUNT(*) FILTER (WHERE delay > 0) AS late FROM TUMBLE(DATA => TABLE flights, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '10' MINUTES) GROUP BY window_start, window_end HAVING COUNT(*) > 3",
        "",
    );
    check(
        "spark_window",
        "INSERT INTO out SELECT window.start, window.end, origin, count(*) AS n FROM flights WHERE delay > 0 GROUP BY window(ts, '10 minutes', '5 minutes'), origin",
        "",
    );
    check(
        "arroyo_tumble",
        "INSERT INTO out SELECT count(*) AS n, tumble(interval '1 minute') AS w FROM flights GROUP BY w",
        "",
    );
    check(
        "old_flink_tumble",
        "INSERT INTO out SELECT TUMBLE_START(ts, INTERVAL '1' HOUR) AS s, MAX(fare) AS m FROM flights f GROUP BY TUMBLE(f.ts, INTERVAL '1' HOUR)",
        "",
    );
    check(
        "offset",
        "INSERT INTO out SELECT window_start, MIN(fare) AS low FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' DAY, INTERVAL '-8' HOUR) GROUP BY window_start, window_end",
        "",
    );
    check(
        "emit_on_update",
        "INSERT INTO changes SELECT origin, window_start, window_end, SUM(distance) AS d FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end EMIT ON UPDATE",
        "",
    );
    check(
        "cascade",
        "CREATE VIEW hourly AS SELECT origin, window_time AS at, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end, window_time;\nINSERT INTO out SELECT window_start, SUM(n) AS n FROM TUMBLE(TABLE hourly, DESCRIPTOR(at), INTERVAL '1' DAY) GROUP BY window_start, window_end",
        "",
    );
    check(
        "raw_window",
        "INSERT INTO out SELECT origin, window_start FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
        "",
    );
    check(
        "array_agg",
        "INSERT INTO out SELECT window_start, ARRAY_AGG(origin) AS origins FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY window_start, window_end",
        "",
    );
}

#[test]
fn filtered_aggregates_keep_their_columns_in_the_final_phase() {
    check(
        "filter_of_aggregate",
        "INSERT INTO out SELECT window_start, MIN(delay) FILTER (WHERE fare > 1) AS low FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY window_start, window_end",
        "",
    );
}

#[test]
fn changing_results() {
    check(
        "group",
        "INSERT INTO changes SELECT origin, COUNT(*) AS n, SUM(delay) AS d FROM flights GROUP BY origin",
        ALLOW,
    );
    check(
        "group_of_group",
        "INSERT INTO changes SELECT n, COUNT(*) AS origins FROM (SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin) GROUP BY n",
        ALLOW,
    );
    check(
        "update_by_another_key",
        "INSERT INTO keyed SELECT origin AS dest, n FROM (SELECT origin, COUNT(*) AS n FROM flights GROUP BY origin) WHERE n > 2",
        "  state: {ttl: 24h}\n",
    );
    check(
        "update_by_primary_key",
        "INSERT INTO keyed SELECT dest, delay FROM flights",
        "",
    );
    check(
        "complete",
        "INSERT INTO whole SELECT carrier, AVG(fare) AS fare FROM flights GROUP BY carrier",
        ALLOW,
    );
    check(
        "global",
        "INSERT INTO whole SELECT COUNT(*) AS n FROM flights",
        "",
    );
    check(
        "distinct",
        "INSERT INTO out SELECT DISTINCT origin, dest FROM flights",
        ALLOW,
    );
    check(
        "distinct_in_window",
        "INSERT INTO out SELECT DISTINCT origin, window_start, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
        "",
    );
}

#[test]
fn deduplication() {
    check(
        "first_by_time",
        "INSERT INTO out SELECT origin, dest, ts FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY ts) AS rn FROM flights) WHERE rn = 1",
        "  state: {ttl: 24h}\n",
    );
    check(
        "last_by_time",
        "CREATE VIEW ranked AS SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY ts DESC) AS num FROM flights;\nINSERT INTO changes SELECT origin, dest FROM ranked r WHERE r.num < 2 AND dest <> 'X'",
        ALLOW,
    );
    check(
        "best",
        "INSERT INTO changes SELECT origin, fare FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY origin ORDER BY fare DESC, dest) = 1",
        ALLOW,
    );
    check(
        "best_of_aggregate",
        "INSERT INTO out SELECT window_start, origin, n FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY n DESC) AS rn FROM (SELECT origin, window_start, window_end, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end)) WHERE 1 >= rn",
        "",
    );
}

#[test]
fn joins() {
    check(
        "comma_join",
        "CREATE VIEW a AS SELECT origin, window_start, window_end, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end;
CREATE VIEW b AS SELECT dest, window_start, window_end, COUNT(*) AS n FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY dest, window_start, window_end;
INSERT INTO out SELECT a.origin, a.n AS leaving, b.n AS coming, a.window_start FROM a, b WHERE a.window_start = b.window_start AND a.window_end = b.window_end AND upper(a.origin) = b.dest AND a.n > 5",
        "",
    );
    check(
        "raw_windows",
        "INSERT INTO out SELECT l.origin, r.carrier FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) l JOIN TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) r ON l.window_start = r.window_start AND l.window_end = r.window_end AND l.dest = r.origin",
        "",
    );
}
