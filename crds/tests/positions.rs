//! Places in the SQL text are places in the file.

use penstock_crds::diagnostic::{Code, Diagnostic, Position};
use penstock_crds::manifest::load;

fn job(sql: &str) -> String {
    format!(
        "# first\napiVersion: penstock.dev/v1alpha1\nkind: StreamingJob\nmetadata: {{name: j}}\nspec:\n  sql: {sql}\n  \
         sources: [{{name: s, generator: {{}}, columns: [{{name: id, type: BIGINT, generate: {{sequence: {{}}}}}}]}}]\n  sinks: [{{name: o, print: {{}}}}]\n"
    )
}

fn place(sql: &str, line: usize, column: usize) -> Option<Position> {
    let resources = load(&job(sql), "job.yaml").unwrap_or_else(|faults| panic!("{faults:?}"));
    resources[0].positions.of_sql(line, column)
}

#[test]
fn a_literal_block_keeps_lines_and_shifts_columns() {
    let sql = "|\n    INSERT INTO o\n\n      SELECT idd FROM s";
    assert_eq!(place(sql, 1, 1), Some(Position { line: 7, column: 5 }));
    assert_eq!(
        place(sql, 3, 10),
        Some(Position {
            line: 9,
            column: 14
        })
    );
    assert_eq!(
        place(
            "|

     INSERT INTO o SELECT id FROM s",
            2,
            1
        ),
        Some(Position { line: 8, column: 6 })
    );
}

#[test]
fn a_comment_after_the_indicator_changes_nothing() {
    assert_eq!(
        place("|- # the query\n    INSERT INTO o SELECT id FROM s", 1, 8),
        Some(Position {
            line: 7,
            column: 12
        })
    );
}

#[test]
fn text_on_one_line_shifts_columns() {
    assert_eq!(
        place("INSERT INTO o SELECT id FROM s", 1, 8),
        Some(Position {
            line: 6,
            column: 15
        })
    );
    assert_eq!(
        place("\"INSERT INTO o SELECT id FROM s\"", 1, 8),
        Some(Position {
            line: 6,
            column: 16
        })
    );
}

#[test]
fn a_fault_of_the_sql_says_both_places() {
    let resources = load(
        &job("|\n    INSERT INTO o\n    SELECT mercant_id FROM s"),
        "job.yaml",
    )
    .unwrap();
    let mut fault = Diagnostic::sql(
        Code::SQL_UNKNOWN_COLUMN,
        2,
        8,
        "unknown column \"mercant_id\"",
    )
    .with_help("did you mean \"merchant_id\"?");
    resources[0].positions.place(&mut fault);
    assert_eq!(
        fault.to_string(),
        "spec.sql: 2:8 unknown column \"mercant_id\", did you mean \"merchant_id\"? [PS0102] at job.yaml:8:12"
    );
    let json = serde_json::to_value(&fault).unwrap();
    assert_eq!(json["code"], "PS0102");
    assert_eq!(json["position"]["line"], 8);
    assert_eq!(json["sql_position"]["column"], 8);
}

#[test]
fn fields_that_only_a_cluster_acts_on_are_named() {
    let text = job("INSERT INTO o SELECT id FROM s")
        + "  autoscaling: {mode: Disabled}\n  workers: {slots: 2, replicas: 3}\n";
    let resources = load(&text, "job.yaml").unwrap();
    assert_eq!(
        penstock_crds::validate::cluster_only_fields(resources[0].job().unwrap()),
        ["workers.replicas", "autoscaling"]
    );
}
