//! The CustomResourceDefinitions: pieces of schema that the types share, and the finished objects.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A CEL rule: exactly one of the members is given.
pub(crate) fn one_of(what: &str, members: &[&str]) -> Value {
    let count = members.iter().map(|member| format!("(has(self.{member}) ? 1 : 0)")).collect::<Vec<_>>().join(" + ");
    json!({"rule": format!("{count} == 1"), "message": format!("{what} takes exactly one of {}", members.join(", "))})
}

/// A CEL rule: none or one of the members is given.
pub(crate) fn at_most_one_of(what: &str, members: &[&str]) -> Value {
    let count = members.iter().map(|member| format!("(has(self.{member}) ? 1 : 0)")).collect::<Vec<_>>().join(" + ");
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
