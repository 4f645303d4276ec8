//! The golden manifest against the schema, and the generated files against what is in the repository.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition;
use penstock_crds::manifest::{ResourceKind, load_for, yaml_1_1_bool};
use penstock_crds::reference::generated;
use penstock_crds::validate::{Place, validate};
use penstock_crds::{codes, crd};
use serde_json::Value;

const GOLDEN: &str = include_str!("golden.yaml");
/// Members of one-ofs that the golden manifest names in comments only.
const ALTERNATIVES: &str = include_str!("alternatives.yaml");

fn load(text: &str) -> Vec<penstock_crds::manifest::Resource> {
    match load_for(text, "golden.yaml", Place::Local) {
        Ok(resources) => resources,
        Err(faults) => panic!(
            "{}",
            faults
                .iter()
                .map(|fault| format!("{fault}\n"))
                .collect::<String>()
        ),
    }
}

#[test]
fn the_golden_manifest_is_sound_in_a_cluster() {
    let resources = load_for(GOLDEN, "golden.yaml", Place::Cluster).unwrap();
    assert_eq!(resources.len(), 2);
    // Its column `n` is the one word that readers of YAML disagree on.
    let warnings = resources[0]
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    assert_eq!(
        warnings,
        [
            "warning: sources[2].columns[0].name: some readers of YAML take the bare word n for a boolean, put it in quotes [PS0009] at golden.yaml:44:24",
        ]
    );
    let job = resources[0].job().unwrap();
    assert_eq!(
        job.spec.sources[0].columns[2].data_type.to_string(),
        "DECIMAL(12,2)"
    );
    assert!(matches!(resources[1].kind, ResourceKind::Savepoint(_)));
}

/// Every path of a schema, with `[]` for items, down to what is opaque or of a type of Kubernetes.
fn paths(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            let at = format!("{path}.{name}");
            into.insert(at.clone());
            let foreign = path.ends_with(".podTemplate.spec") || name == "conditions";
            if !foreign {
                paths(property, &at, into);
            }
        }
    }
    paths_of_items(schema, path, into);
}

fn paths_of_items(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    if schema["items"].is_object() {
        paths(&schema["items"], &format!("{path}[]"), into);
    }
}

fn given(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    into.insert(path.to_owned());
    match value {
        Value::Object(members) => members
            .iter()
            .for_each(|(name, member)| given(member, &format!("{path}.{name}"), into)),
        Value::Array(items) => items
            .iter()
            .for_each(|item| given(item, &format!("{path}[]"), into)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_schema_is_in_the_golden_manifest() {
    load(ALTERNATIVES);
    let mut schema_paths = BTreeSet::new();
    for definition in [crd::streaming_job(), crd::savepoint()] {
        let root = crd::schema(&definition);
        let kind = definition.spec.names.kind;
        for part in ["spec", "status"] {
            paths(
                &root["properties"][part],
                &format!("{kind}.{part}"),
                &mut schema_paths,
            );
        }
    }
    let mut given_paths = BTreeSet::new();
    for text in [GOLDEN, ALTERNATIVES] {
        for document in text.split("\n---\n") {
            // Comments hold no document end; a plain reader suffices to see what is written.
            let value: Value = serde_saphyr::from_str(document).unwrap();
            let kind = value["kind"].as_str().unwrap().to_owned();
            given(&value, &kind, &mut given_paths);
        }
    }
    let missing = schema_paths.difference(&given_paths).collect::<Vec<_>>();
    assert!(
        missing.is_empty(),
        "in the schema, not in the golden manifest: {missing:#?}"
    );
}

/// The names of columns that `kubectl get` shows, and those that it shows with `-o wide` alone.
#[test]
fn kubectl_shows_six_columns_and_the_rest_when_asked() {
    let definition = crd::streaming_job();
    let columns = definition.spec.versions[0]
        .additional_printer_columns
        .clone()
        .unwrap();
    let (wide, first): (Vec<_>, Vec<_>) = columns
        .iter()
        .partition(|column| column.priority.unwrap_or(0) > 0);
    let names = |all: &[&CustomResourceColumnDefinition]| {
        let names = all.iter().map(|column| column.name.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&first), "Phase Ready Epoch Lag Workers Age");
    assert_eq!(
        names(&wide),
        "Reason Lag-Seconds Rows-In Rows-Out Committed Watermark Restarts Failure Version Engine"
    );
    // Each shows something that the schema has, of the type that it says.
    let schema = crd::schema(&definition);
    for column in &columns {
        let path = column.json_path.trim_start_matches('.');
        let of_a_condition = path.split_once("[?").map(|(list, rest)| {
            let member = rest.split_once(").").or(rest.split_once(")].")).unwrap().1;
            format!("{list}.[].{}", member.trim_start_matches('.'))
        });
        let path = of_a_condition.unwrap_or_else(|| path.to_owned());
        if path == "metadata.creationTimestamp" {
            continue;
        }
        let shown = path.split('.').fold(&schema, |of, part| match part {
            "[]" => &of["items"],
            name => &of["properties"][name],
        });
        let type_ = match column.type_.as_str() {
            "date" => "string",
            other => other,
        };
        assert_eq!(shown["type"], type_, "{}: {path}", column.name);
    }
    let page = include_str!("../../docs/src/reference/kubectl.md");
    for column in &columns {
        let row = format!("| `{}` |", column.name.to_uppercase());
        assert!(page.contains(&row), "the book does not explain {row}");
    }
}

#[test]
fn no_enum_value_is_a_boolean_of_yaml_1_1() {
    fn walk(schema: &Value) {
        for word in schema["enum"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            assert!(
                yaml_1_1_bool(word).is_none()
                    && !matches!(
                        word.to_lowercase().as_str(),
                        "true" | "false" | "null" | "~"
                    ),
                "{word}"
            );
        }
        match schema {
            Value::Object(members) => members.values().for_each(walk),
            Value::Array(items) => items.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&crd::schema(&crd::streaming_job()));
    walk(&crd::schema(&crd::savepoint()));
}

#[test]
fn every_string_and_list_of_the_spec_is_bounded() {
    fn walk(schema: &Value, path: &str, unbounded: &mut Vec<String>) {
        match schema["type"].as_str() {
            Some("string") if schema["enum"].is_null() && schema["maxLength"].is_null() => {
                unbounded.push(path.to_owned())
            }
            Some("array") if schema["maxItems"].is_null() => unbounded.push(path.to_owned()),
            _ => {}
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if !path.ends_with(".podTemplate.spec")
                || schema["properties"][name]["type"] == "string"
            {
                walk(property, &format!("{path}.{name}"), unbounded);
            }
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), unbounded);
        }
    }
    let mut unbounded = Vec::new();
    walk(
        &crd::schema(&crd::streaming_job())["properties"]["spec"],
        "spec",
        &mut unbounded,
    );
    walk(
        &crd::schema(&crd::savepoint())["properties"]["spec"],
        "spec",
        &mut unbounded,
    );
    assert!(unbounded.is_empty(), "{unbounded:#?}");
}

#[test]
fn the_definition_fits_the_annotation_of_kubectl_apply() {
    let bytes = serde_json::to_string(&crd::streaming_job()).unwrap().len();
    assert!(bytes < 250_000, "{bytes} bytes");
}

#[test]
fn generated_files_are_as_generated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, content) in generated().unwrap() {
        let found = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(
            found == content,
            "{path} has drifted: run `cargo run -p penstock-crds --bin crdgen -- --write .`"
        );
    }
}

#[test]
fn codes_are_unique_and_in_order() {
    let mut manifest = codes::CODES
        .iter()
        .map(|entry| entry.code.as_str())
        .collect::<Vec<_>>();
    let count = manifest.len();
    manifest.dedup();
    assert_eq!(manifest.len(), count);
    assert_eq!(codes::explain("ps0007").unwrap().title, "unknown field");
}

#[test]
fn defaults_are_those_of_an_empty_object() {
    let job = load(ALTERNATIVES).remove(0).job().unwrap().clone();
    let json = serde_json::to_value(&job).unwrap();
    let again = serde_json::from_value(json).unwrap();
    assert_eq!(job, again);
    assert!(
        validate(&job, Place::Local)
            .iter()
            .all(|fault| !fault.is_error())
    );
}
