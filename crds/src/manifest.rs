//! Manifests as people write them: YAML text to resources, with every fault at its line and column, all at once.
//!
//! The reading is in `tree`, the check against the schema in `check`, the rules across fields in `validate`.

mod check;
mod positions;
pub mod tree;
mod values;

use std::sync::OnceLock;

use serde_json::{Value as Json, json};

pub use self::positions::Positions;
pub use self::tree::yaml_1_1_bool;

use self::check::{Checker, member};
use self::tree::{Node, Value};
use crate::crd;
use crate::diagnostic::{Code, Diagnostic, Severity, nearest};
use crate::job::StreamingJob;
use crate::savepoint::Savepoint;
use crate::validate::{self, Place};

/// The one version of the API that is known.
pub const API_VERSION: &str = "penstock.dev/v1alpha1";

/// A document of a manifest, sound by the schema and by `validate`.
#[derive(Debug, Clone)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Where its members stand.
    pub positions: Positions,
    /// What a person should look at.
    pub warnings: Vec<Diagnostic>,
}

/// What a document is.
#[derive(Debug, Clone, PartialEq)]
pub enum ResourceKind {
    /// A job.
    StreamingJob(Box<StreamingJob>),
    /// A savepoint.
    Savepoint(Box<Savepoint>),
}

impl Resource {
    /// The job, if it is one.
    pub fn job(&self) -> Option<&StreamingJob> {
        match &self.kind {
            ResourceKind::StreamingJob(job) => Some(job),
            ResourceKind::Savepoint(_) => None,
        }
    }
}

/// Reads every document of a text for running on one's own machine. All faults are returned, errors and warnings.
pub fn load(text: &str, file_name: &str) -> Result<Vec<Resource>, Vec<Diagnostic>> {
    load_for(text, file_name, Place::Local)
}

/// As [`load`], for a place: what a cluster refuses is refused.
pub fn load_for(
    text: &str,
    file_name: &str,
    place: Place,
) -> Result<Vec<Resource>, Vec<Diagnostic>> {
    let mut faults = Vec::new();
    let mut resources = Vec::new();
    match tree::read(text, &mut faults) {
        Err(fault) => faults.push(*fault),
        Ok(documents) => {
            if documents.is_empty() && faults.is_empty() {
                faults.push(Diagnostic::error(
                    Code::EMPTY,
                    "",
                    "the file holds no document",
                ));
            }
            for document in &documents {
                let positions = Positions::new(document, text, file_name);
                let mut found = Vec::new();
                let kind = resource(document, place, &mut found);
                for fault in &mut found {
                    positions.place(fault);
                }
                let sound = found
                    .iter()
                    .all(|fault| fault.severity == Severity::Warning);
                if let (Some(kind), true) = (kind, sound) {
                    resources.push(Resource {
                        kind,
                        positions,
                        warnings: found,
                    });
                } else {
                    faults.append(&mut found);
                }
            }
        }
    }
    if faults.is_empty() {
        return Ok(resources);
    }
    for resource in resources {
        faults.extend(resource.warnings);
    }
    for fault in &mut faults {
        fault.file = Some(file_name.to_owned());
    }
    faults.sort_by_key(|fault| fault.position);
    Err(faults)
}

/// The documents of any YAML text, with the place of every node: for files beside a manifest that are read as strictly.
pub fn documents(text: &str, file_name: &str) -> Result<Vec<Node>, Vec<Diagnostic>> {
    let mut faults = Vec::new();
    let read = tree::read(text, &mut faults);
    let documents = read.unwrap_or_else(|fault| {
        faults.push(*fault);
        Vec::new()
    });
    if faults.is_empty() {
        return Ok(documents);
    }
    for fault in &mut faults {
        fault.file = Some(file_name.to_owned());
    }
    faults.sort_by_key(|fault| fault.position);
    Err(faults)
}

fn resource(document: &Node, place: Place, faults: &mut Vec<Diagnostic>) -> Option<ResourceKind> {
    let Value::Mapping(entries) = &document.value else {
        let message = "a manifest is a mapping with apiVersion, kind, metadata and spec";
        faults.push(Diagnostic::error(Code::TYPE, "", message).at(document.position));
        return None;
    };
    let text_of = |name: &str| {
        entries
            .iter()
            .find(|(key, _)| key.name == name)
            .and_then(|(_, node)| match &node.value {
                Value::Scalar { text, .. } => Some((text.as_str(), node.position)),
                _ => None,
            })
    };
    let mut known = true;
    match text_of("apiVersion") {
        Some((API_VERSION, _)) => {}
        Some((other, position)) => {
            let message = format!("\"{other}\" is not known");
            faults.push(
                Diagnostic::error(Code::API_VERSION, "apiVersion", message)
                    .with_help(format!("write {API_VERSION}"))
                    .at(position),
            );
        }
        None => {
            faults.push(
                Diagnostic::error(Code::MISSING, "", "missing field \"apiVersion\"")
                    .with_help(format!("write apiVersion: {API_VERSION}"))
                    .at(document.position),
            );
        }
    }
    let kind = text_of("kind");
    match kind {
        Some(("StreamingJob" | "Savepoint", _)) => {}
        Some((other, position)) => {
            known = false;
            let help = nearest(other, ["StreamingJob", "Savepoint"]).map_or_else(
                || "the kinds are StreamingJob and Savepoint".to_owned(),
                |near| format!("did you mean \"{near}\"?"),
            );
            faults.push(
                Diagnostic::error(Code::KIND, "kind", format!("\"{other}\" is not known"))
                    .with_help(help)
                    .at(position),
            );
        }
        None => {
            known = false;
            faults.push(
                Diagnostic::error(Code::MISSING, "", "missing field \"kind\"")
                    .with_help("write kind: StreamingJob")
                    .at(document.position),
            );
        }
    }
    if !known {
        return None;
    }
    if kind.is_some_and(|(kind, _)| kind == "Savepoint") {
        savepoint(document, faults)
    } else {
        job(document, place, faults)
    }
}

fn job(document: &Node, place: Place, faults: &mut Vec<Diagnostic>) -> Option<ResourceKind> {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| root(crd::schema(&crd::streaming_job())));
    let mut checker = Checker {
        faults,
        replaced: Vec::new(),
    };
    let json = checker.check(document, schema, "")?;
    let replaced = checker.replaced;
    match serde_json::from_value::<StreamingJob>(json) {
        Ok(job) => {
            let structural = faults
                .iter()
                .filter(|fault| fault.is_error())
                .map(|fault| relative(&fault.path).to_owned())
                .collect::<Vec<_>>();
            let doubtful = replaced
                .iter()
                .map(|path| section(relative(path)).to_owned())
                .collect::<Vec<_>>();
            // A fault of structure explains what does not fit above and below it, and a stand-in what does not fit beside it.
            let explained = |path: &str| {
                structural
                    .iter()
                    .any(|other| within(path, other) || within(other, path))
                    || doubtful.iter().any(|other| section(path) == other)
            };
            let rules = validate::validate(&job, place)
                .into_iter()
                .filter(|fault| !explained(&fault.path));
            faults.extend(rules);
            Some(ResourceKind::StreamingJob(Box::new(job)))
        }
        Err(error) => {
            not_explained(faults, &error, document);
            None
        }
    }
}

fn savepoint(document: &Node, faults: &mut Vec<Diagnostic>) -> Option<ResourceKind> {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| root(crd::schema(&crd::savepoint())));
    let json = Checker {
        faults,
        replaced: Vec::new(),
    }
    .check(document, schema, "")?;
    match serde_json::from_value::<Savepoint>(json) {
        Ok(savepoint) => {
            faults.extend(validate::validate_metadata(&savepoint.metadata, 63));
            Some(ResourceKind::Savepoint(Box::new(savepoint)))
        }
        Err(error) => {
            not_explained(faults, &error, document);
            None
        }
    }
}

/// What the types refuse without the schema having said so; else the schema's faults say it better.
fn not_explained(faults: &mut Vec<Diagnostic>, error: &serde_json::Error, document: &Node) {
    if !faults.iter().any(Diagnostic::is_error) {
        faults.push(Diagnostic::error(Code::TYPE, "", error.to_string()).at(document.position));
    }
}

/// Whether a path is another or lies below it.
fn within(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The part of a job that a path lies in: `sources[0]`, `checkpoint`, `metadata.name`.
fn section(path: &str) -> &str {
    if path.starts_with("metadata.") {
        path
    } else {
        path.split('.').next().unwrap_or(path)
    }
}

/// A path as people see it: members of the spec without the leading `spec.`, but for the SQL text.
fn relative(path: &str) -> &str {
    if path == "spec.sql" {
        path
    } else {
        path.strip_prefix("spec.").unwrap_or(path)
    }
}

/// The schema of a whole document; metadata as far as people write it.
fn root(mut schema: Json) -> Json {
    let text = json!({"type": "string", "maxLength": 253});
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let written_by_servers =
        json!({"x-kubernetes-preserve-unknown-fields": true, "type": "object"});
    let list = json!({"type": "array", "items": written_by_servers});
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": text, "namespace": text, "labels": texts, "annotations": texts,
            "finalizers": {"type": "array", "items": text},
            "uid": text, "resourceVersion": text, "creationTimestamp": text, "deletionTimestamp": text, "selfLink": text,
            "generation": {"type": "integer"}, "deletionGracePeriodSeconds": {"type": "integer"},
            "managedFields": list, "ownerReferences": list,
        },
    });
    schema["required"] = json!(["metadata", "spec"]);
    schema
}
