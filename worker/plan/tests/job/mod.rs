//! Jobs of the tests: manifests with one SQL text.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use penstock_crds::diagnostic::Diagnostic;
use penstock_crds::job::StreamingJob;
use penstock_crds::manifest::load;
use penstock_plan::Plan;

pub const NEXMARK_VIEWS: &str = "
CREATE VIEW person AS SELECT person.id, person.name, person.city, person.state, `dateTime`, person.extra FROM events WHERE event_type = 0;
CREATE VIEW auction AS SELECT auction.id, auction.itemName, auction.seller, auction.category, `dateTime`, auction.extra FROM events WHERE event_type = 1;
CREATE VIEW bid AS SELECT bid.auction, bid.bidder, bid.price, bid.channel, bid.url, `dateTime`, bid.extra FROM events WHERE event_type = 2;
";

const SOURCES: &str = r#"
    - name: events
      files: {url: "file:///data/events"}
      format: {json: {}}
      columns:
        - {name: event_type, type: INT}
        - {name: person, type: "ROW<id BIGINT, name STRING, emailAddress STRING, creditCard STRING, city STRING, state STRING, `dateTime` TIMESTAMP(3), extra STRING>"}
        - {name: auction, type: "ROW<id BIGINT, itemName STRING, description STRING, initialBid BIGINT, reserve BIGINT, `dateTime` TIMESTAMP(3), expires TIMESTAMP(3), seller BIGINT, category BIGINT, extra STRING>"}
        - {name: bid, type: "ROW<auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` TIMESTAMP(3), extra STRING>"}
        - {name: dateTime, type: TIMESTAMP(3), as: "CASE WHEN event_type = 0 THEN person.`dateTime` WHEN event_type = 1 THEN auction.`dateTime` ELSE bid.`dateTime` END"}
      watermark: {column: dateTime, maxOutOfOrderness: 4s}
    - name: flights
      kafka: {bootstrapServers: "kafka:9093", topics: [flights]}
      format: {json: {}}
      columns:
        - {name: origin, type: STRING, nullable: false}
        - {name: dest, type: STRING}
        - {name: carrier, type: STRING}
        - {name: delay, type: INT}
        - {name: distance, type: DOUBLE}
        - {name: fare, type: "DECIMAL(12,2)"}
        - {name: ts, type: TIMESTAMP(3)}
        - {name: tags, type: "ARRAY<STRING>"}
        - {name: received, type: TIMESTAMP_LTZ(3), from: Timestamp}
        - {name: day, type: DATE, as: "CAST(ts AS DATE)"}
      watermark: {column: ts, maxOutOfOrderness: 30m}
      onLate: DeadLetter
      deadLetters: dlq
    - name: plain
      generator: {rows: 10}
      columns:
        - {name: k, type: BIGINT, generate: {sequence: {}}}
        - {name: v, type: STRING, generate: {text: {}}}
"#;

/// A manifest with this SQL; `extra` are further lines of `spec`.
pub fn manifest(sql: &str, sinks: &str, extra: &str) -> String {
    let sql: String = sql.lines().map(|l| format!("    {l}\n")).collect();
    format!(
        "apiVersion: penstock.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: test, namespace: default}}\nspec:\n  sources:{SOURCES}  sql: |\n{sql}  sinks:\n    - {{name: dlq, files: {{url: \"file:///data/dlq\"}}, format: {{raw: {{}}}}}}\n{sinks}{extra}"
    )
}

pub const PRINT: &str = "    - {name: out, print: {}}\n    - {name: second, print: {}}\n    - {name: changes, print: {}, outputMode: Update}\n    - {name: keyed, print: {}, outputMode: Update, primaryKey: [dest]}\n    - {name: whole, print: {}, outputMode: Complete}\n";

pub fn job(sql: &str, extra: &str) -> StreamingJob {
    let text = manifest(sql, PRINT, extra);
    let resources = load(&text, "job.yaml").unwrap_or_else(|faults| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}\n{text}", texts.join("\n"))
    });
    resources[0].job().expect("a job").clone()
}

pub fn plan(sql: &str, extra: &str) -> Result<Plan, Vec<Diagnostic>> {
    penstock_plan::plan(&job(sql, extra))
}
