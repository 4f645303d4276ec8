//! SQL, sources and sinks to a [`graph::StreamGraph`], without execution.
//!
//! ```text
//! SQL ─ parse ─▶ statements ─ refuse, rewrite ─▶ syntax trees ─ DataFusion (catalog, window) ─▶ logical plans
//!                                                                                                  │ lower
//!           explain, verdict ◀── Plan{graph, sources, sinks} ◀── finish ◀── prune, merge ◀── nodes (ir)
//! ```
//!
//! Layers, each importing only below itself:
//!
//! ```text
//! 5  planner (the whole way)
//! 4  finish (stages, uids), verdict, explain, emission (when changes leave)
//! 3  lower (logical plan to nodes), prune (passes over nodes), fingerprint (what state holds)
//! 2  catalog (tables, types, names), window (TUMBLE, HOP), ir (nodes)
//! 1  parse, dialect, refuse, rewrite, functions, expression
//! 0  graph, source_plan (what the engine reads), input (what it is made from), fault, codes
//! ```
//!
//! Everything here is pure: no clock, no network, no files.

mod catalog;
mod codes;
mod dialect;
pub mod emission;
mod explain;
mod expression;
mod fault;
mod fingerprint;
mod finish;
mod functions;
pub mod graph;
mod input;
mod ir;
mod lower;
mod parse;
mod planner;
mod prune;
mod refuse;
mod rewrite;
pub mod source_plan;
mod verdict;
mod window;

use penstock_crds::diagnostic::{Code, Diagnostic, Position as SqlPosition};
use penstock_crds::job::StreamingJob;

pub use catalog::arrow_type;
pub use explain::{explain, plan_json};
pub use fingerprint::STATE_FORMAT;
pub use finish::{Plan, kind_name};
pub use input::PlanInput;
pub use verdict::{Fate, Outcome, StateVerdict, Terms, Verdict, WAYS_OUT, verdict};

/// Plans a job. Pure: the same job gives the same plan. Its manifest must have passed `crds`' validation.
pub fn plan(job: &StreamingJob) -> Result<Plan, Vec<Diagnostic>> {
    plan_input(PlanInput::of(job))
}

/// As [`plan`], from the parts of a job that matter.
pub fn plan_input(input: PlanInput<'_>) -> Result<Plan, Vec<Diagnostic>> {
    planner::plan_input(input)
        .map_err(|faults| faults.into_iter().map(|f| diagnostic(f, false)).collect())
}

impl Plan {
    /// What a person should know, though the job runs.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        self.warnings
            .iter()
            .cloned()
            .map(|f| diagnostic(f, true))
            .collect()
    }
}

fn diagnostic(fault: fault::Fault, warning: bool) -> Diagnostic {
    let code = Code::new(fault.code);
    let path = fault.path.clone().unwrap_or_else(|| "spec.sql".to_owned());
    let mut diagnostic = if warning {
        Diagnostic::warning(code, path, fault.message)
    } else {
        Diagnostic::error(code, path, fault.message)
    };
    // A position within another field's text is not one of the SQL.
    diagnostic.sql_position =
        fault
            .position
            .filter(|_| fault.path.is_none())
            .map(|p| SqlPosition {
                line: p.line as usize,
                column: p.column as usize,
            });
    diagnostic.help = fault.help;
    diagnostic
}
