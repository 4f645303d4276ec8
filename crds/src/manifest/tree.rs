//! YAML text to trees that know where each node stands. Bounded in size, depth and what aliases unfold to.

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::diagnostic::{Code, Diagnostic, Position};

/// Longest text that is read.
const MAX_BYTES: usize = 4 << 20;
/// Most nodes of a text, aliases counted each time.
const MAX_NODES: usize = 200_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// A node with its place.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// What it holds.
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Value {
    /// A single value.
    Scalar {
        /// Its text.
        text: String,
        /// Written without quotes.
        plain: bool,
    },
    /// Items in their order.
    Sequence(Vec<Node>),
    /// Entries in their order; keys are unique.
    Mapping(Vec<(Key, Node)>),
}

/// A key with its place.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Where it begins.
    pub position: Position,
}

fn position(span: &Span) -> Position {
    Position {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

fn refused(code: Code, message: impl Into<String>, position: Position) -> Box<Diagnostic> {
    Box::new(Diagnostic::error(code, "", message).at(position))
}

/// A collection whose end has not come.
enum Open {
    Sequence {
        position: Position,
        anchor: usize,
        items: Vec<Node>,
    },
    Mapping {
        position: Position,
        anchor: usize,
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
    },
}

/// The documents of a text; empty ones are left out. Duplicate keys go to `faults`, and the second is dropped.
pub(super) fn read(text: &str, faults: &mut Vec<Diagnostic>) -> Result<Vec<Node>, Box<Diagnostic>> {
    if text.len() > MAX_BYTES {
        return Err(refused(
            Code::TOO_LARGE,
            format!("the file is larger than {} MiB", MAX_BYTES >> 20),
            Position { line: 1, column: 1 },
        ));
    }
    let mut reader = Reader {
        documents: Vec::new(),
        open: Vec::new(),
        anchors: BTreeMap::new(),
        nodes: 0,
        faults,
    };
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| {
            let place = Position {
                line: error.marker().line(),
                column: error.marker().col() + 1,
            };
            refused(Code::YAML, format!("not YAML: {}", error.info()), place)
        })?;
        reader.event(event, position(&span))?;
    }
    Ok(reader.documents)
}

struct Reader<'a> {
    documents: Vec<Node>,
    open: Vec<Open>,
    /// Anchored nodes, with the number of nodes in each.
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
    faults: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn event(&mut self, event: Event<'_>, position: Position) -> Result<(), Box<Diagnostic>> {
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, position)?;
                // A tag other than !!str asks for what the schema says anyway; the text decides.
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let node = Node {
                    position,
                    value: Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                };
                self.close(node, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.descend(position)?;
                self.open.push(Open::Sequence {
                    position,
                    anchor,
                    items: Vec::new(),
                });
            }
            Event::MappingStart(_, anchor, _) => {
                self.descend(position)?;
                self.open.push(Open::Mapping {
                    position,
                    anchor,
                    entries: Vec::new(),
                    key: None,
                });
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence {
                    position,
                    anchor,
                    items,
                }) => {
                    self.close(
                        Node {
                            position,
                            value: Value::Sequence(items),
                        },
                        anchor,
                    )?;
                }
                Some(Open::Mapping {
                    position,
                    anchor,
                    entries,
                    key: _,
                }) => {
                    self.close(
                        Node {
                            position,
                            value: Value::Mapping(entries),
                        },
                        anchor,
                    )?;
                }
                None => {}
            },
            Event::Alias(anchor) => {
                let Some((mut node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(refused(
                        Code::YAML,
                        "an alias refers to a node that contains it",
                        position,
                    ));
                };
                self.count(size, position)?;
                node.position = position;
                self.close(node, 0)?;
            }
            Event::UnresolvedAlias(name) => {
                let message = format!("the alias *{name} has no anchor");
                return Err(refused(Code::YAML, message, position));
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, position: Position) -> Result<(), Box<Diagnostic>> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            let message = format!("the file unfolds to more than {MAX_NODES} nodes");
            return Err(refused(Code::TOO_LARGE, message, position));
        }
        Ok(())
    }

    fn descend(&mut self, position: Position) -> Result<(), Box<Diagnostic>> {
        self.count(1, position)?;
        if self.open.len() >= MAX_DEPTH {
            let message = format!("the file is nested deeper than {MAX_DEPTH}");
            return Err(refused(Code::TOO_LARGE, message, position));
        }
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), Box<Diagnostic>> {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size(&node)));
        }
        match self.open.last_mut() {
            None => {
                let empty =
                    matches!(&node.value, Value::Scalar { text, plain: true } if is_null(text));
                if !empty {
                    self.documents.push(node);
                }
            }
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match key.take() {
                None => match node.value {
                    Value::Scalar { text, plain: _ } => {
                        *key = Some(Key {
                            name: text,
                            position: node.position,
                        })
                    }
                    Value::Sequence(_) | Value::Mapping(_) => {
                        return Err(refused(Code::YAML, "a key must be a text", node.position));
                    }
                },
                Some(key) if entries.iter().any(|(other, _)| other.name == key.name) => {
                    let message = format!("the key \"{}\" is given twice", key.name);
                    self.faults
                        .push(Diagnostic::error(Code::DUPLICATE_KEY, "", message).at(key.position));
                }
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 1,
        Value::Sequence(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Mapping(entries) => 1 + entries.iter().map(|(_, node)| size(node)).sum::<usize>(),
    }
}

/// Whether a plain scalar is null.
pub fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The boolean that a plain scalar is, in every version of YAML.
pub fn as_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The boolean that YAML 1.1 alone makes of a plain scalar.
pub fn yaml_1_1_bool(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// The whole number that a plain scalar is; none with leading zeros, which YAML 1.1 reads as octal.
pub fn as_integer(text: &str) -> Option<i64> {
    let digits = text.trim_start_matches(['-', '+']);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if leading_zero {
        None
    } else {
        text.parse().ok()
    }
}

/// The number that a plain scalar is.
pub fn as_number(text: &str) -> Option<f64> {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
        && text.bytes().any(|c| c.is_ascii_digit())
        && text
            .bytes()
            .all(|c| c.is_ascii_digit() || matches!(c, b'-' | b'+' | b'.' | b'e' | b'E'));
    if numeric {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    } else {
        None
    }
}
