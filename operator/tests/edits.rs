//! An edit of a running job through the webhook: the verdict on its state, from the real planner, before anything is stored.

mod planner;

use penstock_crds::validate::Bounds;
use penstock_operator::admission::{Judge, Verdict, verdict};
use penstock_operator::lint::Linter;
use serde_json::{Value, json};

const SQL: &str = "INSERT INTO out SELECT origin, MAX(delay) AS d, window_end
FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end";

/// A job whose version runs and is accepted.
fn running() -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "StreamingJob",
        "metadata": {"name": "flights", "namespace": "tenant", "generation": 3, "uid": "0f3c0000-1111-2222-3333-444455556666"},
        "spec": {
            "sources": [{
                "name": "flights",
                "kafka": {"bootstrapServers": "kafka:9092", "topics": ["flights"]},
                "format": {"json": {}},
                "columns": [
                    {"name": "origin", "type": "STRING"}, {"name": "delay", "type": "INT"}, {"name": "ts", "type": "TIMESTAMP(3)"},
                ],
                "watermark": {"column": "ts", "maxOutOfOrderness": "5s"},
            }],
            "sql": SQL,
            "sinks": [{"name": "out", "print": {}}, {"name": "more", "print": {}}],
            "checkpoint": {"storage": {"s3": {"bucket": "streams"}}},
        },
        "status": {
            "observedGeneration": 3,
            "version": {"spec": 3, "planHash": "0", "engine": "0.1.0"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"}],
        },
    })
}

async fn edit(old: &Value, change: impl Fn(&mut Value)) -> Verdict {
    let mut new = old.clone();
    change(&mut new);
    let judge = Judge {
        linter: Linter::new(planner::program()),
        bounds: Bounds::default(),
    };
    verdict(&judge, &json!({"object": new, "oldObject": old})).await
}

fn least(job: &mut Value) {
    job["spec"]["sql"] = json!(SQL.replace("MAX", "MIN"));
}

#[tokio::test]
async fn an_edit_that_the_state_does_not_fit_is_denied_with_the_ways_out() {
    let on = edit(&running(), least).await;
    assert_eq!(on.errors.len(), 1, "{on:?}");
    // The controller, where the webhook is away.
    let mut new = running();
    least(&mut new);
    let [old, new] = [running(), new].map(|job| serde_json::from_value(job).unwrap());
    let linter = Linter::new(planner::program());
    let off = linter.faults(Some(&old), &new).await.unwrap();
    assert_eq!(off, on.errors);
    assert_eq!(
        on.errors[0],
        "spec.sql: the job's state does not fit the edit: out/window-aggregate-0 has another shape now, start every operator empty by upgrade.strategy: Stateless, or run the edit as a job of another name; an operator that is gone may also be named in upgrade.dropState [PR0410]"
    );
}

#[tokio::test]
async fn operators_that_begin_with_nothing_are_named_in_a_warning() {
    let stateless = |job: &mut Value| {
        least(job);
        job["spec"]["upgrade"] = json!({"strategy": "Stateless"});
    };
    let on = edit(&running(), stateless).await;
    assert_eq!(on.errors, Vec::<String>::new());
    let told = on.warnings.last().expect("a warning");
    assert!(
        told.starts_with("spec.sql: starts empty: out/window-aggregate-0"),
        "{told}"
    );
    assert!(told.ends_with("[PS0081]"), "{told}");

    let second = "; INSERT INTO more SELECT origin, COUNT(*) AS n, window_end FROM TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY origin, window_start, window_end";
    let on = edit(&running(), |job| {
        job["spec"]["sql"] = json!(format!("{SQL}{second}"))
    })
    .await;
    assert_eq!(on.errors, Vec::<String>::new());
    let told = on.warnings.last().expect("a warning");
    assert!(
        told.contains("starts empty: more/window-aggregate-0"),
        "{told}"
    );
    assert!(!told.contains("out/"), "{told}");
}

#[tokio::test]
async fn an_edit_that_keeps_the_state_passes_without_a_word() {
    let silent = edit(&running(), |job| {
        job["spec"]["sinks"][1]["name"] = json!("other")
    })
    .await;
    let on = edit(&running(), |job| {
        job["spec"]["sql"] = json!(SQL.replace("AS d", "AS most"));
    })
    .await;
    assert_eq!(on.errors, Vec::<String>::new());
    assert_eq!(on.warnings, silent.warnings);
    assert!(on.warnings.iter().all(|w| !w.contains("PS0081")), "{on:?}");
}

#[tokio::test]
async fn where_the_state_is_another_versions_or_unknown_the_edit_passes() {
    let mut rolled_back = running();
    rolled_back["status"]["conditions"][0]["status"] = json!("False");
    assert_eq!(edit(&rolled_back, least).await.errors, Vec::<String>::new());
    let mut unplanned = running();
    unplanned["spec"]["sql"] = json!("SELECT nothing FROM nowhere");
    assert_eq!(edit(&unplanned, least).await.errors, Vec::<String>::new());
    // What is wrong with the edit itself is said all the same.
    let on = edit(&running(), |job| {
        job["spec"]["sql"] = json!("SELECT nothing FROM nowhere")
    })
    .await;
    assert!(!on.errors.is_empty());
    assert!(on.errors.iter().all(|e| !e.contains("PR0410")), "{on:?}");
}
