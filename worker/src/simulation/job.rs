//! The jobs of the simulation: manifests, rows, and what a plain model makes of the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use penstock_crds::job::StreamingJob;
use penstock_crds::manifest;
use penstock_plan::Plan;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// What the SQL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Query {
    /// Window aggregate, and every row to a second sink.
    Tumble,
    Hop,
    /// Aggregate without a window, in Update mode.
    Totals,
    /// An aggregate over an aggregate.
    Histogram,
    Distinct,
}

impl Query {
    pub(super) const ALL: [Self; 5] = [
        Self::Tumble,
        Self::Hop,
        Self::Totals,
        Self::Histogram,
        Self::Distinct,
    ];

    fn sql(self) -> &'static str {
        match self {
            Self::Tumble => {
                "INSERT INTO out SELECT window_start, k, COUNT(*) AS n, SUM(v) AS s FROM TABLE(TUMBLE(TABLE rows, DESCRIPTOR(ts), INTERVAL '2' SECOND)) GROUP BY window_start, window_end, k;\n    INSERT INTO copy SELECT k, v FROM rows"
            }
            Self::Hop => {
                "INSERT INTO out SELECT window_start, k, COUNT(*) AS n, SUM(v) AS s FROM TABLE(HOP(TABLE rows, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '3' SECOND)) GROUP BY window_start, window_end, k"
            }
            Self::Totals => {
                "INSERT INTO out SELECT k, COUNT(*) AS n, SUM(v) AS s FROM rows GROUP BY k"
            }
            Self::Histogram => {
                "CREATE VIEW visits AS SELECT k, COUNT(*) AS n FROM rows GROUP BY k;\n    INSERT INTO out SELECT n, COUNT(*) AS users FROM visits GROUP BY n"
            }
            Self::Distinct => "INSERT INTO out SELECT DISTINCT k, v FROM rows",
        }
    }

    fn sinks(self) -> &'static str {
        match self {
            Self::Tumble => {
                "{name: out, format: {json: {}}, kafka: {bootstrapServers: \"b:9092\", topic: out, keyColumns: [k]}, shards: 2}, {name: copy, format: {json: {}}, kafka: {bootstrapServers: \"b:9092\", topic: copy}, shards: 2}"
            }
            Self::Hop | Self::Distinct => {
                "{name: out, format: {json: {}}, kafka: {bootstrapServers: \"b:9092\", topic: out, keyColumns: [k]}, shards: 2}"
            }
            Self::Totals => {
                "{name: out, format: {json: {}}, kafka: {bootstrapServers: \"b:9092\", topic: out}, outputMode: Update, primaryKey: [k], shards: 2}"
            }
            Self::Histogram => {
                "{name: out, format: {json: {}}, kafka: {bootstrapServers: \"b:9092\", topic: out}, outputMode: Update, primaryKey: [n], shards: 2}"
            }
        }
    }

    /// Whether rows can be late for it.
    pub(super) fn windows(self) -> bool {
        matches!(self, Self::Tumble | Self::Hop)
    }

    /// Whether its sink has the newest row of each key, and not each row once.
    pub(super) fn updates(self) -> bool {
        matches!(self, Self::Totals | Self::Histogram)
    }

    /// The job and its plan. `trigger` as in a manifest.
    fn make(self, trigger: &str) -> (StreamingJob, Plan) {
        let text = format!(
            "apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: sim, namespace: default}}
spec:
  keyGroups: {GROUPS}
  sources:
    - name: rows
      kafka: {{bootstrapServers: \"b:9092\", topics: [rows]}}
      format: {{json: {{timestamps: EpochMillis}}}}
      limits: {{maxRowsPerEpoch: 12}}
      columns:
        - {{name: k, type: STRING, nullable: false}}
        - {{name: v, type: BIGINT, nullable: false}}
        - {{name: ts, type: TIMESTAMP(3), nullable: false}}
      watermark: {{column: ts, maxOutOfOrderness: 2s}}
  sql: |
    {}
  sinks: [{}]
  trigger: {trigger}
  state: {{ttl: 24h}}
",
            self.sql(),
            self.sinks(),
        );
        let resources = manifest::load(&text, "sim.yaml").unwrap_or_else(|e| panic!("{e:?}"));
        let job = resources[0].job().expect("a job").clone();
        let plan = penstock_plan::plan(&job).unwrap_or_else(|e| panic!("{self:?}: {e:?}"));
        (job, plan)
    }
}

pub(super) const GROUPS: u16 = 4;

/// A manifest with its plan.
#[derive(Clone)]
pub(super) struct Job {
    pub spec: Arc<StreamingJob>,
    pub plan: Arc<Plan>,
}

/// Planned once per test process: planning costs more than a seed may.
pub(super) fn job(query: Query, planned: bool) -> Job {
    static JOBS: OnceLock<BTreeMap<(Query, bool), Job>> = OnceLock::new();
    let all = || {
        let of = |query: Query, planned: bool| {
            let trigger = if planned {
                "{availableNow: {drain: true}}"
            } else {
                "{continuous: {}}"
            };
            let (spec, plan) = query.make(trigger);
            let job = Job {
                spec: Arc::new(spec),
                plan: Arc::new(plan),
            };
            ((query, planned), job)
        };
        let both = |q| [of(q, false), of(q, true)];
        Query::ALL.into_iter().flat_map(both).collect()
    };
    JOBS.get_or_init(all)[&(query, planned)].clone()
}

/// An input row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub split: usize,
    pub k: u32,
    pub v: i64,
    pub ts: i64,
}

const BEGIN: i64 = 1_600_000_000_000;

impl Row {
    pub(super) fn body(&self) -> String {
        json!({"k": format!("k{}", self.k), "v": self.v, "ts": self.ts}).to_string()
    }
}

/// Rows in the order in which they arrive. No row of a split is older than the one before by more than the watermark allows,
/// and each split begins at the beginning: so none is late, however the splits race.
pub(super) fn rows(rng: &mut StdRng, splits: usize) -> Vec<Row> {
    let count = rng.random_range(20..=90);
    let step = rng.random_range(50..=300);
    let keys = rng.random_range(1..=6);
    let mut rows: Vec<Row> = (0..splits)
        .map(|split| Row {
            split,
            k: 0,
            v: split as i64,
            ts: BEGIN,
        })
        .collect();
    for i in 0..count {
        rows.push(Row {
            split: rng.random_range(0..splits),
            k: rng.random_range(0..keys),
            v: rng.random_range(0..20),
            ts: BEGIN + i * step - rng.random_range(0..1500.min(i * step + 1)),
        });
    }
    rows
}

/// The answer per sink, as sorted lines of canonical JSON.
pub(super) fn answer(query: Query, rows: &[Row]) -> BTreeMap<&'static str, Vec<String>> {
    let k = |r: &Row| format!("k{}", r.k);
    let windows = |size: i64, slide: i64| {
        let mut windows: BTreeMap<(i64, String), (i64, i64)> = BTreeMap::new();
        for r in rows {
            let mut start = r.ts.div_euclid(slide) * slide;
            while start > r.ts - size {
                let (n, s) = windows.entry((start, k(r))).or_default();
                *n += 1;
                *s += r.v;
                start -= slide;
            }
        }
        let line = |((start, k), (n, s)): ((i64, String), (i64, i64))| {
            canonical(&json!({"window_start": time(start), "k": k, "n": n, "s": s}))
        };
        windows.into_iter().map(line).collect::<Vec<_>>()
    };
    let mut totals: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for r in rows {
        let (n, s) = totals.entry(k(r)).or_default();
        *n += 1;
        *s += r.v;
    }
    let mut answer = BTreeMap::new();
    let out: Vec<String> = match query {
        Query::Tumble => {
            let copy = |r: &Row| canonical(&json!({"k": k(r), "v": r.v}));
            answer.insert("copy", rows.iter().map(copy).collect());
            windows(2000, 2000)
        }
        Query::Hop => windows(3000, 1000),
        Query::Totals => totals
            .into_iter()
            .map(|(k, (n, s))| canonical(&json!({"k": k, "n": n, "s": s})))
            .collect(),
        Query::Histogram => {
            let mut users: BTreeMap<i64, i64> = BTreeMap::new();
            for (n, _) in totals.into_values() {
                *users.entry(n).or_default() += 1;
            }
            let line = |(n, users)| canonical(&json!({"n": n, "users": users}));
            users.into_iter().map(line).collect()
        }
        Query::Distinct => {
            let pairs: BTreeSet<(String, i64)> = rows.iter().map(|r| (k(r), r.v)).collect();
            let line = |(k, v)| canonical(&json!({"k": k, "v": v}));
            pairs.into_iter().map(line).collect()
        }
    };
    answer.insert("out", out);
    answer.values_mut().for_each(|lines| lines.sort());
    answer
}

fn time(ms: i64) -> String {
    let at = chrono::DateTime::from_timestamp_millis(ms).expect("a time of this century");
    at.format("%Y-%m-%dT%H:%M:%S%.3f").to_string()
}

/// One text per value: members sorted, times and numbers in one form.
pub(super) fn canonical(value: &Value) -> String {
    let Value::Object(members) = value else {
        return value.to_string();
    };
    let sorted: BTreeMap<&String, String> = members
        .iter()
        .map(|(name, v)| {
            let text = match v {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (name, text)
        })
        .collect();
    format!("{sorted:?}")
}
