//! The rules across fields that a schema cannot say: one pure function, the same for `penstock lint`, `penstock run` and admission.
//!
//! Rules of the SQL text are the planner's. Faults come without places; `manifest` knows those.

mod bounds;
mod column;
mod host;
mod kafka;
mod kubernetes;
mod pod_template;
mod sink;
mod source;
mod support;
mod transition;
mod workers;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::diagnostic::{Code, Diagnostic};
use crate::job::{Checkpoint, Storage, StreamingJob, StreamingJobSpec, TriggerSpec};
use crate::units::{Duration, Quantity};

pub use self::bounds::{Amount, Bound, Bounds, bounds};
pub use self::kafka::{Property, property};
pub use self::kubernetes::quantity;
pub use self::support::{cluster_only_fields, unsupported, unsupported_in_cluster};
pub use self::transition::{transition, volume as transition_of_volumes};

/// Where a job is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a cluster: what is of one machine is refused.
    Cluster,
    /// On one's own machine.
    Local,
}

/// Longest name of a job: names of pods, volumes and labels are made from it.
pub const MAX_JOB_NAME: usize = 40;

/// Every fault of a job, errors and warnings; paths are relative to the spec, but for `metadata.…`.
pub fn validate(job: &StreamingJob, place: Place) -> Vec<Diagnostic> {
    let mut faults = validate_metadata(&job.metadata, MAX_JOB_NAME);
    names(&job.spec, &mut faults);
    for (i, source) in job.spec.sources.iter().enumerate() {
        source::validate(
            source,
            &format!("sources[{i}]"),
            &job.spec,
            place,
            &mut faults,
        );
    }
    for (i, sink) in job.spec.sinks.iter().enumerate() {
        sink::validate(sink, &format!("sinks[{i}]"), &job.spec, place, &mut faults);
    }
    if job.spec.sql.trim().is_empty() {
        faults.push(Diagnostic::error(
            Code::LENGTH,
            "spec.sql",
            "the SQL text is blank",
        ));
    }
    time_zone(&job.spec.sql_options.time_zone, &mut faults);
    trigger(&job.spec.trigger, &mut faults);
    checkpoint(&job.spec.checkpoint, place, &mut faults);
    state(&job.spec, &mut faults);
    parallelism(&job.spec, &mut faults);
    if let Some(autoscaling) = &job.spec.autoscaling {
        workers::autoscale(autoscaling, &job.spec, &mut faults);
    }
    workers::workers(&job.spec.workers, &mut faults);
    times(&job.spec, &mut faults);
    restore(&job.spec, &mut faults);
    faults
}

/// Name and namespace of a resource.
pub fn validate_metadata(metadata: &ObjectMeta, longest: usize) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    match metadata.name.as_deref() {
        None => faults.push(Diagnostic::error(
            Code::MISSING,
            "metadata",
            "missing field \"name\"",
        )),
        Some(name) => label(name, "metadata.name", longest, &mut faults),
    }
    if let Some(namespace) = &metadata.namespace {
        label(namespace, "metadata.namespace", 63, &mut faults);
    }
    faults
}

fn label(name: &str, path: &str, longest: usize, faults: &mut Vec<Diagnostic>) {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !name.chars().all(fits) || !ends(name.chars().next()) || !ends(name.chars().last()) {
        let fault = Diagnostic::error(Code::NAME, path, format!("{name:?} is not a name"));
        faults.push(fault.with_help(
            "use lower-case letters, digits and hyphens, a letter or digit at both ends",
        ));
    } else if name.len() > longest {
        faults.push(Diagnostic::error(
            Code::NAME,
            path,
            format!("{} characters, at most {longest} are allowed", name.len()),
        ));
    }
}

fn is_sql_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sql_name(name: &str, path: &str, faults: &mut Vec<Diagnostic>) {
    if !is_sql_name(name) {
        let fault = Diagnostic::error(Code::NAME, path, format!("{name:?} is not a name in SQL"));
        faults.push(fault.with_help("use letters, digits and underscores, not a digit first"));
    }
}

fn names(spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    let mut seen: Vec<(&str, String)> = Vec::new();
    let sources = spec
        .sources
        .iter()
        .enumerate()
        .map(|(i, source)| (source.name.as_str(), format!("sources[{i}]")));
    let sinks = spec
        .sinks
        .iter()
        .enumerate()
        .map(|(i, sink)| (sink.name.as_str(), format!("sinks[{i}]")));
    for (name, path) in sources.chain(sinks) {
        sql_name(name, &format!("{path}.name"), faults);
        match seen.iter().find(|(other, _)| *other == name) {
            Some((_, first)) => {
                let message = format!("the name {name:?} is taken by {first}");
                faults.push(Diagnostic::error(
                    Code::DUPLICATE_NAME,
                    format!("{path}.name"),
                    message,
                ));
            }
            None => seen.push((name, path)),
        }
    }
}

/// Whether exactly one (or, where `needed` is false, at most one) of the members is given.
fn one_of(
    path: &str,
    members: &[(&str, bool)],
    needed: bool,
    faults: &mut Vec<Diagnostic>,
) -> bool {
    let given = members
        .iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| *name)
        .collect::<Vec<_>>();
    let names = members
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ");
    let message = match given.len() {
        0 if needed => format!("none of {names} is given, exactly one is needed"),
        0 | 1 => return true,
        _ if needed => format!(
            "{} are given, exactly one of {names} is allowed",
            given.join(" and ")
        ),
        _ => format!(
            "{} are given, at most one of {names} is allowed",
            given.join(" and ")
        ),
    };
    faults.push(Diagnostic::error(Code::ONE_OF, path, message));
    false
}

/// Whether a duration is within bounds, both included.
fn within(
    duration: Duration,
    least: Duration,
    most: Duration,
    path: &str,
    faults: &mut Vec<Diagnostic>,
) {
    if duration < least || duration > most {
        faults.push(Diagnostic::error(
            Code::RANGE,
            path,
            format!("{duration} is out of bounds: {least} to {most}"),
        ));
    }
}

const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);

/// The form of a zone's name, which some readers look for as a file; whether there is such a zone the planner knows.
fn time_zone(zone: &str, faults: &mut Vec<Diagnostic>) {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '+' | '-' | ':');
    if zone.starts_with('/') || !zone.chars().all(fits) {
        let fault = Diagnostic::error(
            Code::PATTERN,
            "sqlOptions.timeZone",
            format!("{zone:?} is not a zone"),
        );
        faults.push(fault.with_help("write Europe/Berlin or UTC"));
    }
}

fn trigger(trigger: &TriggerSpec, faults: &mut Vec<Diagnostic>) {
    let TriggerSpec {
        continuous,
        processing_time,
        available_now,
        once,
    } = trigger;
    let members = [
        ("continuous", continuous.is_some()),
        ("processingTime", processing_time.is_some()),
        ("availableNow", available_now.is_some()),
        ("once", once.is_some()),
    ];
    one_of("trigger", &members, true, faults);
    if let Some(planned) = processing_time {
        within(
            planned.interval,
            TENTH,
            DAY,
            "trigger.processingTime.interval",
            faults,
        );
    }
}

fn checkpoint(checkpoint: &Checkpoint, place: Place, faults: &mut Vec<Diagnostic>) {
    let Checkpoint {
        interval,
        timeout,
        retention,
        storage,
    } = checkpoint;
    within(
        *interval,
        TENTH,
        Duration::from_secs(3600),
        "checkpoint.interval",
        faults,
    );
    within(*timeout, SECOND, DAY, "checkpoint.timeout", faults);
    within(
        retention.duration,
        Duration::from_millis(0),
        Duration::from_secs(366 * 86_400),
        "checkpoint.retention.duration",
        faults,
    );
    let Some(storage) = storage else { return };
    let Storage {
        s3,
        gcs,
        azure,
        local,
        secret_ref,
    } = storage;
    let members = [
        ("s3", s3.is_some()),
        ("gcs", gcs.is_some()),
        ("azure", azure.is_some()),
        ("local", local.is_some()),
    ];
    one_of("checkpoint.storage", &members, true, faults);
    if local.is_some() {
        if place == Place::Cluster {
            let fault = Diagnostic::error(
                Code::LOCAL_IN_CLUSTER,
                "checkpoint.storage.local",
                "a local folder cannot hold a job's log in a cluster",
            );
            faults.push(fault.with_help("use s3, or leave storage out for the cluster's default"));
        }
        if secret_ref.is_some() {
            faults.push(Diagnostic::warning(
                Code::UNUSED_FIELD,
                "checkpoint.storage.secretRef",
                "a local folder needs no secret",
            ));
        }
    }
    if let Some(s3) = s3 {
        let path = "checkpoint.storage.s3";
        if !is_bucket(&s3.bucket) {
            let fault = Diagnostic::error(
                Code::PATTERN,
                format!("{path}.bucket"),
                format!("{:?} is not a bucket", s3.bucket),
            );
            faults.push(fault.with_help("write the bare name; the path goes to prefix"));
        }
        // Without an endpoint of its own the region becomes a part of the host's name.
        if !s3
            .region
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            let fault = Diagnostic::error(
                Code::PATTERN,
                format!("{path}.region"),
                format!("{:?} is not a region", s3.region),
            );
            faults.push(fault.with_help("write eu-central-1"));
        }
        if !s3.endpoint.is_empty() {
            host::endpoint(&s3.endpoint, &format!("{path}.endpoint"), faults);
        }
        if s3.prefix.starts_with('/') || !is_path_of_a_bucket(&s3.prefix) {
            let fault = Diagnostic::error(
                Code::PATTERN,
                format!("{path}.prefix"),
                format!("{:?} is not a path below the bucket", s3.prefix),
            );
            faults.push(fault);
        }
    }
    if let Some(secret) = secret_ref {
        kubernetes::secret(&secret.name, "checkpoint.storage.secretRef.name", faults);
    }
}

/// Whether a text is the name of a bucket. It becomes a part of a host's name or of a path, and must not end either.
fn is_bucket(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(fits)
        && !name.contains("..")
}

/// Whether a text is a path below a bucket: it leads up nowhere, and a person sees all of it.
fn is_path_of_a_bucket(path: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || (c.is_ascii_graphic() && c != '\\') || c == ' ';
    !host::climbs(path) && path.chars().all(fits)
}

fn state(spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    let state = &spec.state;
    one_of(
        "state",
        &[
            ("volume", state.volume.is_some()),
            ("ephemeral", state.ephemeral.is_some()),
        ],
        false,
        faults,
    );
    let sizes = [
        ("state.volume.size", state.volume.as_ref().map(|v| v.size)),
        (
            "state.ephemeral.size",
            state.ephemeral.as_ref().map(|e| e.size),
        ),
    ];
    let (least, most) = (
        Quantity::from_mebibytes(16),
        Quantity::from_gibibytes(64 << 10),
    );
    for (path, size) in sizes {
        if let Some(size) = size.filter(|size| *size < least || *size > most) {
            let message = format!("{size} is out of bounds: {least} to {most}");
            faults.push(Diagnostic::error(Code::RANGE, path, message));
        }
    }
    if let Some(volume) = state
        .volume
        .as_ref()
        .filter(|v| !v.storage_class_name.is_empty())
    {
        kubernetes::object_name(
            &volume.storage_class_name,
            "state.volume.storageClassName",
            faults,
        );
    }
    if let Some(ttl) = state.ttl {
        within(
            ttl,
            SECOND,
            Duration::from_secs(10 * 366 * 86_400),
            "state.ttl",
            faults,
        );
    }
}

fn parallelism(spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    let replicas = spec.workers.replicas.unwrap_or(1);
    let slots = u64::from(spec.workers.slots) * u64::from(replicas);
    if slots > u64::from(spec.key_groups) {
        let message = format!(
            "{} slots on {replicas} workers are more than the {} key groups",
            spec.workers.slots, spec.key_groups
        );
        faults.push(
            Diagnostic::error(Code::PARALLELISM, "workers.slots", message)
                .with_help("give fewer slots or workers, or more keyGroups"),
        );
    }
}

fn times(spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    within(
        spec.workers.node_loss_timeout,
        Duration::from_secs(10),
        DAY,
        "workers.nodeLossTimeout",
        faults,
    );
    within(
        spec.upgrade.accept_after,
        Duration::from_millis(0),
        DAY,
        "upgrade.acceptAfter",
        faults,
    );
    within(
        spec.upgrade.progress_deadline,
        Duration::from_secs(10),
        DAY,
        "upgrade.progressDeadline",
        faults,
    );
    let backoff = &spec.restart.backoff;
    within(
        backoff.initial,
        TENTH,
        DAY,
        "restart.backoff.initial",
        faults,
    );
    within(backoff.max, TENTH, DAY, "restart.backoff.max", faults);
    if backoff.initial > backoff.max {
        let message = format!("{} is below initial ({})", backoff.max, backoff.initial);
        faults.push(Diagnostic::error(
            Code::RANGE,
            "restart.backoff.max",
            message,
        ));
    }
    if spec.upgrade.accept_after >= spec.upgrade.progress_deadline {
        let message = format!(
            "{} is not above acceptAfter ({})",
            spec.upgrade.progress_deadline, spec.upgrade.accept_after
        );
        faults.push(Diagnostic::error(
            Code::RANGE,
            "upgrade.progressDeadline",
            message,
        ));
    }
}

/// What a person ordered by annotation: each word is handed to the workers, so each is read here first.
pub fn orders(job: &StreamingJob) -> Vec<Diagnostic> {
    let annotations = job.metadata.annotations.as_ref();
    let said = |name: &str| annotations.and_then(|a| a.get(name));
    let number = |n: &str| !n.is_empty() && n.len() <= 19 && n.chars().all(|c| c.is_ascii_digit());
    let word = |w: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (1..=63).contains(&w.len()) && w.chars().all(fits)
    };
    let mut faults = Vec::new();
    if let Some(losses) = said("penstock.dev/accept-loss") {
        for loss in losses.split(',').map(str::trim) {
            let fits = loss.split_once('@').is_some_and(|(source, epoch)| {
                is_sql_name(source) && source.len() <= 63 && number(epoch)
            });
            if !fits {
                let text = format!("{loss:?} is not SOURCE@EPOCH");
                let path = "metadata.annotations[penstock.dev/accept-loss]";
                let help = "copy it from the message of the condition DataLossRisk";
                faults.push(Diagnostic::error(Code::ORDER, path, text).with_help(help));
            }
        }
    }
    if let Some(back) = said("penstock.dev/go-back") {
        let fits = back
            .split_once('@')
            .is_some_and(|(epoch, request)| number(epoch) && word(request));
        if !fits {
            let text = format!("{back:?} is not EPOCH@REQUEST");
            let path = "metadata.annotations[penstock.dev/go-back]";
            let help = "let `kubectl penstock rollback` write it";
            faults.push(Diagnostic::error(Code::ORDER, path, text).with_help(help));
        }
    }
    faults
}

fn restore(spec: &StreamingJobSpec, faults: &mut Vec<Diagnostic>) {
    let Some(restore) = &spec.restore_from else {
        return;
    };
    let members = [
        ("savepoint", restore.savepoint.is_some()),
        ("latest", restore.latest.is_some()),
        ("epoch", restore.epoch.is_some()),
    ];
    one_of("restoreFrom", &members, true, faults);
    if let Some(savepoint) = &restore.savepoint {
        kubernetes::object_name(&savepoint.name, "restoreFrom.savepoint.name", faults);
    }
    if spec.start_fresh && (restore.latest.is_some() || restore.epoch.is_some()) {
        faults.push(Diagnostic::error(
            Code::RESTORE,
            "startFresh",
            "a job that ignores its older log cannot be restored from it",
        ));
    }
}
