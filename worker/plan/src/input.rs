//! The parts of a job that its plan is a function of.

use penstock_crds::job::StreamingJob;
use penstock_crds::sink::Sink;
use penstock_crds::source::Source;

/// What of a job the plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    pub sql: &'a str,
    pub sources: &'a [Source],
    pub sinks: &'a [Sink],
    pub time_zone: &'a str,
    pub allow_unbounded_state: bool,
    pub ttl_ms: Option<u64>,
}

impl<'a> PlanInput<'a> {
    pub fn of(job: &'a StreamingJob) -> Self {
        let spec = &job.spec;
        Self {
            sql: &spec.sql,
            sources: &spec.sources,
            sinks: &spec.sinks,
            time_zone: &spec.sql_options.time_zone,
            allow_unbounded_state: spec.sql_options.allow_unbounded_state,
            ttl_ms: spec.state.ttl.map(|ttl| ttl.as_millis()),
        }
    }
}
