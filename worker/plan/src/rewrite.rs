//! Aliases of other systems, rewritten in the syntax tree: `MOD(a, b)`, and window functions in `GROUP BY`
//! (`window(ts, size, slide)` of Spark, `tumble(size)` and `hop(slide, size)` of Arroyo, `TUMBLE(ts, size)` of old Flink).
//! What remains is `FROM TUMBLE(…)` with `GROUP BY window_start, window_end`.

use std::ops::ControlFlow;

use datafusion_sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr,
    Ident, ObjectName, Query, Select, SelectItem, Spanned, TableFactor, TableFunctionArgs,
    VisitMut, VisitorMut,
};
use datafusion_sql::sqlparser::tokenizer::Span;

use crate::codes;
use crate::dialect::{TABLE_ARGUMENT, call};
use crate::fault::{Fault, Position};
use crate::refuse::function_name;

/// Order of (slide, size) as written: marks a call that came from Spark's `window`.
pub(crate) const SPARK_HOP: &str = "$window";

pub(crate) fn rewrite(query: &mut Query) -> Result<(), Fault> {
    let mut visitor = Rewrite;
    match query.visit(&mut visitor) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(fault) => Err(*fault),
    }
}

struct Rewrite;

impl VisitorMut for Rewrite {
    type Break = Box<Fault>;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Box<Fault>> {
        match group_windows(select) {
            Ok(()) => ControlFlow::Continue(()),
            Err(fault) => ControlFlow::Break(Box::new(fault)),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Box<Fault>> {
        if let Expr::Function(function) = expr
            && function_name(&function.name) == "mod"
        {
            let args = plain_args(function);
            let [left, right] = args.as_slice() else {
                let fault = Fault::new(codes::INVALID, "MOD takes two arguments")
                    .at(Position::of_span(function.name.span()));
                return ControlFlow::Break(Box::new(fault));
            };
            let nested = |e: &Expr| Box::new(Expr::Nested(Box::new(e.clone())));
            *expr = Expr::Nested(Box::new(Expr::BinaryOp {
                left: nested(left),
                op: BinaryOperator::Modulo,
                right: nested(right),
            }));
        }
        ControlFlow::Continue(())
    }
}

pub(crate) fn plain_args(function: &Function) -> Vec<Expr> {
    match &function.args {
        FunctionArguments::List(list) => list
            .args
            .iter()
            .filter_map(|a| match a {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(e))
                | FunctionArg::Named {
                    arg: FunctionArgExpr::Expr(e),
                    ..
                } => Some(e.clone()),
                _ => None,
            })
            .collect(),
        FunctionArguments::None | FunctionArguments::Subquery(_) => vec![],
    }
}

fn window_function(expr: &Expr) -> Option<&Function> {
    match expr {
        Expr::Function(f)
            if matches!(function_name(&f.name).as_str(), "tumble" | "hop" | "window") =>
        {
            Some(f)
        }
        _ => None,
    }
}

fn ident(name: &str, span: Span) -> Expr {
    Expr::Identifier(Ident::with_span(span, name))
}

/// Moves a window function of `GROUP BY` into `FROM`.
fn group_windows(select: &mut Select) -> Result<(), Fault> {
    let GroupByExpr::Expressions(groups, _) = &mut select.group_by else {
        return Ok(());
    };
    // `GROUP BY w` where the SELECT says `tumble(…) AS w`, or `GROUP BY 1`.
    for group in groups.iter_mut() {
        let aliased = select.projection.iter().enumerate().find_map(|(i, item)| {
            let (expr, alias) = match item {
                SelectItem::ExprWithAlias { expr, alias } => (expr, Some(&alias.value)),
                SelectItem::UnnamedExpr(expr) => (expr, None),
                _ => return None,
            };
            window_function(expr)?;
            let by_name =
                matches!((&*group, alias), (Expr::Identifier(g), Some(alias)) if g.value == *alias);
            let by_number =
                matches!(&*group, Expr::Value(v) if v.to_string() == (i + 1).to_string());
            (by_name || by_number).then(|| expr.clone())
        });
        if let Some(expr) = aliased {
            *group = expr;
        }
    }
    let windows: Vec<(usize, Function)> = groups
        .iter()
        .enumerate()
        .filter_map(|(i, g)| Some((i, window_function(g)?.clone())))
        .collect();
    let (index, function) = match windows.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        [_, second, ..] => {
            return Err(Fault::new(codes::INVALID, "GROUP BY has two windows")
                .at(Position::of_span(second.1.name.span())));
        }
    };
    let span = function.name.span();
    let at = Position::of_span(span);
    let name = function_name(&function.name);
    let args = plain_args(&function);
    let (time, sizes) = match (name.as_str(), args.as_slice()) {
        ("tumble", [size]) => (None, vec![size.clone()]),
        ("hop", [slide, size]) => (None, vec![slide.clone(), size.clone()]),
        ("tumble", [time, size]) | ("window", [time, size]) => {
            (Some(time.clone()), vec![size.clone()])
        }
        ("hop", [time, slide, size]) => (Some(time.clone()), vec![slide.clone(), size.clone()]),
        ("window", [time, size, slide]) => (Some(time.clone()), vec![size.clone(), slide.clone()]),
        _ => {
            let form = match name.as_str() {
                "tumble" => "tumble([ts,] size)",
                "hop" => "hop([ts,] slide, size)",
                _ => "window(ts, size [, slide])",
            };
            return Err(Fault::new(
                codes::WINDOW_ARGUMENTS,
                format!("{name} in GROUP BY is written {form}"),
            )
            .at(at));
        }
    };
    groups[index] = ident("window_start", span);
    groups.insert(index + 1, ident("window_end", span));

    let function_of_table = match (name.as_str(), sizes.len()) {
        ("window", 2) => SPARK_HOP,
        ("hop", _) => "hop",
        _ => "tumble",
    };
    let [from] = select.from.as_mut_slice() else {
        return Err(Fault::new(
            codes::WINDOW_ARGUMENTS,
            "a window in GROUP BY needs one table in FROM",
        )
        .at(at)
        .help("put the join into a view"));
    };
    if !from.joins.is_empty() {
        return Err(Fault::new(
            codes::WINDOW_ARGUMENTS,
            "a window in GROUP BY needs one table in FROM",
        )
        .at(at)
        .help("put the join into a view"));
    }
    let (data, alias) = match &mut from.relation {
        TableFactor::Table {
            name,
            alias,
            args: None,
            ..
        } => {
            let idents: Vec<Ident> = name
                .0
                .iter()
                .filter_map(|p| p.as_ident().cloned())
                .collect();
            let table = idents.last().cloned();
            let own = table.map(|name| datafusion_sql::sqlparser::ast::TableAlias {
                explicit: true,
                name,
                columns: vec![],
                at: None,
            });
            let arg = if let [one] = idents.as_slice() {
                Expr::Identifier(one.clone())
            } else {
                Expr::CompoundIdentifier(idents)
            };
            (call(TABLE_ARGUMENT, vec![arg], span), alias.clone().or(own))
        }
        TableFactor::Derived {
            subquery, alias, ..
        } => (Expr::Subquery(subquery.clone()), alias.clone()),
        _ => {
            return Err(Fault::new(
                codes::WINDOW_ARGUMENTS,
                "a window in GROUP BY needs a table in FROM",
            )
            .at(at));
        }
    };
    let descriptor = call(
        "descriptor",
        time.clone().map(unqualified).into_iter().collect(),
        span,
    );
    let args = [data, descriptor]
        .into_iter()
        .chain(sizes)
        .map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e)))
        .collect();
    from.relation = TableFactor::Table {
        name: ObjectName::from(vec![Ident::with_span(span, function_of_table)]),
        alias,
        args: Some(TableFunctionArgs {
            args,
            settings: None,
        }),
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    };
    let mut columns = WindowColumns {
        function: &function,
    };
    for item in &mut select.projection {
        let unnamed_window =
            matches!(item, SelectItem::UnnamedExpr(e) if window_function(e).is_some());
        let _ = item.visit(&mut columns);
        if unnamed_window && let SelectItem::UnnamedExpr(expr) = item {
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::with_span(span, "window"),
            };
        }
    }
    if let Some(having) = &mut select.having {
        let _ = having.visit(&mut columns);
    }
    Ok(())
}

fn unqualified(time: Expr) -> Expr {
    match time {
        Expr::CompoundIdentifier(mut idents) if idents.len() == 2 => {
            Expr::Identifier(idents.remove(1))
        }
        other => other,
    }
}

/// Occurrences of the grouped window in SELECT and HAVING become its columns.
struct WindowColumns<'a> {
    function: &'a Function,
}

impl VisitorMut for WindowColumns<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let span = self.function.name.span();
        let column = match &*expr {
            Expr::Function(f) => match function_name(&f.name).as_str() {
                "tumble_start" | "hop_start" => Some("window_start"),
                "tumble_end" | "hop_end" => Some("window_end"),
                "tumble_rowtime" | "hop_rowtime" => Some("window_time"),
                _ => None,
            },
            Expr::CompoundIdentifier(idents) => match idents.as_slice() {
                [w, part]
                    if w.value.eq_ignore_ascii_case("window")
                        && part.value.eq_ignore_ascii_case("start") =>
                {
                    Some("window_start")
                }
                [w, part]
                    if w.value.eq_ignore_ascii_case("window")
                        && part.value.eq_ignore_ascii_case("end") =>
                {
                    Some("window_end")
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(column) = column {
            *expr = ident(column, span);
        } else if window_function(expr).is_some_and(|f| f.to_string() == self.function.to_string())
            || matches!(&*expr, Expr::Identifier(i) if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("window"))
        {
            let text = |t: &str| {
                Expr::Value(
                    datafusion_sql::sqlparser::ast::Value::SingleQuotedString(t.to_owned()).into(),
                )
            };
            let args = vec![
                text("start"),
                ident("window_start", span),
                text("end"),
                ident("window_end", span),
            ];
            *expr = call("named_struct", args, span);
        }
        ControlFlow::Continue(())
    }
}
