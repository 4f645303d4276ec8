//! Expressions: simplification, substitution, classification, and DataFusion's errors as faults.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchema, DFSchemaRef, DataFusionError, ScalarValue, SchemaError};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{Expr, ExprSchemable, Operator, Volatility};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;

use crate::codes;
use crate::fault::{Fault, Position, Tokens, did_you_mean};
use crate::parse::lower_first;

/// How the message of an unknown table begins, on its way through DataFusion's error.
pub(crate) const UNKNOWN_TABLE_MARK: &str = "unknown table \"";

pub(crate) fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

pub(crate) fn df_schema(schema: &SchemaRef) -> datafusion_common::Result<DFSchemaRef> {
    Ok(Arc::new(DFSchema::try_from(Schema::clone(schema))?))
}

/// Name of the column that the expression is, if it is nothing more.
pub(crate) fn as_column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(c) => Some(&c.name),
        Expr::Alias(a) => as_column(&a.expr),
        _ => None,
    }
}

/// Takes names off: a graph names columns in its schemas, not in its expressions.
pub(crate) fn strip_aliases(expr: Expr) -> Expr {
    expr.transform_up(|e| {
        Ok(match e {
            Expr::Alias(a) => Transformed::yes(*a.expr),
            other => Transformed::no(other),
        })
    })
    .map(|t| t.data)
    .unwrap_or_else(|_: DataFusionError| unreachable!("the closure never fails"))
}

/// Positions out of columns: equal expressions must compare equal wherever they stand in the text.
pub(crate) fn strip_spans(expr: Expr) -> Expr {
    rename(expr, &|c| {
        Expr::Column(Column::new(c.relation.clone(), c.name.clone()))
    })
}

/// Replaces every column.
pub(crate) fn rename(expr: Expr, to: &dyn Fn(&Column) -> Expr) -> Expr {
    expr.transform_up(|e| {
        Ok(match e {
            Expr::Column(c) => Transformed::yes(to(&c)),
            other => Transformed::no(other),
        })
    })
    .map(|t| t.data)
    .unwrap_or_else(|_: DataFusionError| unreachable!("the closure never fails"))
}

pub(crate) fn substitute(expr: Expr, by: &HashMap<String, Expr>) -> Expr {
    rename(expr, &|c| {
        by.get(&c.name)
            .cloned()
            .unwrap_or_else(|| Expr::Column(c.clone()))
    })
}

/// The type of an expression over the columns of a schema.
pub(crate) fn field_of(
    expr: &Expr,
    name: &str,
    schema: &DFSchemaRef,
) -> datafusion_common::Result<FieldRef> {
    let (_, field) = expr.to_field(schema)?;
    Ok(Arc::new(arrow::datatypes::Field::new(
        name,
        field.data_type().clone(),
        field.is_nullable(),
    )))
}

fn some(expr: &Expr, test: impl Fn(&Expr) -> bool) -> bool {
    let mut found = false;
    let _ = expr.apply(|e| {
        found |= test(e);
        Ok(if found {
            TreeNodeRecursion::Stop
        } else {
            TreeNodeRecursion::Continue
        })
    });
    found
}

fn volatility(expr: &Expr) -> Volatility {
    match expr {
        Expr::ScalarFunction(f) => f.func.signature().volatility,
        _ => Volatility::Immutable,
    }
}

/// Names of functions that give another value at each call.
pub(crate) fn volatile_functions(expr: &Expr) -> Vec<String> {
    let mut names = vec![];
    let _ = expr.apply(|e| {
        if let Expr::ScalarFunction(f) = e
            && matches!(f.func.signature().volatility, Volatility::Volatile)
        {
            names.push(f.func.name().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    names
}

/// Whether an expression can fail on a row that a filter before it would have dropped.
pub(crate) fn may_fail(expr: &Expr) -> bool {
    some(expr, |e| match e {
        Expr::Column(_)
        | Expr::Literal(..)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_) => false,
        Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Between(_)
        | Expr::InList(_)
        | Expr::Case(_)
        | Expr::Alias(_) => false,
        Expr::Like(_) | Expr::TryCast(_) => false,
        Expr::BinaryExpr(b) => match b.op {
            Operator::Divide | Operator::Modulo => {
                !matches!(&*b.right, Expr::Literal(v, _) if !is_zero(v))
            }
            _ => b.op.is_numerical_operators() && !is_integer_arithmetic(&b.left, &b.right),
        },
        Expr::ScalarFunction(f) => f.func.name() != "get_field",
        _ => true,
    })
}

/// Wrapping arithmetic on columns and numbers does not fail; on decimals and times it can overflow.
fn is_integer_arithmetic(left: &Expr, right: &Expr) -> bool {
    let plain = |e: &Expr| matches!(e, Expr::Literal(v, _) if v.data_type().is_integer());
    plain(left) || plain(right)
}

fn is_zero(value: &ScalarValue) -> bool {
    value.is_null() || ScalarValue::new_zero(&value.data_type()).is_ok_and(|zero| zero == *value)
}

/// Constants folded, conditions simplified. `now()` and its like stay as they are: the engine binds them for each epoch.
pub(crate) fn simplify(expr: Expr, schema: &DFSchemaRef, options: &Arc<ConfigOptions>) -> Expr {
    if some(&expr, |e| !matches!(volatility(e), Volatility::Immutable)) {
        return expr;
    }
    let Ok(before) = expr.get_type(schema.as_ref()) else {
        return expr;
    };
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(schema))
        .with_config_options(Arc::clone(options))
        .build();
    match ExprSimplifier::new(context).simplify(expr.clone()) {
        Ok(simple)
            if simple
                .get_type(schema.as_ref())
                .is_ok_and(|after| after == before) =>
        {
            simple
        }
        _ => expr,
    }
}

/// `column[.field…]`: a column, or fields within it.
pub(crate) fn field_path(expr: &Expr) -> Option<(&str, Vec<&str>)> {
    match expr {
        Expr::Column(c) => Some((&c.name, vec![])),
        Expr::ScalarFunction(f) if f.func.name() == "get_field" => {
            let (base, names) = f.args.split_first()?;
            let (column, mut path) = field_path(base)?;
            for name in names {
                match name {
                    Expr::Literal(
                        ScalarValue::Utf8(Some(n))
                        | ScalarValue::LargeUtf8(Some(n))
                        | ScalarValue::Utf8View(Some(n)),
                        _,
                    ) => path.push(n),
                    _ => return None,
                }
            }
            Some((column, path))
        }
        _ => None,
    }
}

/// A fault out of an error of DataFusion: code by its kind, position by its span or by the word it names.
pub(crate) fn fault_of_datafusion(error: DataFusionError, tokens: &Tokens) -> Fault {
    match error {
        DataFusionError::Diagnostic(diagnostic, inner) => {
            let position = diagnostic.span.map(|s| Position {
                line: u32::try_from(s.start.line).unwrap_or(u32::MAX),
                column: u32::try_from(s.start.column).unwrap_or(u32::MAX),
            });
            let mut fault = fault_of_datafusion(*inner, tokens);
            fault.position = position.or(fault.position);
            fault
        }
        DataFusionError::Context(_, inner) => fault_of_datafusion(*inner, tokens),
        DataFusionError::Shared(inner) => fault_of_text(&inner.to_string(), tokens),
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(first) => fault_of_datafusion(first, tokens),
            None => Fault::new(codes::INVALID, "the query cannot be planned"),
        },
        DataFusionError::SchemaError(error, _) => match *error {
            SchemaError::FieldNotFound {
                field,
                valid_fields,
            } => unknown_column(&field, valid_fields.iter().map(|c| c.name.as_str()), tokens),
            SchemaError::AmbiguousReference { field } => Fault::new(
                codes::AMBIGUOUS_COLUMN,
                format!("\"{}\" is in several tables", field.name),
            )
            .help("qualify it with the table's name")
            .at(span(&field))
            .at(tokens.locate_or_start(&field.name)),
            SchemaError::DuplicateQualifiedField { name, .. }
            | SchemaError::DuplicateUnqualifiedField { name } => Fault::new(
                codes::AMBIGUOUS_COLUMN,
                format!("\"{name}\" is there twice"),
            )
            .help("give one of them a name by AS")
            .at(tokens.locate_or_start(&name)),
        },
        other => fault_of_text(&other.strip_backtrace(), tokens),
    }
}

fn span(field: &Column) -> Option<Position> {
    field.spans.first().map(|s| Position {
        line: u32::try_from(s.start.line).unwrap_or(u32::MAX),
        column: u32::try_from(s.start.column).unwrap_or(u32::MAX),
    })
}

pub(crate) fn unknown_column<'a>(
    field: &Column,
    valid: impl Iterator<Item = &'a str>,
    tokens: &Tokens,
) -> Fault {
    let hint = did_you_mean(&field.name, valid.filter(|n| !n.starts_with('$')));
    let qualified = field
        .relation
        .as_ref()
        .map(|r| format!("{r}."))
        .unwrap_or_default();
    Fault::new(
        codes::UNKNOWN_COLUMN,
        format!("unknown column \"{qualified}{}\"{hint}", field.name),
    )
    .at(span(field))
    .at(tokens.locate_or_start(&field.name))
}

fn fault_of_text(text: &str, tokens: &Tokens) -> Fault {
    let text = text.lines().next().unwrap_or_default();
    let text = [
        "Error during planning: ",
        "This feature is not implemented: ",
        "Invalid or Unsupported Configuration: ",
        "type_coercion",
        "caused by",
    ]
    .iter()
    .fold(text.to_owned(), |t, prefix| {
        t.trim_start_matches(prefix).to_owned()
    });
    if let Some(rest) = text.find(UNKNOWN_TABLE_MARK).map(|i| &text[i..]) {
        let table = rest[UNKNOWN_TABLE_MARK.len()..]
            .split('"')
            .next()
            .unwrap_or_default();
        return Fault::new(codes::UNKNOWN_TABLE, rest).at(tokens.locate_or_start(table));
    }
    if let Some(name) = between(&text, "Field ", " not found in struct") {
        return Fault::new(
            codes::UNKNOWN_COLUMN,
            format!("unknown field \"{name}\" of a ROW"),
        )
        .at(tokens.locate_or_start(name));
    }
    if text.contains("require unique expression names")
        && let Some(name) = between(&text, " AS ", "\" at position").or(between(
            &text,
            "expression \"",
            "\" at position",
        ))
    {
        let name = name.rsplit('.').next().unwrap_or(name);
        return Fault::new(
            codes::AMBIGUOUS_COLUMN,
            format!("two columns \"{name}\" in one SELECT"),
        )
        .help("give one of them a name by AS")
        .at(tokens.locate_or_start(name));
    }
    if let Some(name) = between(&text, "column \"", "\" must appear in the GROUP BY") {
        let name = name.rsplit('.').next().unwrap_or(name);
        return Fault::new(
            codes::INVALID,
            format!("\"{name}\" must be in GROUP BY or within an aggregate function"),
        )
        .at(tokens.locate_or_start(name));
    }
    let code = if ["coerc", "Cannot infer", "type", "cast"]
        .iter()
        .any(|w| text.contains(w))
    {
        codes::TYPE
    } else {
        codes::INVALID
    };
    let quoted = text
        .split(['\'', '"', '`'])
        .nth(1)
        .and_then(|w| tokens.locate(w.rsplit('.').next().unwrap_or(w)));
    // "No function matches … 'sum(Utf8)'" names the function before a parenthesis.
    let called = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| w.len() > 2 && text.contains(&format!("{w}(")))
        .find_map(|w| tokens.locate(w));
    Fault::new(code, lower_first(text.trim_end_matches('.')))
        .at(called)
        .at(quoted)
        .at(tokens.start())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}
