//! The CustomResourceDefinitions: pieces of schema that the types share, and the finished objects.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::job::StreamingJob;
use crate::savepoint::Savepoint;

/// A CEL rule: exactly one of the members is given.
pub(crate) fn one_of(what: &str, members: &[&str]) -> Value {
    let count = members
        .iter()
        .map(|member| format!("(has(self.{member}) ? 1 : 0)"))
        .collect::<Vec<_>>()
        .join(" + ");
    json!({"rule": format!("{count} == 1"), "message": format!("{what} takes exactly one of {}", members.join(", "))})
}

/// A CEL rule: none or one of the members is given.
pub(crate) fn at_most_one_of(what: &str, members: &[&str]) -> Value {
    let count = members
        .iter()
        .map(|member| format!("(has(self.{member}) ? 1 : 0)"))
        .collect::<Vec<_>>()
        .join(" + ");
    json!({"rule": format!("{count} <= 1"), "message": format!("{what} takes at most one of {}", members.join(", "))})
}

/// A map of bounded strings.
pub(crate) fn string_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "additionalProperties": {"type": "string", "maxLength": 8192}})
}

/// An object whose members Kubernetes checks where it is used.
pub(crate) fn opaque_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// A quantity of Kubernetes: a number or a text.
pub(crate) fn kubernetes_quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 32})
}

/// The definition of StreamingJob.
pub fn streaming_job() -> CustomResourceDefinition {
    finish(StreamingJob::crd())
}

/// The definition of Savepoint.
pub fn savepoint() -> CustomResourceDefinition {
    finish(Savepoint::crd())
}

/// The OpenAPI schema of a definition, as JSON.
pub fn schema(definition: &CustomResourceDefinition) -> Value {
    let version = definition.spec.versions.first();
    let schema = version
        .and_then(|version| version.schema.as_ref())
        .and_then(|schema| schema.open_api_v3_schema.as_ref());
    schema.map_or(Value::Null, |schema| {
        serde_json::to_value(schema).unwrap_or(Value::Null)
    })
}

/// What the derive leaves to be desired: formats that Kubernetes does not know, defaults of null, and texts of embedded types of
/// Kubernetes, which would make the definition too large for `kubectl apply`.
fn finish(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            tidy(schema, false);
            unseen(schema);
        }
    }
    definition
}

/// One that nobody has looked at yet says so: kstatus, and with it Flux, takes an object without a status for done.
fn unseen(schema: &mut JSONSchemaProps) {
    if let Some(status) = schema
        .properties
        .iter_mut()
        .flatten()
        .find(|(n, _)| *n == "status")
    {
        status.1.default = Some(JSON(json!({"observedGeneration": -1})));
    }
}

/// Members of a pod's spec whose schemas are Kubernetes' own.
const EMBEDDED: [&str; 6] = [
    "tolerations",
    "topologySpreadConstraints",
    "imagePullSecrets",
    "env",
    "volumes",
    "volumeMounts",
];

fn tidy(schema: &mut JSONSchemaProps, embedded: bool) {
    if embedded {
        schema.description = None;
    }
    if schema.format.as_deref().is_some_and(|format| {
        !matches!(format, "int32" | "int64" | "double" | "float" | "date-time")
    }) {
        schema.format = None;
    }
    if schema
        .default
        .as_ref()
        .is_some_and(|default| default.0.is_null())
    {
        schema.default = None;
    }
    // The words of an enum and the types of JSON say enough.
    if schema.enum_.is_some() && schema.one_of.is_some() {
        schema.one_of = None;
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        let own = !embedded && EMBEDDED.contains(&name.as_str());
        if own {
            let description = property.description.clone();
            tidy(property, true);
            property.description = description;
        } else {
            tidy(property, embedded);
        }
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items, embedded);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values, embedded);
    }
}
