//! SQL text to statements: splits it at semicolons, takes off `EMIT …`, and parses `CREATE VIEW` and `INSERT INTO`. It owns
//! which statements exist; what may stand inside a query is `refuse`'s.

use datafusion_sql::sqlparser::ast::{
    Expr, Ident, ObjectName, Query, Spanned, Statement as Ast, TableObject,
};
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::{
    Location, Token, TokenWithSpan, Tokenizer, TokenizerError,
};

use crate::codes;
use crate::dialect::PenstockDialect;
use crate::fault::{Fault, Position, Result, Tokens};
use crate::graph::Emit;

/// Deepest nesting that the parser follows: a text from a stranger must not end the process.
const RECURSION_LIMIT: usize = 64;

/// One statement of the text.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub kind: StatementKind,
    pub query: Box<Query>,
    /// `EMIT ON WINDOW CLOSE`, `EMIT ON [WINDOW] UPDATE` at its end.
    pub emit: Option<(Emit, Option<Position>)>,
    pub tokens: Tokens,
}

#[derive(Debug, Clone)]
pub(crate) enum StatementKind {
    View { name: Ident, columns: Vec<Ident> },
    Insert { sink: Ident, columns: Vec<Ident> },
}

/// Parses the whole text; every statement that does not parse is one fault.
pub(crate) fn parse(sql: &str) -> Result<Vec<Statement>, Vec<Fault>> {
    let dialect = PenstockDialect::default();
    let tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|e| vec![tokenizer_fault(&e)])?;
    let mut faults = vec![];
    let mut statements = vec![];
    for tokens in tokens.split(|t| t.token == Token::SemiColon) {
        let tokens: Vec<TokenWithSpan> = tokens
            .iter()
            .filter(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF))
            .cloned()
            .collect();
        if tokens.is_empty() {
            continue;
        }
        match statement(&dialect, tokens) {
            Ok(statement) => statements.push(statement),
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if !statements
        .iter()
        .any(|s| matches!(s.kind, StatementKind::Insert { .. }))
    {
        let fault = Fault::new(
            codes::NO_INSERT,
            "the SQL has no INSERT INTO, so nothing would be computed",
        );
        return Err(vec![fault.help(
            "write INSERT INTO <sink> SELECT …, where <sink> is a name of spec.sinks",
        )]);
    }
    Ok(statements)
}

/// Parses one expression: a computed column.
pub(crate) fn parse_expression(text: &str) -> Result<Expr> {
    let dialect = PenstockDialect::default();
    let parsed = Parser::new(&dialect)
        .with_recursion_limit(RECURSION_LIMIT)
        .try_with_sql(text)
        .and_then(|mut parser| {
            let expr = parser.parse_expr()?;
            parser.expect_token(&Token::EOF)?;
            Ok(expr)
        });
    parsed.map_err(|e| parser_fault(&e))
}

fn statement(dialect: &PenstockDialect, mut tokens: Vec<TokenWithSpan>) -> Result<Statement> {
    let position = Position::of_span(tokens[0].span);
    refuse_by_first_words(&tokens, position)?;
    let emit = take_emit(&mut tokens)?;
    let kept = Tokens(tokens.clone());
    let end = tokens.last().map_or(Location::empty(), |t| t.span.end);
    let mut parser = Parser::new(dialect)
        .with_recursion_limit(RECURSION_LIMIT)
        .with_tokens_with_locations(tokens);
    let fault = |e: ParserError| parser_fault(&e).at(Position::of(end));
    let ast = parser.parse_statement().map_err(fault)?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(Fault::new(
            codes::SYNTAX,
            format!("expected the end of the statement, found {}", rest.token),
        )
        .at(Position::of_span(rest.span)));
    }
    let (kind, query) = kind(ast, &kept)?;
    Ok(Statement {
        kind,
        query,
        emit,
        tokens: kept,
    })
}

fn kind(ast: Ast, tokens: &Tokens) -> Result<(StatementKind, Box<Query>)> {
    let unsupported = |what: &str, word: &str| {
        Err(
            Fault::new(codes::STATEMENT, format!("{what} is not supported"))
                .at(tokens.locate_or_start(word)),
        )
    };
    match ast {
        Ast::CreateView(view) => {
            if view.materialized {
                return unsupported("CREATE MATERIALIZED VIEW", "MATERIALIZED");
            }
            if view.to.is_some()
                || !view.cluster_by.is_empty()
                || !matches!(
                    view.options,
                    datafusion_sql::sqlparser::ast::CreateTableOptions::None
                )
            {
                return unsupported("an option of CREATE VIEW", "VIEW");
            }
            Ok((
                StatementKind::View {
                    name: single(&view.name)?,
                    columns: view.columns.into_iter().map(|c| c.name).collect(),
                },
                view.query,
            ))
        }
        Ast::Insert(insert) => {
            if insert.overwrite {
                return unsupported("INSERT OVERWRITE", "OVERWRITE");
            }
            if insert.on.is_some()
                || insert.returning.is_some()
                || insert.partitioned.is_some()
                || insert.or.is_some()
                || insert.ignore
                || insert.table_alias.is_some()
            {
                return unsupported("a clause of this INSERT", "INSERT");
            }
            let TableObject::TableName(name) = &insert.table else {
                return unsupported("INSERT INTO a function", "INTO");
            };
            let columns = insert.columns.iter().map(single).collect::<Result<_>>()?;
            let Some(query) = insert.source else {
                return unsupported("INSERT without a query", "INSERT");
            };
            Ok((
                StatementKind::Insert {
                    sink: single(name)?,
                    columns,
                },
                query,
            ))
        }
        _ => unsupported("this statement", ""),
    }
}

fn single(name: &ObjectName) -> Result<Ident> {
    match name.0.as_slice() {
        [part] if part.as_ident().is_some() => {
            Ok(part.as_ident().cloned().unwrap_or_else(|| Ident::new("")))
        }
        _ => Err(Fault::new(
            codes::UNKNOWN_TABLE,
            format!("\"{name}\" is a compound name, and there are no catalogs or schemas"),
        )
        .at(Position::of_span(name.span()))),
    }
}

fn word(tokens: &[TokenWithSpan], index: usize) -> String {
    match tokens.get(index).map(|t| &t.token) {
        Some(Token::Word(w)) if w.quote_style.is_none() => w.value.to_uppercase(),
        _ => String::new(),
    }
}

/// Statements that are refused for what they are, before a syntax error inside them could hide the reason.
fn refuse_by_first_words(tokens: &[TokenWithSpan], position: Option<Position>) -> Result<()> {
    let refuse = |what: String, help: &str| {
        Err(
            Fault::new(codes::STATEMENT, format!("{what} is not supported"))
                .at(position)
                .help(help),
        )
    };
    let first = word(tokens, 0);
    match first.as_str() {
        "INSERT" => Ok(()),
        "CREATE" => {
            let object = (1..5).map(|i| word(tokens, i)).find(|w| {
                !matches!(
                    w.as_str(),
                    "OR" | "REPLACE" | "TEMPORARY" | "TEMP" | "ALTER"
                )
            });
            match object.as_deref() {
                Some("VIEW" | "MATERIALIZED") => Ok(()),
                Some("TABLE") => refuse(
                    "CREATE TABLE".into(),
                    "sources and sinks are spec.sources and spec.sinks of the manifest",
                ),
                Some("FUNCTION") => refuse(
                    "CREATE FUNCTION".into(),
                    "only built-in functions can be called",
                ),
                other => refuse(
                    format!("CREATE {}", other.unwrap_or_default()),
                    "only CREATE VIEW and INSERT INTO can be written",
                ),
            }
        }
        "SELECT" | "WITH" | "VALUES" | "TABLE" | "FROM" => refuse(
            format!("a {first} of its own"),
            "write INSERT INTO <sink> SELECT …, where <sink> is a name of spec.sinks",
        ),
        "SET" | "RESET" => refuse(first, "options are fields of the manifest"),
        "EXECUTE" | "BEGIN" | "END" => refuse(
            "a statement set".into(),
            "several INSERTs in one text already share their scans",
        ),
        _ => refuse(
            if first.is_empty() {
                "this statement".into()
            } else {
                first
            },
            "only CREATE VIEW and INSERT INTO can be written",
        ),
    }
}

/// Takes `EMIT ON WINDOW CLOSE`, `EMIT ON [WINDOW] UPDATE` off the end.
fn take_emit(tokens: &mut Vec<TokenWithSpan>) -> Result<Option<(Emit, Option<Position>)>> {
    let Some(at) = (0..tokens.len())
        .rev()
        .take(6)
        .find(|&i| word(tokens, i) == "EMIT" && word(tokens, i + 1) == "ON")
    else {
        return Ok(None);
    };
    let position = Position::of_span(tokens[at].span);
    let rest: Vec<String> = (at + 1..tokens.len()).map(|i| word(tokens, i)).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let emit = match rest.as_slice() {
        ["ON", "WINDOW", "CLOSE"] => Emit::OnClose,
        ["ON", "UPDATE"] | ["ON", "WINDOW", "UPDATE"] => Emit::OnUpdate,
        _ => {
            return Err(Fault::new(
                codes::SYNTAX,
                format!("EMIT {} is not known", rest.join(" ")),
            )
            .at(position)
            .help("write EMIT ON WINDOW CLOSE or EMIT ON UPDATE"));
        }
    };
    tokens.truncate(at);
    Ok(Some((emit, position)))
}

fn tokenizer_fault(error: &TokenizerError) -> Fault {
    Fault::new(codes::SYNTAX, lower_first(&error.message)).at(Position::of(error.location))
}

/// A parser's fault: its position is part of its text.
fn parser_fault(error: &ParserError) -> Fault {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => {
            return Fault::new(codes::SYNTAX, "the statement is nested too deeply");
        }
    };
    let Some((message, place)) = text.rsplit_once(" at Line: ") else {
        return Fault::new(
            codes::SYNTAX,
            lower_first(text.trim_end_matches(", found: EOF")),
        )
        .help("the statement ends too early");
    };
    let position = place.split_once(", Column: ").and_then(|(line, column)| {
        Some(Position {
            line: line.trim().parse().ok()?,
            column: column.trim().parse().ok()?,
        })
    });
    Fault::new(codes::SYNTAX, lower_first(message)).at(position)
}

pub(crate) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let second_is_upper = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !second_is_upper => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
