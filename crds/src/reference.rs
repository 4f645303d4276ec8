//! The generated pages of the book: the manifest reference from the schema, the error reference from the table of codes.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::codes::CODES;
use crate::crd;

/// The files that are generated, by path from the root of the repository, and their contents.
pub fn generated() -> Result<Vec<(&'static str, String)>, serde_yaml::Error> {
    let job = serde_yaml::to_string(&crd::streaming_job())?;
    let savepoint = serde_yaml::to_string(&crd::savepoint())?;
    Ok(vec![
        ("crds/streamingjobs.penstock.dev.yaml", job.clone()),
        ("crds/savepoints.penstock.dev.yaml", savepoint.clone()),
        // A chart reads no file outside itself.
        ("charts/penstock/files/crds/streamingjobs.yaml", job),
        ("charts/penstock/files/crds/savepoints.yaml", savepoint),
        ("docs/src/reference/manifest.md", manifest()),
        ("docs/src/reference/errors.md", errors()),
    ])
}

/// The manifest reference: a table for each object, in the order of the schema.
pub fn manifest() -> String {
    let mut page = String::from(
        "# Manifest reference\n\n<!-- generated from the schema: crdgen; do not edit -->\n\n\
         Fields marked *required* must be given; all others may be left out. Durations are written `500ms`, `10s`, `5m` or `2h`; sizes \
         `128Mi` or `20Gi`; instants in RFC 3339. Nothing unknown is ignored: a misspelt field is an error. `status` is written by the controller.\n",
    );
    for (kind, definition) in [
        ("StreamingJob", crd::streaming_job()),
        ("Savepoint", crd::savepoint()),
    ] {
        let schema = crd::schema(&definition);
        let _ = write!(page, "\n## {kind}\n\n{}\n", text(&schema["description"]));
        for part in ["spec", "status"] {
            section(part, &schema["properties"][part], &mut page);
        }
    }
    page
}

fn section(path: &str, schema: &Value, page: &mut String) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    if properties.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "\n### {path}\n\n{}\n\n| field | type | default | meaning |\n|---|---|---|---|\n",
        text(&schema["description"])
    );
    for (name, property) in properties {
        let required = schema["required"]
            .as_array()
            .is_some_and(|required| required.iter().any(|other| other == name));
        let default = if required {
            "*required*".to_owned()
        } else {
            default(property)
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {default} | {} |",
            type_of(property),
            text(&property["description"])
        );
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let _ = write!(page, "\nRule: {}.\n", text(&rule["message"]));
    }
    for (name, property) in properties {
        if is_foreign(name, property) {
            continue;
        }
        section(&format!("{path}.{name}"), property, page);
        section(&format!("{path}.{name}[]"), &property["items"], page);
    }
}

/// Whether the member is of a type of Kubernetes, whose documentation says what it takes.
fn is_foreign(name: &str, property: &Value) -> bool {
    let undescribed = |properties: &Map<String, Value>| {
        properties
            .values()
            .all(|property| property["description"].is_null())
    };
    let items = &property["items"]["properties"];
    name == "conditions"
        || property["properties"]
            .as_object()
            .or(items.as_object())
            .is_some_and(|properties| !properties.is_empty() && undescribed(properties))
}

fn default(property: &Value) -> String {
    match &property["default"] {
        Value::Null => String::new(),
        // Objects have their defaults in a table of their own.
        Value::Object(_) => String::new(),
        value => format!("`{value}`"),
    }
}

fn type_of(property: &Value) -> String {
    if let Some(words) = property["enum"].as_array() {
        return words
            .iter()
            .filter_map(Value::as_str)
            .map(|word| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    let bounds = |least: &str, most: &str| match (property[least].as_f64(), property[most].as_f64())
    {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least != 0.0 => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        _ => String::new(),
    };
    match property["type"].as_str() {
        Some("array") => format!(
            "list of {}{}",
            type_of(&property["items"]),
            bounds("minItems", "maxItems")
        ),
        Some("object") if property["additionalProperties"].is_object() => {
            "map of string".to_owned()
        }
        Some("string") => match property["pattern"].as_str() {
            Some(crate::units::Duration::PATTERN) => "duration".to_owned(),
            Some(crate::units::Quantity::PATTERN) => "size".to_owned(),
            Some(crate::units::Timestamp::PATTERN) => "instant".to_owned(),
            Some(crate::data_type::DataType::PATTERN) => "SQL type".to_owned(),
            _ => format!("string{}", bounds("minLength", "maxLength")),
        },
        Some(name @ ("integer" | "number")) => format!("{name}{}", bounds("minimum", "maximum")),
        Some(other) => other.to_owned(),
        None if property["x-kubernetes-int-or-string"] == true => "quantity".to_owned(),
        None => "scalar".to_owned(),
    }
}

/// A text as a cell of a table.
fn text(value: &Value) -> String {
    let mut cell = String::new();
    let mut code = false;
    for c in value
        .as_str()
        .unwrap_or_default()
        .replace('\n', " ")
        .chars()
    {
        code ^= c == '`';
        match c {
            '|' => cell.push_str("\\|"),
            '<' if !code => cell.push_str("&lt;"),
            c => cell.push(c),
        }
    }
    cell
}

/// The error reference: every code with its meaning.
pub fn errors() -> String {
    let mut page = String::from(
        "# Error codes\n\n<!-- generated from the table of codes: crdgen; do not edit -->\n\n\
         Codes are stable: none is given another meaning. `penstock explain CODE` prints the same text.\n",
    );
    let ranges = [
        ("PS00", "The manifest"),
        ("PS01", "SQL"),
        ("PR02", "Sources, sinks and formats at run time"),
        ("PR03", "The engine"),
        ("PR04", "Storage and the log"),
    ];
    for (range, title) in ranges {
        let _ = write!(page, "\n## {title} ({range}xx)\n");
        for entry in CODES
            .iter()
            .filter(|entry| entry.code.as_str().starts_with(range))
        {
            let escaped = entry.text.replace('<', "&lt;");
            let _ = write!(page, "\n### {}: {}\n\n{escaped}\n", entry.code, entry.title);
        }
    }
    page
}
