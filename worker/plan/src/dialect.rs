//! The SQL dialect: generic SQL, and `TABLE t` as an argument of table functions. It owns what parses; what is refused
//! afterwards is `refuse`'s.

use std::any::TypeId;

use datafusion_sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName,
};
use datafusion_sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion_sql::sqlparser::keywords::Keyword;
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::{Span, Token};

/// Name of the function call that stands for `TABLE t [PARTITION BY …]` in the syntax tree.
pub(crate) const TABLE_ARGUMENT: &str = "$table";

/// Flink's forms over sqlparser's generic dialect.
#[derive(Debug, Default)]
pub(crate) struct PenstockDialect(GenericDialect);

impl Dialect for PenstockDialect {
    // The parser asks `dialect_of!` here and there: answer as the generic dialect does.
    fn dialect(&self) -> TypeId {
        self.0.dialect()
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.0.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        // `$` begins the engine's own names.
        ch != '$' && self.0.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.0.is_identifier_part(ch)
    }

    fn supports_table_versioning(&self) -> bool {
        true
    }

    fn supports_match_recognize(&self) -> bool {
        true
    }

    fn supports_named_fn_args_with_rarrow_operator(&self) -> bool {
        true
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }

    fn supports_group_by_expr(&self) -> bool {
        true
    }

    fn supports_select_wildcard_except(&self) -> bool {
        true
    }

    fn supports_select_wildcard_exclude(&self) -> bool {
        true
    }

    fn supports_dictionary_syntax(&self) -> bool {
        true
    }

    fn support_map_literal_syntax(&self) -> bool {
        true
    }

    fn allow_extract_custom(&self) -> bool {
        true
    }

    fn allow_extract_single_quotes(&self) -> bool {
        true
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        true
    }

    fn supports_nested_comments(&self) -> bool {
        true
    }

    fn supports_parens_around_table_factor(&self) -> bool {
        true
    }

    fn supports_string_escape_constant(&self) -> bool {
        true
    }

    fn supports_array_typedef_with_brackets(&self) -> bool {
        true
    }

    fn supports_window_function_null_treatment_arg(&self) -> bool {
        true
    }

    fn supports_window_clause_named_window_reference(&self) -> bool {
        true
    }

    fn supports_limit_comma(&self) -> bool {
        true
    }

    fn supports_left_associative_joins_without_parens(&self) -> bool {
        true
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        let is = |token: &Token, keyword| matches!(token, Token::Word(w) if w.keyword == keyword && w.quote_style.is_none());
        if !is(&parser.peek_token_ref().token, Keyword::TABLE)
            || !matches!(parser.peek_nth_token_ref(1).token, Token::Word(_))
        {
            return None;
        }
        let span = parser.next_token().span;
        Some(table_argument(parser).map(|args| call(TABLE_ARGUMENT, args, span)))
    }
}

/// A function call in the syntax tree, with plain arguments.
pub(crate) fn call(name: &str, args: Vec<Expr>, span: Span) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_span(span, name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args
                .into_iter()
                .map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e)))
                .collect(),
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

/// The table's name, then the columns of `PARTITION BY`.
fn table_argument(parser: &mut Parser) -> Result<Vec<Expr>, ParserError> {
    let name = parser.parse_object_name(false)?;
    let idents: Vec<Ident> = name
        .0
        .iter()
        .filter_map(|part| part.as_ident().cloned())
        .collect();
    let mut args = vec![if let [ident] = idents.as_slice() {
        Expr::Identifier(ident.clone())
    } else {
        Expr::CompoundIdentifier(idents)
    }];
    if parser.parse_keywords(&[Keyword::PARTITION, Keyword::BY]) {
        if parser.consume_token(&Token::LParen) {
            args.extend(parser.parse_comma_separated(Parser::parse_expr)?);
            parser.expect_token(&Token::RParen)?;
        } else {
            args.push(parser.parse_expr()?);
        }
    }
    Ok(args)
}
