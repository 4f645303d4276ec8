//! The table of stable codes: what each means and what to do. A code is never given another meaning, and never removed.
//!
//! Ranges: PS00xx structure and rules of the manifest, PS01xx SQL, PR02xx sources, sinks and formats at run time,
//! PR03xx the engine, PR04xx storage and the log, PR05xx state. A crate that reports a code of its own (the planner: PS0100 to PS0199)
//! makes it by [`Code::new`] and registers title and text here, so that `penstock explain` and the reference list all.

use std::fmt;

use serde::{Serialize, Serializer};

/// A stable code: `PS0007`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(&'static str);

impl Code {
    /// A code of this text. Anyone may make one; one that is not in [`CODES`] has no explanation.
    pub const fn new(code: &'static str) -> Self {
        Self(code)
    }

    /// The code's text.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// What the table says of it.
    pub fn entry(self) -> Option<&'static Entry> {
        explain(self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What it means and what to do.
    pub text: &'static str,
}

/// The entry of a code; case does not matter.
pub fn explain(code: &str) -> Option<&'static Entry> {
    CODES
        .iter()
        .find(|entry| entry.code.0.eq_ignore_ascii_case(code.trim()))
}

macro_rules! codes {
    ($($name:ident = $code:literal, $title:literal, $text:literal;)*) => {
        impl Code {
            $(#[doc = $title] pub const $name: Code = Code($code);)*
        }

        /// Every code, in order.
        pub const CODES: &[Entry] = &[$(Entry { code: Code($code), title: $title, text: $text },)*];
    };
}

codes! {
    // Structure of a manifest.
    YAML = "PS0001", "not YAML", "The file could not be read as YAML 1.2. The message says what the reader stumbled over; the place is where it did, which may be a line after the fault. Tabs are not indentation.";
    TOO_LARGE = "PS0002", "too large", "A manifest has at most 4 MiB, 200,000 nodes (aliases counted each time they are used) and 64 levels. What is larger is refused unread.";
    API_VERSION = "PS0003", "apiVersion not known", "This version knows penstock.dev/v1alpha1.";
    KIND = "PS0004", "kind not known", "The kinds are StreamingJob and Savepoint.";
    DUPLICATE_KEY = "PS0005", "key given twice", "A mapping holds a key once. YAML readers differ in which of two they take, so neither is taken.";
    MISSING = "PS0006", "field missing", "The schema requires this field. The manifest reference says what it is for.";
    UNKNOWN_FIELD = "PS0007", "unknown field", "The schema has no such field here. Names are lower camel case. Nothing unknown is ignored: a misspelt field would silently be its default. What is planned for later versions has no field yet.";
    TYPE = "PS0008", "wrong type", "The value has another YAML type than the field. Texts that look like numbers or booleans need quotes.";
    AMBIGUOUS = "PS0009", "a word that YAML readers disagree on", "YAML 1.1, which kubectl reads, takes y, yes, on, n, no and off for booleans; YAML 1.2 takes them for texts. Write true or false, or put the text in quotes.";
    DURATION = "PS0010", "not a duration", "A duration is a whole number and one unit: 500ms, 10s, 5m or 2h. Days are not a unit, since a day is not always 24 hours: write 24h.";
    SIZE = "PS0011", "not a size", "A size is a whole number with one of Ki, Mi, Gi, Ti or k, M, G, T, or none for bytes: 128Mi, 20Gi.";
    INSTANT = "PS0012", "not an instant", "An instant is written in RFC 3339 with a zone: 2026-01-02T00:00:00Z.";
    COLUMN_TYPE = "PS0013", "not a column type", "Types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p,s), STRING, BINARY, DATE, TIME, TIMESTAMP(0-9), TIMESTAMP_LTZ(0-9), ARRAY<T>, MAP<K, V> and ROW<name T, …>.";
    ENUM = "PS0014", "not one of the values", "The field takes one of a list of words, with exactly that case.";
    RANGE = "PS0015", "out of bounds", "The number, size or duration is below the least or above the greatest that the field takes.";
    LENGTH = "PS0016", "too short or too long", "The text, list or map has fewer or more than the field takes.";
    ONE_OF = "PS0017", "not exactly one", "Exactly one of these members must be given (for some: at most one). An empty object needs braces: `print: {}`; `print:` alone is null, which is nothing.";
    NAME = "PS0018", "not a name", "A job's name and namespace are DNS labels: lower-case letters, digits and hyphens; the job's has at most 40 characters, since names of pods and volumes are made from it. Sources, sinks and columns are SQL names: letters, digits and underscores, not starting with a digit.";
    DUPLICATE_NAME = "PS0019", "name given twice", "Names of sources and sinks are unique in the job together, since SQL sees them in one scope; names of columns are unique in their source.";
    EMPTY = "PS0020", "nothing in it", "The file holds no document.";
    PATTERN = "PS0021", "not of the form", "The text does not have the form that the field takes.";
    DEAD_LETTERS_MISSING = "PS0030", "deadLetters missing", "onError: DeadLetter and onLate: DeadLetter need `deadLetters`, the name of the sink that takes the rows.";
    DEAD_LETTERS_SINK = "PS0031", "deadLetters names no fitting sink", "`deadLetters` names a sink of spec.sinks whose format is raw or json; the body of a dead letter is the record's own bytes.";
    WATERMARK = "PS0032", "not a watermark column", "The watermark's column is one of the source's columns and a TIMESTAMP or TIMESTAMP_LTZ.";
    LATE_WITHOUT_WATERMARK = "PS0033", "onLate without watermark", "Without a watermark no row is late.";
    TRANSPORT = "PS0034", "not of this transport", "`from` takes what the transport knows of a record: Kafka has Key, Timestamp, Partition, Offset, Topic and Headers; files have Path, Offset (the line) and Timestamp (last change). Each has its types.";
    COLUMN_ORIGIN = "PS0035", "column with several origins", "A column is read from the body, or has one of `as`, `from` and `generate`.";
    GENERATE = "PS0036", "generate does not fit", "Every column of a generator that is not computed needs `generate`, of a kind that can make its type, and no other source takes it.";
    FORMAT = "PS0037", "format does not fit", "Kafka and files need a format; Parquet is for files; a generator has none.";
    RAW_COLUMNS = "PS0038", "columns of raw", "A source of format raw has exactly one column of type STRING or BINARY that is read from the body; the others are computed or taken from the transport.";
    PROPERTY_REFUSED = "PS0039", "property refused", "Refused is what runs or loads something, what the engine sets itself, what belongs into a Secret, and what leads to other hosts.";
    PROPERTY_UNKNOWN = "PS0040", "property not on the allow-list", "Only librdkafka properties of the allow-list are taken: connection, security, fetching, batching and retries.";
    URL = "PS0041", "not a folder's URL", "Folders are s3://bucket/prefix/ or file:///path/. Other stores come later.";
    TOPICS = "PS0042", "topics", "A Kafka source names `topics`, or a `topicPattern` that is a regular expression, and not both.";
    SHARDS = "PS0043", "shards do not divide keyGroups", "A shard is a range of key groups of equal size, so `shards` divides `keyGroups`.";
    PARALLELISM = "PS0044", "more slots than key groups", "Every slot owns at least one key group: slots × workers is at most keyGroups. keyGroups is fixed for the job's life; choose it with room.";
    DELIVERY = "PS0045", "more than the sink can give", "A terminal cannot take rows back: print gives AtLeastOnce at most.";
    AUTOSCALING = "PS0046", "autoscaling bounds", "DryRun and Active need maxReplicas, at least minReplicas; replicas lies between them.";
    LOCAL_IN_CLUSTER = "PS0047", "local folder in a cluster", "A folder of a node is lost with the node, and other workers do not see it. Use an object store.";
    POD_TEMPLATE = "PS0048", "not allowed in podTemplate", "The pod template is an allow-list: no labels of penstock.dev or of the cluster itself, no variables that load libraries or carry cloud credentials, no volumes of the host, no mounts over the system's or the engine's folders, no token of an account that is not for jobs, no nodes of the control plane, no priority of the system.";
    WINDOW_OF_TIME = "PS0049", "range of time is empty", "What ends at or before it begins reads nothing.";
    KEY_COLUMNS = "PS0050", "keys differ", "In Update and Complete mode the record's key is the primary key: keyColumns is absent or the same.";
    UNUSED_FIELD = "PS0051", "field without effect", "The field has no effect beside the others; remove one of them.";
    BROKERS = "PS0052", "not a list of brokers", "bootstrapServers is host:port, separated by commas.";
    RESTORE = "PS0053", "restoreFrom and startFresh", "A job that ignores its older log cannot be restored from it.";
    CSV = "PS0060", "CSV comes later", "The schema has format.csv; this version of the engine does not read or write it yet. Use json or raw.";
    PARQUET = "PS0061", "Parquet comes later", "The schema has format.parquet; this version of the engine does not read or write it yet. Use json.";
    GCS = "PS0062", "Google Cloud Storage comes later", "The schema has storage.gcs; this version does not keep logs there yet. Use s3 or local.";
    AZURE = "PS0063", "Azure Blob Storage comes later", "The schema has storage.azure; this version does not keep logs there yet. Use s3 or local.";
    MANY_WORKERS = "PS0064", "too many workers", "This version runs a job on 64 workers at most. Use workers.slots for more threads in each.";
    // Test files.
    TEST_NAME = "PS0070", "test names no such source or sink", "`input` names sources of the manifest that its SQL reads, `expect` names its sinks.";
    TEST_COLUMN = "PS0071", "test names no such column", "A row of `input` has columns that the source reads from the body, a row of `expect` columns of the rows that the SQL inserts into the sink. Members beyond those, and broken bodies, are given by $raw.";
    TEST_VALUE = "PS0072", "expected value does not have the column's type", "Both sides of a comparison are read by the types of the sink's columns. This value cannot be.";
    TEST_CASE = "PS0073", "case does not hold together", "A case has either `input` and `expect`, or `runs`; names of cases are unique in their file; after a run with drain: true the job is final, so only the last run may have it; crashAfterRow is at least 1 and at most the number of rows that are given.";
    TEST_JOB = "PS0074", "job of a test", "`job` names a file with exactly one StreamingJob, relative to the test file.";
    PLANNING = "PS0075", "planning takes too much", "The controller plans the SQL of a job in a process of 1 GiB and 5 seconds, and this text took more. Nest less, or split the job.";
    FIXED = "PS0076", "fixed for life", "The job's history stands on this value: the number of key groups, of a sink's shards, the place of the log. An edit cannot change it.";
    ORDER = "PS0077", "an order cannot be read", "A person tells a job by annotation to go on without input that is gone (penstock.dev/accept-loss: SOURCE@EPOCH, several by commas) or to go back to an epoch (penstock.dev/go-back: EPOCH@REQUEST). `kubectl penstock` writes both.";
    ACCOUNT = "PS0078", "service account is not for jobs", "workers.serviceAccountName names an account of the job's namespace whose owner has labelled it penstock.dev/allow-jobs=true. Any other would lend its rights to whoever may write a StreamingJob. `kubectl label serviceaccount NAME penstock.dev/allow-jobs=true` allows it.";
    OTHERS = "PS0079", "somebody else's object", "Certificates, versions, claims and marker topics that the controller or a job made for itself, and the topics that Kafka's brokers keep for themselves, are not for manifests: with them one job could speak for another, read its state or undo what it published.";
    BOUND = "PS0080", "out of bounds of the namespace", "Whoever administers Penstock bounds what jobs of a namespace may ask for: where their logs lie, which images they run, the number of workers and their size. The message says which value of the chart holds the bound. A job that ran before its bound was set goes on as it is, and is Stalled until it is brought within.";
    STARTS_EMPTY = "PS0081", "operators start empty", "The edit leaves these operators without the state of the version before: they are new, or upgrade.strategy: Stateless says so, or they are gone and named in upgrade.dropState. They know nothing of what was read before the edit; offsets go on.";
    // SQL.
    SQL_SYNTAX = "PS0101", "syntax error", "The SQL text could not be parsed at this position.";
    SQL_UNKNOWN_COLUMN = "PS0102", "unknown column", "No table in scope has a column of this name. Names are case-sensitive; quote them with backticks or double quotes where they are keywords.";
    SQL_UNKNOWN_TABLE = "PS0103", "unknown table or sink", "FROM names a source of spec.sources or a view that was created before; INSERT INTO names a sink of spec.sinks.";
    SQL_UNKNOWN_FUNCTION = "PS0104", "unknown function", "No built-in function has this name.";
    SQL_AMBIGUOUS_COLUMN = "PS0105", "ambiguous column", "Several tables in scope have this column, or a table would have it twice. Qualify it, or give it a name by AS.";
    SQL_TYPE = "PS0106", "types do not fit", "An expression is applied to types it is not made for. Convert with CAST.";
    SQL_STATEMENT = "PS0107", "statement not supported", "The text may hold CREATE VIEW and INSERT INTO … SELECT. Tables are declared in the manifest.";
    SQL_NO_INSERT = "PS0108", "nothing is inserted", "A job needs at least one INSERT INTO.";
    SQL_DUPLICATE_VIEW = "PS0109", "name given twice", "A view has the name of another view or of a source.";
    SQL_INVALID = "PS0110", "invalid query", "The query has no meaning as it stands; the message says why.";
    SQL_INSERT_COLUMNS = "PS0111", "columns of INSERT", "The column list of INSERT must match the SELECT in number, and names must be unique.";
    SQL_SINK_COLUMN = "PS0112", "sink column missing", "keyColumns, primaryKey and partitionBy name columns of the rows that are inserted.";
    SQL_SINK_KEY = "PS0113", "key of the sink unknown", "Update mode needs to know which columns identify a row. A grouped query says so itself; otherwise give primaryKey.";
    SQL_COLUMN_TYPE = "PS0114", "column type", "The declared type of a column cannot be represented, or a computed column does not have its declared type.";
    SQL_EVENT_TIME = "PS0115", "not the event time", "Windows are taken over the column that the source's watermark names, or over window_time of an inner window.";
    SQL_WINDOW_SIZE = "PS0116", "window size", "Sizes are constant intervals above zero, without months. HOP in Flink's order takes (slide, size), window() in Spark's order (size, slide); slide is at most size.";
    SQL_WINDOW_ARGUMENTS = "PS0117", "window arguments", "TUMBLE(TABLE t, DESCRIPTOR(ts), size [, offset]); HOP(TABLE t, DESCRIPTOR(ts), slide, size [, offset]).";
    SQL_UNBOUNDED = "PS0120", "state grows without bound", "Without a window the state keeps every key for ever. Use a window, give state.ttl, or say sqlOptions.allowUnboundedState: true.";
    SQL_RETRACT = "PS0121", "changing rows where only final rows can go", "Results that change later cannot leave in Append mode, nor enter an operator that keeps no account of changes.";
    SQL_SESSION = "PS0130", "SESSION windows", "Session windows are not supported yet.";
    SQL_CUMULATE = "PS0131", "CUMULATE windows", "Cumulating windows are not supported yet.";
    SQL_INTERVAL_JOIN = "PS0132", "interval join", "Joins over a range of time are not supported yet. Join two windowed results by equal window_start and window_end.";
    SQL_REGULAR_JOIN = "PS0133", "join without a window", "Two streams are joined within equal windows: both sides come from windows of the same size, and ON compares window_start and window_end.";
    SQL_OUTER_JOIN = "PS0134", "outer join", "Only inner joins are supported.";
    SQL_SEMI_JOIN = "PS0135", "semi or anti join", "IN (SELECT …), EXISTS, SEMI and ANTI joins are not supported yet.";
    SQL_TEMPORAL_JOIN = "PS0136", "FOR SYSTEM_TIME AS OF", "Versioned-table and lookup joins are not supported yet.";
    SQL_TOP_N = "PS0137", "Top-N", "ROW_NUMBER() can be compared with 1 only: = 1 or <= 1.";
    SQL_OVER = "PS0138", "OVER window", "OVER is supported for ROW_NUMBER() with a condition = 1 or <= 1 on it.";
    SQL_MATCH_RECOGNIZE = "PS0139", "MATCH_RECOGNIZE", "Pattern matching is not supported yet.";
    SQL_UNNEST = "PS0140", "UNNEST", "UNNEST is not supported yet.";
    SQL_SUBQUERY = "PS0141", "subquery in an expression", "Scalar and correlated subqueries are not supported. Use a view or a join.";
    SQL_ORDER_LIMIT = "PS0142", "ORDER BY or LIMIT", "A stream has no end, so its rows cannot be ordered or counted off as a whole.";
    SQL_SET_OPERATION = "PS0143", "set operation", "UNION ALL is the one set operation. For UNION use SELECT DISTINCT over UNION ALL.";
    SQL_NO_FROM = "PS0144", "SELECT without FROM", "A query reads at least one source.";
    SQL_LATERAL = "PS0145", "table expression not supported", "This form of table expression is not supported.";
    SQL_GROUPING_SETS = "PS0146", "grouping sets", "GROUPING SETS, ROLLUP and CUBE are not supported yet.";
    SQL_AGGREGATE = "PS0147", "aggregate not supported", "This form of aggregate call is not supported here.";
    SQL_RECURSIVE = "PS0148", "recursive query", "WITH RECURSIVE is not supported.";
    SQL_CLAUSE = "PS0149", "clause not supported", "This clause has no meaning for a stream or is not supported.";
    SQL_UNREAD_SOURCE = "PS0150", "source is not read", "No query reads this source; it is not connected.";
    SQL_ARRAY_AGG = "PS0151", "order of collected values", "Without an order, values are collected as they arrive, which may differ from run to run.";
    SQL_FLOAT_SUM = "PS0152", "sum of floating-point numbers", "Sums of FLOAT and DOUBLE may differ in the last digits with the number of slots. DECIMAL is exact.";
    SQL_VOLATILE = "PS0153", "volatile function", "This function gives another value each time, so replaying rows after a failure gives other results.";
    SQL_UNUSED_VIEW = "PS0154", "view is not used", "No INSERT reads this view.";
    // Run time.
    RUN_BODY = "PR0201", "body could not be read", "The body of a record is not of the source's format: it is cut off, nested too deep, or not JSON at all. onError says what becomes of it.";
    RUN_FIELD = "PR0202", "field could not be read", "A member of the body does not have the column's type, or is out of the type's range.";
    RUN_NULL = "PR0203", "null in a column that may not be", "The column is `nullable: false` and the member is null or missing.";
    RUN_BODY_SIZE = "PR0204", "body too large", "The body is larger than the reader's bound.";
    RUN_LATE = "PR0205", "row behind the watermark", "The row's event time lies below the watermark, and its window is closed. onLate says what becomes of it.";
    RUN_FAIL_ABOVE = "PR0206", "too many wrong rows", "More than `failAbove` of the rows were wrong within the window. The epoch was committed first; the job goes on from there, and counts anew, when a person starts it again: on a cluster by a change of its spec.";
    RUN_DATA_LOSS = "PR0207", "offset out of range", "The broker no longer has the records at which the job stands, or the topic was made anew. Going on would lose rows, so a person decides: `penstock run --accept-loss SOURCE`, on a cluster `kubectl penstock accept-loss JOB SOURCE@EPOCH`, goes on and keeps in the log what was given up.";
    RUN_SOURCE = "PR0208", "source failed", "The source cannot be read: the brokers or the store refuse, or do not answer beyond all retries.";
    RUN_SINK = "PR0209", "sink failed", "The sink cannot be written: the brokers or the store refuse, or do not answer beyond all retries.";
    RUN_MARKER = "PR0210", "marker missing or another's", "The exactly-once marker of a sink's shard is missing, or was written by another. Resending could repeat rows, so a person decides, and the job is not started again by itself.";
    RUN_LOGIN = "PR0211", "login refused", "The brokers do not accept the user, the password or the mechanism. `penstock run` ends with it when it is so at the start; a job that ran, and every job on a cluster, reads the Secret again and tries on, at most every 10 s.";
    RUN_TLS = "PR0212", "broker not trusted", "No TLS connection: the broker's certificate has expired, is made out to another host, is signed by no authority of `ssl.ca.pem`, or TLS cannot begin at all. Tried on with as PR0211 is.";
    RUN_MEMORY = "PR0301", "killed for memory", "A worker passed its memory limit and was killed.";
    RUN_OPERATOR = "PR0302", "operator failed", "An expression or aggregate failed on a row: a division by zero, an overflow, a cast that cannot be.";
    RUN_COMPLETE_ROWS = "PR0303", "result too large for Complete", "The result has more rows than `maxCompleteRows`.";
    RUN_PANIC = "PR0304", "defect in the engine", "A task ended by a panic. State stands at the last committed epoch; please report the message.";
    RUN_EXPRESSION = "PR0311", "expression cannot be executed", "An expression was planned but cannot be made ready to run. Please report the message; casting its operands usually helps.";
    RUN_TIME_TYPE = "PR0313", "event time of another type", "A column that carries event time is not a timestamp. Please report the message.";
    RUN_OPERATOR_STATE = "PR0314", "operator state cannot be read", "What an operator stored is not of the shape that it wrote: state of another version, or damaged.";
    RUN_AGGREGATE = "PR0315", "aggregate not supported", "The function, or its form over these types, is not there yet.";
    RUN_ROUTING = "PR0316", "row at the wrong slot", "A row reached a slot that does not own its key: a defect in the engine. Please report the message.";
    RUN_WORKER_LOST = "PR0320", "worker lost", "Another worker of the job does not answer, or the connection to it broke. The generation ends and the next one begins without it, or with its replacement, from the last committed epoch. Nothing is lost; when it comes again, look whether workers are killed or cut off from each other.";
    RUN_FENCED = "PR0401", "fenced by a newer generation", "Another process has claimed the job. This one stops, and nothing that it did since counts.";
    RUN_STORAGE = "PR0402", "storage does not answer", "The checkpoint storage refuses or does not answer beyond all retries. Nothing was committed without being durable. `penstock run` ends with it when it is so at the start; a job that ran, and every job on a cluster, reads the Secret again and tries on. A full or read-only local disk ends it.";
    RUN_STORAGE_UNSAFE = "PR0403", "storage ignores create-if-absent", "The store accepted a second create of one key. Commits would not be safe there, so the job does not start.";
    RUN_CORRUPT = "PR0404", "checkpoint object corrupt", "An object of the log does not have the checksum that the log says, and no other copy was found. Reading it again does not mend it: put back what the storage keeps of older versions, then change the spec.";
    RUN_MISSING_OBJECT = "PR0405", "checkpoint object missing", "An object that the log names is gone, and no other copy was found. Put back what the storage keeps of older versions, then change the spec.";
    RUN_FORMAT_NEWER = "PR0406", "written by a newer version", "The log asks for a newer reader than this one.";
    RUN_PRIOR_LOG = "PR0407", "an older log of this name exists", "In a cluster: say restoreFrom.latest to go on with it, restoreFrom.epoch to go back in it, restoreFrom.savepoint to begin with a savepoint, or startFresh: true to ignore it. (`penstock run` always goes on with it.)";
    RUN_DISK = "PR0409", "disk full or read-only", "State or checkpoints cannot be written to the local disk.";
    RUN_STATE_CHANGED = "PR0410", "state does not fit the new plan", "An operator's state has another schema, or is of other keys or arguments, or the operator was removed without being named in upgrade.dropState. State is never migrated. The webhook refuses such an edit, and the controller where that is away; the version before it runs on. Keep the operator as it is (its view or sink keeps its name), or start every operator empty by upgrade.strategy: Stateless, or run the edit as a job of another name. The state of an operator that is gone may go when upgrade.dropState (`--drop-state` of `penstock run`) names its uid; one that is still there with another shape is refused all the same. startFresh does not help an edit: it is read only while a job has no log.";
    RUN_RESTORE = "PR0411", "nothing to restore from", "restoreFrom names a log, an epoch or a savepoint that is not in the checkpoint storage, or is not kept any more. `penstock run` goes on with the newest epoch of the log of its name, so name the storage that holds it; savepoints of other jobs and older epochs need a cluster. Take restoreFrom out to begin with nothing.";
    RUN_ROLLBACK = "PR0413", "rollback after acceptance", "The version that was on trial is accepted and its results are published: the one before it cannot come back by itself. Change the spec back, which is an upgrade like any other.";
    RUN_NO_PROGRESS = "PR0414", "the new version did not run in time", "A changed job did not run within upgrade.progressDeadline, and the version before it came back; nothing of the new one was published. `kubectl describe` and the logs of its pods say what it waited for. Change the spec to try again.";
    RUN_SEGMENT = "PR0501", "changes of state corrupt", "A segment of a pack cannot be read though its checksum is right. Please report the message.";
    RUN_SEGMENT_NEWER = "PR0502", "changes of a newer version", "A segment of a pack was written by a newer version of Penstock.";
    RUN_NOT_OWNED = "PR0503", "key group of another slot", "Changes of a key group that the slot does not own: a defect in the engine. Please report the message.";
    RUN_ROCKSDB = "PR0510", "state store failed", "RocksDB answered with an error, which follows. Deleting the volume is safe: everything is restored from the checkpoint storage.";
    RUN_IDENTITY = "PR0512", "identity of state unreadable", "A key group's instance does not say whose it is. It is deleted and restored.";
    RUN_NOTHING_APPLIED = "PR0513", "no epoch applied", "A base was asked of a key group that holds nothing yet.";
    RUN_APPLY = "PR0514", "state is no longer applied", "Committed changes could not be written to the state store; the reason follows. Nothing is lost: they are in the checkpoint storage.";
    RUN_BASE = "PR0515", "base cannot be made or used", "A snapshot of a key group failed, or is not one that this state store can take (`--state memory` cannot take RocksDB files).";
    RUN_BASE_OTHER = "PR0516", "base or segment of something else", "The object is of another key group or epoch than the log says.";
    RUN_NOT_OPEN = "PR0517", "state is not open here", "A key group was asked for that this process does not hold: a defect in the engine. Please report the message.";
}
