//! The codes of SQL faults, PS01xx: stable names with what they mean, for `penstock explain` and the docs.

/// A code, its title and what it means for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeEntry {
    pub code: &'static str,
    pub title: &'static str,
    pub explanation: &'static str,
}

macro_rules! codes {
    ($($name:ident = $code:literal, $title:literal, $text:literal;)*) => {
        $(pub(crate) const $name: &str = $code;)*
        /// Every code of this crate, ascending.
        pub const CODES: &[CodeEntry] = &[$(CodeEntry { code: $code, title: $title, explanation: $text }),*];
    };
}

codes! {
    SYNTAX = "PS0101", "syntax error", "The SQL text could not be parsed at this position.";
    UNKNOWN_COLUMN = "PS0102", "unknown column", "No table in scope has a column of this name. Names are case-sensitive; quote them with backticks or double quotes where they are keywords.";
    UNKNOWN_TABLE = "PS0103", "unknown table or sink", "FROM names a source of spec.sources or a view that was created before; INSERT INTO names a sink of spec.sinks.";
    UNKNOWN_FUNCTION = "PS0104", "unknown function", "No built-in function has this name.";
    AMBIGUOUS_COLUMN = "PS0105", "ambiguous column", "Several tables in scope have this column, or a table would have it twice. Qualify it, or give it a name by AS.";
    TYPE = "PS0106", "types do not fit", "An expression is applied to types it is not made for. Convert with CAST.";
    STATEMENT = "PS0107", "statement not supported", "The text may hold CREATE VIEW and INSERT INTO … SELECT. Tables are declared in the manifest.";
    NO_INSERT = "PS0108", "nothing is inserted", "A job needs at least one INSERT INTO.";
    DUPLICATE_VIEW = "PS0109", "name given twice", "A view has the name of another view or of a source.";
    INVALID = "PS0110", "invalid query", "The query has no meaning as it stands; the message says why.";
    INSERT_COLUMNS = "PS0111", "columns of INSERT", "The column list of INSERT must match the SELECT in number, and names must be unique.";
    SINK_COLUMN = "PS0112", "sink column missing", "keyColumns, primaryKey and partitionBy name columns of the rows that are inserted.";
    SINK_KEY = "PS0113", "key of the sink unknown", "Update mode needs to know which columns identify a row. A grouped query says so itself; otherwise give primaryKey.";
    COLUMN_TYPE = "PS0114", "column type", "The declared type of a column cannot be represented, or a computed column does not have its declared type.";
    EVENT_TIME = "PS0115", "not the event time", "Windows are taken over the column that the source's watermark names, or over window_time of an inner window.";
    WINDOW_SIZE = "PS0116", "window size", "Sizes are constant intervals above zero, without months. HOP in Flink's order takes (slide, size), window() in Spark's order (size, slide); slide is at most size.";
    WINDOW_ARGUMENTS = "PS0117", "window arguments", "TUMBLE(TABLE t, DESCRIPTOR(ts), size [, offset]); HOP(TABLE t, DESCRIPTOR(ts), slide, size [, offset]).";
    UNBOUNDED = "PS0120", "state grows without bound", "Without a window the state keeps every key for ever. Use a window, give state.ttl, or say sqlOptions.allowUnboundedState: true.";
    RETRACT = "PS0121", "changing rows where only final rows can go", "Results that change later cannot leave in Append mode, nor enter an operator that keeps no account of changes.";
    SESSION = "PS0130", "SESSION windows", "Session windows are not supported yet.";
    CUMULATE = "PS0131", "CUMULATE windows", "Cumulating windows are not supported yet.";
    INTERVAL_JOIN = "PS0132", "interval join", "Joins over a range of time are not supported yet. Join two windowed results by equal window_start and window_end.";
    REGULAR_JOIN = "PS0133", "join without a window", "Two streams are joined within equal windows: both sides come from windows of the same size, and ON compares window_start and window_end.";
    OUTER_JOIN = "PS0134", "outer join", "Only inner joins are supported.";
    SEMI_JOIN = "PS0135", "semi or anti join", "IN (SELECT …), EXISTS, SEMI and ANTI joins are not supported yet.";
    TEMPORAL_JOIN = "PS0136", "FOR SYSTEM_TIME AS OF", "Versioned-table and lookup joins are not supported yet.";
    TOP_N = "PS0137", "Top-N", "ROW_NUMBER() can be compared with 1 only: = 1 or <= 1.";
    OVER = "PS0138", "OVER window", "OVER is supported for ROW_NUMBER() with a condition = 1 or <= 1 on it.";
    MATCH_RECOGNIZE = "PS0139", "MATCH_RECOGNIZE", "Pattern matching is not supported yet.";
    UNNEST = "PS0140", "UNNEST", "UNNEST is not supported yet.";
    SUBQUERY = "PS0141", "subquery in an expression", "Scalar and correlated subqueries are not supported. Use a view or a join.";
    ORDER_LIMIT = "PS0142", "ORDER BY or LIMIT", "A stream has no end, so its rows cannot be ordered or counted off as a whole.";
    SET_OPERATION = "PS0143", "set operation", "UNION ALL is the one set operation. For UNION use SELECT DISTINCT over UNION ALL.";
    NO_FROM = "PS0144", "SELECT without FROM", "A query reads at least one source.";
    LATERAL = "PS0145", "table expression not supported", "This form of table expression is not supported.";
    GROUPING_SETS = "PS0146", "grouping sets", "GROUPING SETS, ROLLUP and CUBE are not supported yet.";
    AGGREGATE = "PS0147", "aggregate not supported", "This form of aggregate call is not supported here.";
    RECURSIVE = "PS0148", "recursive query", "WITH RECURSIVE is not supported.";
    CLAUSE = "PS0149", "clause not supported", "This clause has no meaning for a stream or is not supported.";
    UNREAD_SOURCE = "PS0150", "source is not read", "No query reads this source; it is not connected.";
    ARRAY_AGG = "PS0151", "order of collected values", "Without an order, values are collected as they arrive, which may differ from run to run.";
    FLOAT_SUM = "PS0152", "sum of floating-point numbers", "Sums of FLOAT and DOUBLE may differ in the last digits with the number of slots. DECIMAL is exact.";
    VOLATILE = "PS0153", "volatile function", "This function gives another value each time, so replaying rows after a failure gives other results.";
    UNUSED_VIEW = "PS0154", "view is not used", "No INSERT reads this view.";
}
