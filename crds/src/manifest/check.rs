//! A tree against a schema: unknown fields, types, words, bounds, forms. All faults are found, and what is sound becomes JSON.

use serde_json::{Map, Number, Value as Json};

use super::tree::{Node, Value, as_bool, as_integer, as_number, yaml_1_1_bool};
use super::values::{UNITS, describe, free, is_null_node, shortened, stand_in};
use crate::diagnostic::{Code, Diagnostic, Position, nearest};

/// Checks trees against schemas and gathers faults. Paths are whole: they begin at the root of the document.
pub(super) struct Checker<'a> {
    pub(super) faults: &'a mut Vec<Diagnostic>,
    /// Paths of members whose values are stand-ins, since what was written is not sound; rules beside them are not to be believed.
    pub(super) replaced: Vec<String>,
}

/// A path with one more member.
pub(super) fn member(path: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (path.is_empty(), bare) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[\"{}\"]", name.escape_debug()),
    }
}

impl Checker<'_> {
    fn fault(&mut self, code: Code, path: &str, position: Position, message: impl Into<String>) {
        self.faults
            .push(Diagnostic::error(code, path, message).at(position));
    }

    fn fault_with_help(
        &mut self,
        code: Code,
        path: &str,
        position: Position,
        message: String,
        help: impl Into<String>,
    ) {
        self.faults.push(
            Diagnostic::error(code, path, message)
                .with_help(help)
                .at(position),
        );
    }

    /// The node as JSON, as far as it is sound; `None` if it is not, or is null.
    pub(super) fn check(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        if is_null_node(node) {
            return None;
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return self.scalar(node, path, "a number or a string");
        }
        match schema["type"].as_str() {
            Some("object") => self.object(node, schema, path),
            Some("array") => self.array(node, schema, path),
            Some("string") => self.string(node, schema, path),
            Some("integer") => self.integer(node, schema, path),
            Some("number") => self.number(node, schema, path),
            Some("boolean") => self.boolean(node, path),
            _ => self.scalar(node, path, "a boolean, a number or a string"),
        }
    }

    /// Whether a bare word is refused as a text because YAML 1.1 makes a boolean of it. For the single letters, on which readers of
    /// YAML 1.1 differ and which are good names of columns, it is a warning.
    fn ambiguous(&mut self, text: &str, path: &str, position: Position) -> bool {
        if yaml_1_1_bool(text).is_none() {
            return false;
        }
        let letter = text.len() == 1;
        let reader = if letter {
            "some readers of YAML take"
        } else {
            "kubectl takes"
        };
        let message = format!("{reader} the bare word {text} for a boolean");
        let fault = if letter {
            Diagnostic::warning(Code::AMBIGUOUS, path, message)
        } else {
            Diagnostic::error(Code::AMBIGUOUS, path, message)
        };
        self.faults
            .push(fault.with_help("put it in quotes").at(position));
        !letter
    }

    fn wrong_type(&mut self, node: &Node, path: &str, expected: &str) {
        let found = describe(node);
        let is_empty_block = matches!(&node.value, Value::Scalar { text, .. } if text.is_empty());
        let message = format!("expected {expected}, found {found}");
        if expected == "a string"
            && !is_empty_block
            && matches!(node.value, Value::Scalar { plain: true, .. })
        {
            self.fault_with_help(Code::TYPE, path, node.position, message, "put it in quotes");
        } else {
            self.fault(Code::TYPE, path, node.position, message);
        }
    }

    fn object(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        let Value::Mapping(entries) = &node.value else {
            self.wrong_type(node, path, "a mapping");
            return None;
        };
        if schema["x-kubernetes-preserve-unknown-fields"] == true && schema["properties"].is_null()
        {
            return Some(free(node));
        }
        if let Some(most) = schema["maxProperties"]
            .as_u64()
            .filter(|most| entries.len() as u64 > *most)
        {
            self.fault(
                Code::LENGTH,
                path,
                node.position,
                format!("{} entries, at most {most} are allowed", entries.len()),
            );
        }
        let mut object = Map::new();
        let properties = schema["properties"].as_object();
        let mut meant = Vec::new();
        for (key, value) in entries {
            let at = member(path, &key.name);
            let schema = properties
                .and_then(|properties| properties.get(&key.name))
                .or_else(|| match &schema["additionalProperties"] {
                    Json::Object(_) => Some(&schema["additionalProperties"]),
                    _ => None,
                });
            if let Some(schema) = schema {
                match self.check(value, schema, &at) {
                    Some(json) => {
                        object.insert(key.name.clone(), json);
                    }
                    None if is_null_node(value) => {}
                    None => self.replaced.push(at),
                }
                continue;
            }
            let given = |name: &str| entries.iter().any(|(key, _)| key.name == name);
            let names = properties
                .into_iter()
                .flat_map(Map::keys)
                .map(String::as_str);
            let near = nearest(&key.name, names.clone().filter(|name| !given(name)));
            match near {
                Some(near) => {
                    meant.push(near);
                    self.replaced.push(at.clone());
                    self.fault_with_help(
                        Code::UNKNOWN_FIELD,
                        &at,
                        key.position,
                        "unknown field".into(),
                        format!("did you mean \"{near}\"?"),
                    );
                }
                None => {
                    let known = names.collect::<Vec<_>>();
                    let help = if known.is_empty() {
                        "no fields are known here".to_owned()
                    } else {
                        format!("known here: {}", shortened(&known))
                    };
                    self.fault_with_help(
                        Code::UNKNOWN_FIELD,
                        &at,
                        key.position,
                        "unknown field".into(),
                        help,
                    );
                }
            }
        }
        for name in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            let given = entries
                .iter()
                .any(|(key, value)| key.name == name && !is_null_node(value));
            // A misspelt field is reported as that alone.
            if !given && !meant.contains(&name) {
                self.fault(
                    Code::MISSING,
                    path,
                    node.position,
                    format!("missing field \"{name}\""),
                );
                self.replaced.push(member(path, name));
            }
            // With a stand-in the types can be made all the same, and the rules elsewhere be judged.
            if !object.contains_key(name) {
                object.insert(name.to_owned(), stand_in(&schema["properties"][name]));
            }
        }
        Some(Json::Object(object))
    }

    fn array(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        let Value::Sequence(items) = &node.value else {
            self.wrong_type(node, path, "a list");
            return None;
        };
        let count = items.len() as u64;
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
            self.fault(
                Code::LENGTH,
                path,
                node.position,
                format!("{count} items, at most {most} are allowed"),
            );
            return None;
        }
        if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
            self.fault(
                Code::LENGTH,
                path,
                node.position,
                format!("{count} items, at least {least} needed"),
            );
            self.replaced.push(path.to_owned());
        }
        let list = items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let at = format!("{path}[{i}]");
                let json = self.check(item, &schema["items"], &at);
                if is_null_node(item) {
                    self.fault(Code::TYPE, &at, item.position, "an item of a list is null");
                }
                // A stand-in keeps the places of the items that follow.
                json.unwrap_or_else(|| {
                    self.replaced.push(at);
                    stand_in(&schema["items"])
                })
            })
            .collect::<Vec<_>>();
        if schema["x-kubernetes-list-type"] == "set" {
            for (i, item) in list
                .iter()
                .enumerate()
                .filter(|(i, item)| list[..*i].contains(item))
            {
                self.fault(
                    Code::DUPLICATE_NAME,
                    &format!("{path}[{i}]"),
                    items[i].position,
                    format!("{item} is given twice"),
                );
            }
        }
        Some(Json::Array(list))
    }

    fn string(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        let Value::Scalar { text, plain } = &node.value else {
            self.wrong_type(node, path, "a string");
            return None;
        };
        let unit = UNITS
            .iter()
            .find(|(pattern, ..)| schema["pattern"] == *pattern);
        let words = schema["enum"].as_array();
        if *plain && self.ambiguous(text, path, node.position) {
            return None;
        }
        // A bare number or boolean goes to the parser of a duration, a size or a word, which knows better what is missing.
        if *plain
            && unit.is_none()
            && words.is_none()
            && (as_bool(text).is_some() || as_number(text).is_some())
        {
            self.wrong_type(node, path, "a string");
            return None;
        }
        if let Some((_, code, parse, _)) = unit {
            if let Some(error) = parse(text) {
                let fault = Diagnostic::error(*code, path, error.to_string()).at(node.position);
                self.faults.push(match error.help() {
                    Some(help) => fault.with_help(help),
                    None => fault,
                });
                return None;
            }
        } else if let Some(words) = words {
            let words = words.iter().filter_map(Json::as_str).collect::<Vec<_>>();
            if !words.contains(&text.as_str()) {
                let help = nearest(text, words.iter().copied()).map_or_else(
                    || format!("expected one of {}", words.join(", ")),
                    |near| format!("did you mean \"{near}\"?"),
                );
                self.fault_with_help(
                    Code::ENUM,
                    path,
                    node.position,
                    format!("\"{text}\" is not one of the values"),
                    help,
                );
                return None;
            }
        }
        let length = text.chars().count() as u64;
        if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
            let message = if length == 0 {
                "must not be empty".to_owned()
            } else {
                format!("{length} characters, at least {least} needed")
            };
            self.fault(Code::LENGTH, path, node.position, message);
        }
        if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
            self.fault(
                Code::LENGTH,
                path,
                node.position,
                format!("{length} characters, at most {most} are allowed"),
            );
        }
        Some(Json::String(text.clone()))
    }

    fn integer(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        let number = match &node.value {
            Value::Scalar { text, plain: true } => as_integer(text),
            _ => None,
        };
        let Some(number) = number else {
            let whole = matches!(&node.value, Value::Scalar { text, plain: true } if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()));
            if whole && matches!(&node.value, Value::Scalar { text, .. } if text.starts_with('0')) {
                let message =
                    "a whole number with leading zeros, which some YAML readers take for octal"
                        .to_owned();
                self.fault_with_help(
                    Code::AMBIGUOUS,
                    path,
                    node.position,
                    message,
                    "write it without them",
                );
            } else if whole {
                self.fault(Code::RANGE, path, node.position, "the number is too large");
            } else {
                self.wrong_type(node, path, "a whole number");
            }
            return None;
        };
        self.bounds(number as f64, schema, path, node.position)?;
        Some(Json::Number(number.into()))
    }

    fn number(&mut self, node: &Node, schema: &Json, path: &str) -> Option<Json> {
        let number = match &node.value {
            Value::Scalar { text, plain: true } => as_number(text),
            _ => None,
        };
        let Some(number) = number else {
            self.wrong_type(node, path, "a number");
            return None;
        };
        self.bounds(number, schema, path, node.position)?;
        Number::from_f64(number).map(Json::Number)
    }

    fn bounds(&mut self, number: f64, schema: &Json, path: &str, position: Position) -> Option<()> {
        let least = schema["minimum"].as_f64();
        let most = schema["maximum"].as_f64();
        let inside =
            least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most);
        if inside {
            return Some(());
        }
        let expected = match (least, most) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => return Some(()),
        };
        self.fault(
            Code::RANGE,
            path,
            position,
            format!("{number} is out of bounds: {expected}"),
        );
        None
    }

    fn boolean(&mut self, node: &Node, path: &str) -> Option<Json> {
        if let Value::Scalar { text, plain: true } = &node.value {
            if let Some(value) = as_bool(text) {
                return Some(Json::Bool(value));
            }
            if let Some(value) = yaml_1_1_bool(text) {
                let message = format!(
                    "the bare word {text} is a boolean for some YAML readers and a text for others"
                );
                self.fault_with_help(
                    Code::AMBIGUOUS,
                    path,
                    node.position,
                    message,
                    format!("write {value}"),
                );
                return None;
            }
        }
        self.wrong_type(node, path, "true or false");
        None
    }

    fn scalar(&mut self, node: &Node, path: &str, expected: &str) -> Option<Json> {
        if let Value::Scalar { text, plain: true } = &node.value
            && self.ambiguous(text, path, node.position)
        {
            return None;
        }
        match &node.value {
            Value::Scalar { .. } => Some(free(node)),
            Value::Sequence(_) | Value::Mapping(_) => {
                self.wrong_type(node, path, expected);
                None
            }
        }
    }
}
