//! What a query may not contain, by name and position, found in the syntax tree before anything is planned. A form that the
//! planner below would ignore or misread must be named here.

use std::ops::ControlFlow;

use datafusion_sql::sqlparser::ast::{
    Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArguments, GroupByExpr, Join, JoinConstraint, JoinOperator, ObjectName, Query, Select,
    SetExpr, SetOperator, SetQuantifier, Spanned, TableFactor, Visit, Visitor,
};
use datafusion_sql::sqlparser::tokenizer::Span;

use crate::codes;
use crate::dialect::TABLE_ARGUMENT;
use crate::fault::{Fault, Position, Tokens, did_you_mean};
use crate::functions::Functions;

/// Window functions in the places where a table or an expression can stand.
pub(crate) const WINDOW_WORDS: &[&str] = &[
    "tumble",
    "hop",
    "window",
    "tumble_start",
    "tumble_end",
    "tumble_rowtime",
    "hop_start",
    "hop_end",
    "hop_rowtime",
];

/// All faults of the query that its syntax shows.
pub(crate) fn refuse(query: &Query, tokens: &Tokens, functions: &Functions) -> Vec<Fault> {
    let mut visitor = Refuse {
        tokens,
        functions,
        faults: vec![],
        tables: vec![],
    };
    let _ = query.visit(&mut visitor);
    let mut faults = visitor.faults;
    faults.sort_by(|a, b| a.position.cmp(&b.position).then(a.code.cmp(b.code)));
    faults.dedup();
    faults
}

struct Refuse<'a> {
    tokens: &'a Tokens,
    functions: &'a Functions,
    faults: Vec<Fault>,
    /// Addresses of subqueries that are the table of a window function, and no expression.
    tables: Vec<usize>,
}

pub(crate) fn function_name(name: &ObjectName) -> String {
    name.0
        .last()
        .and_then(|part| part.as_ident())
        .map(|i| i.value.to_lowercase())
        .unwrap_or_default()
}

impl Refuse<'_> {
    fn fault(&mut self, fault: Fault, span: Span) {
        let position = Position::of_span(span).or_else(|| self.tokens.start());
        self.faults.push(fault.at(position));
    }

    fn word(&mut self, fault: Fault, word: &str) {
        let position = self.tokens.locate_or_start(word);
        self.faults.push(fault.at(position));
    }

    /// Notes the subqueries among the arguments of a table function.
    fn table_arguments(&mut self, args: &[FunctionArg]) {
        for arg in args {
            let (FunctionArg::Unnamed(arg)
            | FunctionArg::Named { arg, .. }
            | FunctionArg::ExprNamed { arg, .. }) = arg;
            if let FunctionArgExpr::Expr(expr @ Expr::Subquery(_)) = arg {
                self.tables.push(std::ptr::from_ref(expr).addr());
            }
        }
    }

    fn set_expr(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Select(_) | SetExpr::Query(_) => {}
            SetExpr::SetOperation {
                op,
                set_quantifier,
                left,
                right,
            } => {
                self.set_expr(left);
                self.set_expr(right);
                match (op, set_quantifier) {
                    (SetOperator::Union, SetQuantifier::All) => {}
                    (SetOperator::Union, _) => {
                        let fault = Fault::new(
                            codes::SET_OPERATION,
                            format!(
                                "{op}{} is not supported",
                                if matches!(set_quantifier, SetQuantifier::None) {
                                    " (distinct)"
                                } else {
                                    ""
                                }
                            ),
                        );
                        self.word(
                            fault.help("write SELECT DISTINCT * FROM (… UNION ALL …)"),
                            "UNION",
                        );
                    }
                    (SetOperator::Intersect, _) => self.word(
                        Fault::new(codes::SET_OPERATION, "INTERSECT is not supported"),
                        "INTERSECT",
                    ),
                    (SetOperator::Except | SetOperator::Minus, _) => self.word(
                        Fault::new(codes::SET_OPERATION, format!("{op} is not supported")),
                        &op.to_string(),
                    ),
                }
            }
            SetExpr::Values(_) => self.word(
                Fault::new(codes::NO_FROM, "VALUES is not a stream"),
                "VALUES",
            ),
            other => {
                let span = other.span();
                self.fault(
                    Fault::new(codes::STATEMENT, "this form of query is not supported"),
                    span,
                );
            }
        }
    }

    fn join(&mut self, join: &Join) {
        let span = join.relation.span();
        let outer = |kind: &str| {
            Fault::new(
                codes::OUTER_JOIN,
                format!("{kind} JOIN is not supported, only inner joins are"),
            )
        };
        let semi =
            |kind: &str| Fault::new(codes::SEMI_JOIN, format!("{kind} JOIN is not supported"));
        let constraint = match &join.join_operator {
            JoinOperator::Join(c) | JoinOperator::Inner(c) | JoinOperator::CrossJoin(c) => c,
            JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => {
                return self.word(outer("LEFT"), "LEFT");
            }
            JoinOperator::Right(_) | JoinOperator::RightOuter(_) => {
                return self.word(outer("RIGHT"), "RIGHT");
            }
            JoinOperator::FullOuter(_) => return self.word(outer("FULL"), "FULL"),
            JoinOperator::Semi(_) | JoinOperator::LeftSemi(_) | JoinOperator::RightSemi(_) => {
                return self.word(semi("SEMI"), "SEMI");
            }
            JoinOperator::Anti(_) | JoinOperator::LeftAnti(_) | JoinOperator::RightAnti(_) => {
                return self.word(semi("ANTI"), "ANTI");
            }
            JoinOperator::AsOf { .. } => {
                return self.word(
                    Fault::new(codes::TEMPORAL_JOIN, "ASOF JOIN is not supported"),
                    "ASOF",
                );
            }
            _ => {
                return self.fault(
                    Fault::new(codes::REGULAR_JOIN, "this kind of join is not supported"),
                    span,
                );
            }
        };
        if let JoinConstraint::Natural = constraint {
            self.word(
                Fault::new(codes::REGULAR_JOIN, "NATURAL JOIN is not supported")
                    .help("name the columns in ON"),
                "NATURAL",
            );
        }
    }

    fn function(&mut self, function: &Function) {
        let span = function.name.span();
        let name = function_name(&function.name);
        if function.name.0.len() > 1 {
            return self.fault(
                Fault::new(
                    codes::UNKNOWN_FUNCTION,
                    format!("unknown function \"{}\"", function.name),
                ),
                span,
            );
        }
        match name.as_str() {
            TABLE_ARGUMENT | "descriptor" => return,
            "session" | "session_window" | "session_start" | "session_end" => {
                return self.fault(
                    Fault::new(codes::SESSION, "SESSION windows are not supported"),
                    span,
                );
            }
            "cumulate" | "cumulate_start" | "cumulate_end" => {
                return self.fault(
                    Fault::new(codes::CUMULATE, "CUMULATE windows are not supported"),
                    span,
                );
            }
            "unnest" | "explode" | "unnest_outer" => {
                return self.fault(
                    Fault::new(
                        codes::UNNEST,
                        format!("{} is not supported", name.to_uppercase()),
                    ),
                    span,
                );
            }
            "proctime" => {
                let fault = Fault::new(
                    codes::EVENT_TIME,
                    "PROCTIME() is not supported: time comes from the data",
                );
                return self.fault(fault.help("declare a watermark on an event-time column, or use now() for the epoch's time"), span);
            }
            "date_format" => {
                let fault = Fault::new(
                    codes::UNKNOWN_FUNCTION,
                    "DATE_FORMAT is not supported, since its patterns differ between engines",
                );
                return self.fault(fault.help("write to_char(ts, '%Y-%m-%d')"), span);
            }
            _ => {}
        }
        if let Some(_over) = &function.over {
            if name != "row_number" {
                let fault = match name.as_str() {
                    "rank" | "dense_rank" => Fault::new(
                        codes::TOP_N,
                        format!(
                            "{}() is not supported, only ROW_NUMBER() is",
                            name.to_uppercase()
                        ),
                    ),
                    _ => Fault::new(
                        codes::OVER,
                        format!("{}(…) OVER is not supported", name.to_uppercase()),
                    ),
                };
                self.fault(fault, span);
            }
            return;
        }
        if name == "row_number" {
            return self.fault(
                Fault::new(
                    codes::OVER,
                    "ROW_NUMBER() needs OVER (PARTITION BY … ORDER BY …)",
                ),
                span,
            );
        }
        if WINDOW_WORDS.contains(&name.as_str()) || name == "mod" {
            return;
        }
        if !self.functions.knows(&name) {
            let hint = did_you_mean(&name, self.functions.names());
            return self.fault(
                Fault::new(
                    codes::UNKNOWN_FUNCTION,
                    format!("unknown function \"{name}\"{hint}"),
                ),
                span,
            );
        }
        if !function.within_group.is_empty() {
            return self.fault(
                Fault::new(
                    codes::AGGREGATE,
                    format!("WITHIN GROUP in {name} is not supported"),
                ),
                span,
            );
        }
        if function.null_treatment.is_some() {
            return self.fault(
                Fault::new(
                    codes::AGGREGATE,
                    format!("IGNORE NULLS and RESPECT NULLS in {name} are not supported"),
                ),
                span,
            );
        }
        if let FunctionArguments::List(list) = &function.args {
            for clause in &list.clauses {
                let what = match clause {
                    FunctionArgumentClause::OrderBy(_) => "ORDER BY",
                    FunctionArgumentClause::IgnoreOrRespectNulls(_) => {
                        "IGNORE NULLS and RESPECT NULLS"
                    }
                    FunctionArgumentClause::Limit(_) => "LIMIT",
                    _ => "this clause",
                };
                self.fault(
                    Fault::new(
                        codes::AGGREGATE,
                        format!("{what} inside {name}(…) is not supported"),
                    ),
                    span,
                );
            }
        }
    }
}

impl Visitor for Refuse<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with
            && with.recursive
        {
            self.word(
                Fault::new(codes::RECURSIVE, "WITH RECURSIVE is not supported"),
                "RECURSIVE",
            );
        }
        if let Some(order) = &query.order_by {
            let fault = Fault::new(
                codes::ORDER_LIMIT,
                "ORDER BY on a stream is not supported: it has no end to be ordered before",
            );
            self.fault(fault.help("for the first row of each key use ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) with = 1"), order.span());
        }
        if query.limit_clause.is_some() {
            let word = if self.tokens.locate("LIMIT").is_some() {
                "LIMIT"
            } else {
                "OFFSET"
            };
            self.word(
                Fault::new(
                    codes::ORDER_LIMIT,
                    format!("{word} on a stream is not supported"),
                ),
                word,
            );
        }
        if query.fetch.is_some() {
            self.word(
                Fault::new(codes::ORDER_LIMIT, "FETCH on a stream is not supported"),
                "FETCH",
            );
        }
        if !query.locks.is_empty()
            || query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            self.word(
                Fault::new(codes::CLAUSE, "a clause after this query is not supported"),
                "FOR",
            );
        }
        self.set_expr(&query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.from.is_empty() {
            self.fault(
                Fault::new(codes::NO_FROM, "SELECT without FROM is not a stream"),
                select.select_token.0.span,
            );
        }
        for from in &select.from {
            for join in &from.joins {
                self.join(join);
            }
        }
        if let Some(Distinct::On(_)) = &select.distinct {
            let fault = Fault::new(codes::CLAUSE, "DISTINCT ON is not supported");
            self.word(
                fault.help("use ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) with = 1"),
                "DISTINCT",
            );
        }
        let clauses = [
            (select.top.is_some(), "TOP"),
            (select.into.is_some(), "INTO"),
            (!select.lateral_views.is_empty(), "LATERAL"),
            (select.prewhere.is_some(), "PREWHERE"),
            (!select.connect_by.is_empty(), "CONNECT"),
            (!select.cluster_by.is_empty(), "CLUSTER"),
            (!select.distribute_by.is_empty(), "DISTRIBUTE"),
            (!select.sort_by.is_empty(), "SORT"),
            (select.value_table_mode.is_some(), "AS"),
            (select.select_modifiers.is_some(), "SELECT"),
        ];
        for (given, word) in clauses {
            if given {
                self.word(
                    Fault::new(codes::CLAUSE, format!("{word} in a query is not supported")),
                    word,
                );
            }
        }
        if let GroupByExpr::Expressions(exprs, modifiers) = &select.group_by {
            let sets = exprs
                .iter()
                .find(|e| matches!(e, Expr::GroupingSets(_) | Expr::Rollup(_) | Expr::Cube(_)));
            if let Some(set) = sets {
                let word = match set {
                    Expr::Rollup(_) => "ROLLUP",
                    Expr::Cube(_) => "CUBE",
                    _ => "GROUPING",
                };
                self.word(
                    Fault::new(
                        codes::GROUPING_SETS,
                        "GROUPING SETS, ROLLUP and CUBE are not supported",
                    ),
                    word,
                );
            } else if !modifiers.is_empty() {
                self.word(
                    Fault::new(
                        codes::GROUPING_SETS,
                        "a modifier of GROUP BY is not supported",
                    ),
                    "GROUP",
                );
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let span = factor.span();
        match factor {
            TableFactor::Table {
                name,
                args,
                version,
                sample,
                with_ordinality,
                json_path,
                with_hints,
                partitions,
                index_hints,
                alias: _,
            } => {
                if version.is_some() {
                    self.word(
                        Fault::new(
                            codes::TEMPORAL_JOIN,
                            "FOR SYSTEM_TIME AS OF is not supported",
                        ),
                        "FOR",
                    );
                }
                if sample.is_some()
                    || *with_ordinality
                    || json_path.is_some()
                    || !with_hints.is_empty()
                    || !partitions.is_empty()
                    || !index_hints.is_empty()
                {
                    self.fault(
                        Fault::new(
                            codes::CLAUSE,
                            format!("a clause after table \"{name}\" is not supported"),
                        ),
                        span,
                    );
                }
                if let Some(args) = args {
                    self.table_arguments(&args.args);
                    match function_name(name).as_str() {
                        "tumble" | "hop" => {}
                        "session" => self.fault(
                            Fault::new(codes::SESSION, "SESSION windows are not supported"),
                            name.span(),
                        ),
                        "cumulate" => self.fault(
                            Fault::new(codes::CUMULATE, "CUMULATE windows are not supported"),
                            name.span(),
                        ),
                        other => {
                            let hint = did_you_mean(other, ["tumble", "hop"]);
                            self.fault(
                                Fault::new(
                                    codes::UNKNOWN_FUNCTION,
                                    format!("unknown table function \"{other}\"{hint}"),
                                ),
                                name.span(),
                            );
                        }
                    }
                }
            }
            TableFactor::Derived {
                lateral, sample, ..
            } => {
                if *lateral {
                    self.word(
                        Fault::new(codes::LATERAL, "LATERAL is not supported"),
                        "LATERAL",
                    );
                }
                if sample.is_some() {
                    self.fault(
                        Fault::new(codes::CLAUSE, "a sample of a query is not supported"),
                        span,
                    );
                }
            }
            TableFactor::TableFunction { expr, .. } => {
                if let Expr::Function(function) = expr {
                    let name = function_name(&function.name);
                    if let FunctionArguments::List(list) = &function.args {
                        self.table_arguments(&list.args);
                    }
                    if !matches!(name.as_str(), "tumble" | "hop" | "session" | "cumulate") {
                        let hint = did_you_mean(&name, ["tumble", "hop"]);
                        self.fault(
                            Fault::new(
                                codes::UNKNOWN_FUNCTION,
                                format!("unknown table function \"{name}\"{hint}"),
                            ),
                            function.name.span(),
                        );
                    }
                } else {
                    self.fault(
                        Fault::new(codes::LATERAL, "this table expression is not supported"),
                        span,
                    );
                }
            }
            TableFactor::NestedJoin {
                table_with_joins, ..
            } => {
                for join in &table_with_joins.joins {
                    self.join(join);
                }
            }
            TableFactor::UNNEST { .. } => self.word(
                Fault::new(codes::UNNEST, "UNNEST is not supported"),
                "UNNEST",
            ),
            TableFactor::MatchRecognize { .. } => self.word(
                Fault::new(codes::MATCH_RECOGNIZE, "MATCH_RECOGNIZE is not supported"),
                "MATCH_RECOGNIZE",
            ),
            TableFactor::Function { lateral: true, .. } => self.word(
                Fault::new(codes::LATERAL, "LATERAL is not supported"),
                "LATERAL",
            ),
            _ => self.fault(
                Fault::new(codes::LATERAL, "this table expression is not supported"),
                span,
            ),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::InSubquery { .. } => self.fault(
                Fault::new(codes::SEMI_JOIN, "IN (SELECT …) is not supported"),
                expr.span(),
            ),
            Expr::Exists { .. } => self.word(
                Fault::new(codes::SEMI_JOIN, "EXISTS is not supported"),
                "EXISTS",
            ),
            Expr::Subquery(_) if self.tables.contains(&std::ptr::from_ref(expr).addr()) => {}
            Expr::Subquery(_) | Expr::AnyOp { .. } | Expr::AllOp { .. } => {
                self.fault(
                    Fault::new(
                        codes::SUBQUERY,
                        "a subquery in an expression is not supported",
                    )
                    .help("put it into a view and join it"),
                    expr.span(),
                );
            }
            Expr::InUnnest { .. } => self.word(
                Fault::new(codes::UNNEST, "UNNEST is not supported"),
                "UNNEST",
            ),
            Expr::MatchAgainst { .. } => self.word(
                Fault::new(codes::CLAUSE, "MATCH … AGAINST is not supported"),
                "MATCH",
            ),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
