//! Concrete sources and sinks from the manifest's spec and the plan. The one place that knows them by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion_common::Column as ColumnName;
use datafusion_expr::Expr;
use penstock_checkpoint::Fold;
use penstock_checkpoint::ids::LogId;
use penstock_crds::job::StreamingJob;
use penstock_crds::sink::{Delivery, Sink as SinkSpec, SinkKind};
use penstock_crds::source::{OnError, OnLate, SecretRef, Source as SourceSpec, SourceKind};
use penstock_plan::Plan;
use penstock_plan::graph::{OutputMode, hidden};
use penstock_plan::source_plan::{SinkPlan, SourcePlan};

use crate::clock::{Clock, SystemClock};
use crate::coordinator::{SourceInfo, marker_partitions};
use crate::error::{EngineError, ErrorKind, Result};
use crate::formats::json::{JsonDecoder, JsonEncoder, Timestamps};
use crate::formats::raw::{RawDecoder, RawEncoder};
use crate::formats::{Decoder, Encoder};
use crate::kafka::client_properties;
use crate::sinks::files::{FilesSink, FilesSinkConfig};
use crate::sinks::kafka::{KafkaSink, KafkaSinkConfig};
use crate::sinks::print::PrintSink;
use crate::sinks::rows::{KeyKind, RowPlan, ValueFormat};
use crate::sinks::{Guarantee, SinkRef};
use crate::sources::Source;
use crate::sources::decode::{BodyFormat, DecodePlan};
use crate::sources::files::{FilesConfig, FilesSource};
use crate::sources::generator::{GeneratorConfig, GeneratorSource};
use crate::sources::kafka::{KafkaSource, KafkaSourceConfig, Topics};
use crate::task::{FailAbove, Policy, ScanColumns, SourceRules, WatermarkRule};

use super::RunOptions;
use super::slots::SourceParts;

/// Files of a planned epoch where no limit is given.
const FILES_PER_EPOCH: usize = 1000;

/// A job's connectors.
pub struct Connected {
    pub sources: Vec<SourceParts>,
    pub infos: Vec<SourceInfo>,
    pub sinks: Vec<(String, SinkRef, Guarantee)>,
}

/// What connectors must know of the job's log.
#[derive(Debug, Clone, Copy)]
pub struct LogFacts {
    pub id: LogId,
    /// Partitions of the marker topics.
    pub markers: i32,
}

impl LogFacts {
    pub fn of(job: &StreamingJob, fold: &Fold) -> Self {
        let shards = job.spec.sinks.iter().map(|s| s.shards).sum::<u32>();
        Self {
            id: fold.log(),
            markers: marker_partitions(fold, i32::try_from(shards).unwrap_or(i32::MAX)),
        }
    }
}

/// Makes every source that the plan reads and every sink of the manifest.
pub fn connect(
    job: &StreamingJob,
    plan: &Plan,
    options: &RunOptions,
    log: LogFacts,
) -> Result<Connected> {
    let planned = job.spec.trigger.kind().is_planned();
    let (log_id, markers) = (&log.id.to_string(), log.markers);
    connect_by(
        job,
        plan,
        |spec, scan| source(job, spec, scan, options, planned),
        |spec, plan| sink(job, spec, plan, options, log_id, markers),
    )
}

/// As [`connect`], with other hands that make the connectors.
pub(crate) fn connect_by(
    job: &StreamingJob,
    plan: &Plan,
    source: impl Fn(&SourceSpec, &SourcePlan) -> Result<Arc<dyn Source>>,
    sink: impl Fn(&SinkSpec, Option<&SinkPlan>) -> Result<SinkRef>,
) -> Result<Connected> {
    let mut connected = Connected {
        sources: Vec::new(),
        infos: Vec::new(),
        sinks: Vec::new(),
    };
    for spec in &job.spec.sinks {
        let sink = sink(spec, plan.sinks.get(&spec.name))?;
        connected
            .sinks
            .push((spec.name.clone(), sink, guarantee(spec)));
    }
    for spec in job
        .spec
        .sources
        .iter()
        .filter(|s| plan.sources.contains_key(&s.name))
    {
        let scan = &plan.sources[&spec.name];
        let index = connected.sources.len();
        let source = source(spec, scan)?;
        connected.infos.push(source_info(spec, scan, &*source)?);
        let rules = Arc::new(rules(job, spec, scan, index)?);
        connected.sources.push(SourceParts {
            rules,
            source,
            columns: scan_columns(scan)?,
        });
    }
    Ok(connected)
}

/// What the coordinator knows of a source.
pub(super) fn source_info(
    spec: &SourceSpec,
    scan: &SourcePlan,
    source: &dyn Source,
) -> Result<SourceInfo> {
    Ok(SourceInfo {
        name: spec.name.clone(),
        enumerator: source.enumerator()?,
        out_of_orderness: scan
            .watermark
            .as_ref()
            .map(|w| micros(w.max_out_of_orderness_ms)),
        max_rows_per_epoch: spec
            .limits
            .as_ref()
            .map(|l| l.max_rows_per_epoch)
            .filter(|n| *n > 0),
        max_files_per_epoch: max_files(spec),
        discover_every: discover_every(spec),
        forget_finished: matches!(spec.kind(), Some(SourceKind::Files(_))),
    })
}

fn micros(ms: u64) -> i64 {
    i64::try_from(ms.saturating_mul(1000)).unwrap_or(i64::MAX)
}

fn max_files(spec: &SourceSpec) -> usize {
    let limit = spec
        .limits
        .as_ref()
        .map(|l| l.max_files_per_epoch)
        .filter(|n| *n > 0);
    limit
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(FILES_PER_EPOCH)
}

fn discover_every(spec: &SourceSpec) -> Duration {
    match spec.kind() {
        Some(SourceKind::Files(files)) => files.discover_interval.into(),
        Some(SourceKind::Kafka(_) | SourceKind::Generator(_)) | None => Duration::from_secs(10),
    }
}

/// What a source task needs: schema, watermark, policies.
pub(super) fn rules(
    job: &StreamingJob,
    spec: &SourceSpec,
    scan: &SourcePlan,
    index: usize,
) -> Result<SourceRules> {
    let letters = || {
        let name = spec.dead_letters.clone().unwrap_or_default();
        let at = job.spec.sinks.iter().position(|s| s.name == name);
        at.ok_or_else(|| {
            EngineError::fail(
                "PR0304",
                format!("source {}", spec.name),
                format!("no sink is called {name}"),
            )
        })
    };
    let slots = u64::from(job.spec.workers.slots).max(1);
    let per_second = spec.limits.as_ref().map_or(0, |l| l.max_rows_per_second);
    Ok(SourceRules {
        index,
        name: spec.name.clone(),
        schema: scan.output.clone(),
        watermark: scan.watermark.as_ref().map(|w| WatermarkRule {
            out_of_orderness: micros(w.max_out_of_orderness_ms),
            idle_timeout_ms: w
                .idle_timeout_ms
                .map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
        }),
        on_error: match spec.on_error {
            OnError::Fail => Policy::Fail,
            OnError::Skip => Policy::Skip,
            OnError::DeadLetter => Policy::DeadLetter(letters()?),
        },
        on_late: match spec.on_late {
            OnLate::Drop => Policy::Skip,
            OnLate::DeadLetter => Policy::DeadLetter(letters()?),
        },
        fail_above: spec.fail_above.as_ref().map(|f| FailAbove {
            percent: f.percent,
            window_ms: i64::try_from(f.window.as_millis()).unwrap_or(i64::MAX),
            min_rows: f.min_rows,
        }),
        rows_per_second: per_second.div_ceil(slots),
    })
}

/// Columns that the reader makes: those of the body, then those of the transport.
fn input_schema(scan: &SourcePlan) -> SchemaRef {
    let body = scan.decode.fields().iter().cloned();
    let fields: Vec<FieldRef> = body
        .chain(scan.metadata.iter().map(|m| m.field.clone()))
        .collect();
    Arc::new(Schema::new(fields))
}

/// The scan's columns by name, computed ones by their expression, and the event time beside them where nobody reads it.
pub(super) fn scan_columns(scan: &SourcePlan) -> Result<ScanColumns> {
    let input = input_schema(scan);
    let column = |name: &str| -> Expr {
        let computed = scan.computed.iter().find(|c| c.name == name);
        computed.map_or_else(
            || Expr::Column(ColumnName::new_unqualified(name)),
            |c| c.expr.clone(),
        )
    };
    let field = |name: &str| -> Result<FieldRef> {
        let computed = scan
            .computed
            .iter()
            .find(|c| c.name == name)
            .map(|c| c.field.clone());
        let read = || input.fields().iter().find(|f| f.name() == name).cloned();
        let missing = || {
            EngineError::fail(
                "PR0304",
                format!("source {}", scan.name),
                format!("the plan names no column {name}"),
            )
        };
        computed.or_else(read).ok_or_else(missing)
    };
    let visible: Vec<FieldRef> = scan
        .output
        .fields()
        .iter()
        .filter(|f| !is_hidden(f.name()))
        .cloned()
        .collect();
    let mut exprs: Vec<Expr> = visible.iter().map(|f| column(f.name())).collect();
    let mut fields = visible.clone();
    let event_time = match &scan.watermark {
        None => None,
        Some(w) => match visible.iter().position(|f| *f.name() == w.column) {
            Some(at) => Some(at),
            None => {
                exprs.push(column(&w.column));
                fields.push(field(&w.column)?);
                Some(visible.len())
            }
        },
    };
    // Nullable: a null event time must come out, to be judged, and not fail the batch.
    let fields: Vec<FieldRef> = fields
        .iter()
        .map(|f| Arc::new(f.as_ref().clone().with_nullable(true)))
        .collect();
    Ok(ScanColumns {
        input,
        exprs,
        output: Arc::new(Schema::new(fields)),
        event_time,
        visible: visible.len(),
    })
}

fn is_hidden(name: &str) -> bool {
    [
        hidden::SPLIT,
        hidden::OFFSET,
        hidden::RAW_KEY,
        hidden::RAW_VALUE,
    ]
    .contains(&name)
}

/// What a secret's folder holds: file names to contents.
fn secret(
    options: &RunOptions,
    reference: Option<&SecretRef>,
    object: &str,
) -> Result<BTreeMap<String, String>> {
    let Some(reference) = reference else {
        return Ok(BTreeMap::new());
    };
    let Some(folder) = &options.secrets else {
        let text = format!(
            "secret {} is asked for; say where secrets lie with --secrets DIR (DIR/{}/KEY)",
            reference.name, reference.name
        );
        return Err(EngineError::fail("PR0208", object.to_owned(), text));
    };
    let folder: PathBuf = folder.join(&reference.name);
    // A mounted Secret changes as a whole when the link `..data` does: read through it once, keys of two versions do not mix.
    let folder = folder.join("..data").canonicalize().unwrap_or(folder);
    let failed = |e: std::io::Error| {
        // It may be on its way: who waits for a Secret is told, and the next generation looks again.
        let text = format!("cannot read {}: {e}", folder.display());
        EngineError::new(ErrorKind::Refused, "PR0208", object.to_owned(), text)
    };
    let mut values = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Mounted secrets have `..data` links beside the keys.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && entry.path().is_file() {
            let text = std::fs::read_to_string(entry.path()).map_err(failed)?;
            values.insert(name, text.trim_end_matches('\n').to_owned());
        }
    }
    Ok(values)
}

/// How bodies are read; `None` where the manifest names no format, or one that comes later.
pub(crate) fn body_format(spec: &SourceSpec) -> Option<BodyFormat> {
    let format = spec.format.as_ref().and_then(|f| f.kind());
    format.and_then(BodyFormat::from_spec)
}

/// How a source's records become columns.
pub(crate) fn decode_plan(spec: &SourceSpec, scan: &SourcePlan, format: BodyFormat) -> DecodePlan {
    let body = scan.decode.fields().iter().map(|_| None);
    DecodePlan {
        schema: input_schema(scan),
        from: body
            .chain(scan.metadata.iter().map(|m| Some(m.from)))
            .collect(),
        format,
        keep_raw: keep_raw(spec, scan),
    }
}

/// Whether rows that were read may become dead letters all the same, with their own bytes: when they are late, when a computed
/// column fails, when they have no event time.
fn keep_raw(spec: &SourceSpec, scan: &SourcePlan) -> bool {
    let output = scan.output.fields();
    let timeless = || {
        let column = scan.watermark.as_ref().map(|w| &w.column);
        let input = input_schema(scan);
        input
            .fields()
            .iter()
            .any(|f| Some(f.name()) == column && f.is_nullable())
    };
    output.iter().any(|f| f.name() == hidden::RAW_VALUE)
        || spec.on_error == OnError::DeadLetter && (!scan.computed.is_empty() || timeless())
}

fn source(
    job: &StreamingJob,
    spec: &SourceSpec,
    scan: &SourcePlan,
    options: &RunOptions,
    planned: bool,
) -> Result<Arc<dyn Source>> {
    let object = format!("source {}", spec.name);
    let decode = || -> Result<DecodePlan> {
        let later = || {
            let text = "its format is not in this version";
            EngineError::fail("PR0208", object.clone(), text)
        };
        Ok(decode_plan(
            spec,
            scan,
            body_format(spec).ok_or_else(later)?,
        ))
    };
    match spec.kind() {
        Some(SourceKind::Files(files)) => {
            let secret = secret(options, files.secret_ref.as_ref(), &object)?;
            Ok(Arc::new(FilesSource::new(FilesConfig::from_spec(
                &spec.name,
                files,
                decode()?,
                &secret,
            )?)?))
        }
        Some(SourceKind::Generator(generator)) => {
            let made = |f: &FieldRef| {
                let column = spec.columns.iter().find(|c| c.name == *f.name())?;
                Some((f.clone(), column.generate.clone()?))
            };
            let columns: Vec<_> = scan.decode.fields().iter().filter_map(made).collect();
            let config = GeneratorConfig::from_spec(&spec.name, generator, &columns, !planned);
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            Ok(Arc::new(GeneratorSource::new(config, clock)?))
        }
        Some(SourceKind::Kafka(kafka)) => {
            let secret = secret(options, kafka.secret_ref.as_ref(), &object)?;
            let (namespace, name) = super::full_name(job);
            let plan = decode()?;
            let config = KafkaSourceConfig {
                name: spec.name.clone(),
                client: client_properties(&kafka.bootstrap_servers, &kafka.properties, &secret)
                    .map_err(|e| EngineError {
                        object: object.clone(),
                        ..e
                    })?,
                topics: match &kafka.topic_pattern {
                    Some(pattern) => Topics::Pattern(pattern.clone()),
                    None => Topics::Named(kafka.topics.clone()),
                },
                start_from: kafka.start_from.clone(),
                stop_at_ms: kafka.stop_at.as_ref().map(|s| s.timestamp.epoch_millis()),
                group_id: match kafka.group_id.as_str() {
                    "" => format!("penstock.{namespace}.{name}"),
                    given => given.to_owned(),
                },
                transport: scan
                    .metadata
                    .iter()
                    .enumerate()
                    .map(|(i, m)| (scan.decode.fields().len() + i, m.from))
                    .collect(),
                schema: plan.schema.clone(),
                keep_raw: plan.keep_raw,
            };
            let (body, format) = (scan.decode.clone(), plan.format);
            Ok(Arc::new(KafkaSource::new(
                config,
                Box::new(move || decoder(body.clone(), format)),
            )))
        }
        None => Err(EngineError::fail("PR0208", object, "it has no connector")),
    }
}

fn decoder(body: SchemaRef, format: BodyFormat) -> Result<Box<dyn Decoder>> {
    Ok(match format {
        BodyFormat::Json(config) => Box::new(JsonDecoder::new(body, config)?),
        BodyFormat::Raw { max_record_bytes } => Box::new(RawDecoder::new(body, max_record_bytes)?),
    })
}

fn sink(
    job: &StreamingJob,
    spec: &SinkSpec,
    plan: Option<&SinkPlan>,
    options: &RunOptions,
    log_id: &str,
    markers: i32,
) -> Result<SinkRef> {
    let object = format!("sink {}", spec.name);
    let later = || {
        EngineError::fail(
            "PR0209",
            object.clone(),
            "its format is not in this version",
        )
    };
    let key_groups = u16::try_from(job.spec.key_groups).unwrap_or(u16::MAX);
    let shards = u16::try_from(spec.shards).unwrap_or(1);
    let format = match spec.format.as_ref().and_then(|f| f.kind()) {
        Some(format) => ValueFormat::from_spec(format).ok_or_else(later)?,
        None => ValueFormat::Json(Timestamps::default()),
    };
    let mode = plan.map_or(OutputMode::Append, |p| p.mode);
    let record_key = plan.and_then(|p| p.record_key.clone()).unwrap_or_default();
    let rows = |key: KeyKind, tombstones: bool| RowPlan {
        name: spec.name.clone(),
        format,
        key,
        changes: RowPlan::changes_of(mode, tombstones),
        shard_by: record_key.clone(),
        key_groups,
        shards,
        round_robin: None,
    };
    match spec.kind() {
        Some(SinkKind::Print(_)) => Ok(Arc::new(PrintSink::to_stdout(rows(KeyKind::None, false)))),
        Some(SinkKind::Files(files)) => {
            let secret = secret(options, files.secret_ref.as_ref(), &object)?;
            let folders = plan.map(|p| p.partition_by.clone()).unwrap_or_default();
            let key = if folders.is_empty() {
                KeyKind::None
            } else {
                KeyKind::Folder(folders)
            };
            Ok(Arc::new(FilesSink::new(FilesSinkConfig::from_spec(
                files,
                rows(key, false),
                log_id,
                &secret,
            )?)))
        }
        Some(SinkKind::Kafka(kafka)) => {
            let secret = secret(options, kafka.secret_ref.as_ref(), &object)?;
            let config = KafkaSinkConfig {
                name: spec.name.clone(),
                log_id: log_id.to_owned(),
                client: client_properties(&kafka.bootstrap_servers, &kafka.properties, &secret)
                    .map_err(|e| EngineError {
                        object: object.clone(),
                        ..e
                    })?,
                topic: kafka.topic.clone(),
                guarantee: guarantee(spec),
                mode: spec.output_mode,
                key_columns: record_key.clone(),
                shard_columns: record_key,
                partition_by: kafka.partition_by,
                compression: kafka.compression,
                shards,
                key_groups,
                marker_topic: kafka.marker_topic.clone(),
                marker_partitions: markers,
            };
            let value = move || -> Result<Box<dyn Encoder>> {
                Ok(match format {
                    ValueFormat::Json(timestamps) => Box::new(JsonEncoder::new(timestamps)),
                    ValueFormat::Raw => Box::new(RawEncoder::default()),
                })
            };
            let key = || -> Result<Box<dyn Encoder>> {
                Ok(Box::new(JsonEncoder::new(Timestamps::default())))
            };
            Ok(Arc::new(KafkaSink::new(
                config,
                Box::new(value),
                Box::new(key),
            )))
        }
        None => Err(EngineError::fail("PR0209", object, "it has no connector")),
    }
}

/// What the job asks of the sink, or the most that it gives.
fn guarantee(spec: &SinkSpec) -> Guarantee {
    match spec.effective_delivery() {
        Delivery::ExactlyOnce => Guarantee::ExactlyOnce,
        Delivery::AtLeastOnce => Guarantee::AtLeastOnce,
    }
}
