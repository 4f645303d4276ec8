//! `lint`, `plan` and `explain`: everything about a manifest that can be said without running it.

use std::path::Path;
use std::process::ExitCode;

use penstock_crds::diagnostic::{Diagnostic, explain as explained};
use penstock_crds::job::StreamingJob;
use penstock_crds::manifest::{self, Resource};
use penstock_plan::{Fate, Plan, StateVerdict};
use serde_json::{Value, json};

use super::{Output, tell};
use crate::job::plan_of;

/// A job that was read, checked and planned.
pub struct Checked {
    pub job: StreamingJob,
    pub plan: Plan,
    pub warnings: Vec<Diagnostic>,
    pub text: String,
}

/// Reads a file; an error is told to the person here.
fn read(file: &Path) -> Result<String, ExitCode> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    text.map_err(|e| {
        eprintln!("error: {}: {e}", file.display());
        tell::wrong_input()
    })
}

/// The one job of a manifest, checked. What is wrong is told to the person here.
pub fn check(file: &Path, output: Output) -> Result<Checked, ExitCode> {
    let text = read(file)?;
    let refused = |faults: Vec<Diagnostic>| {
        tell::diagnostics(&faults, &text, output);
        tell::wrong_input()
    };
    let resources = manifest::load(&text, &file.display().to_string()).map_err(refused)?;
    let mut jobs = resources.into_iter().filter(|r| r.job().is_some());
    let (
        Some(Resource {
            kind: manifest::ResourceKind::StreamingJob(job),
            positions,
            warnings,
        }),
        None,
    ) = (jobs.next(), jobs.next())
    else {
        eprintln!(
            "error: {}: a file with exactly one StreamingJob is needed",
            file.display()
        );
        return Err(tell::wrong_input());
    };
    let plan = plan_of(&job, &positions).map_err(refused)?;
    let mut warnings = warnings;
    let mut planned = plan.warnings();
    planned.iter_mut().for_each(|w| positions.place(w));
    warnings.extend(planned);
    Ok(Checked {
        job: *job,
        plan,
        warnings,
        text,
    })
}

/// Bounds this process, for a text that somebody else wrote.
pub fn bound() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    for (resource, most) in [(Resource::As, 1 << 30), (Resource::Cpu, 5)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        if let Err(error) = setrlimit(resource, limit) {
            tracing::warn!(%error, "the process is not bounded");
        }
    }
}

pub fn lint(files: &[std::path::PathBuf], output: Output) -> ExitCode {
    let mut wrong = 0;
    for file in files {
        let Ok(text) = read(file) else {
            wrong += 1;
            continue;
        };
        let mut faults = match manifest::load(&text, &file.display().to_string()) {
            Err(faults) => faults,
            Ok(resources) => {
                let of = |r: Resource| {
                    let mut faults = r.warnings.clone();
                    if let Some(job) = r.job() {
                        match plan_of(job, &r.positions) {
                            Err(found) => faults.extend(found),
                            Ok(plan) => {
                                let mut found = plan.warnings();
                                found.iter_mut().for_each(|w| r.positions.place(w));
                                faults.extend(found);
                            }
                        }
                    }
                    faults
                };
                resources.into_iter().flat_map(of).collect()
            }
        };
        faults.sort_by_key(|f| f.position);
        tell::diagnostics(&faults, &text, output);
        let errors = faults.iter().filter(|f| f.is_error()).count();
        wrong += errors;
        if output == Output::Text {
            println!(
                "{}: {errors} errors, {} warnings",
                file.display(),
                faults.len() - errors
            );
        }
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        tell::wrong_input()
    }
}

pub fn plan(
    file: &Path,
    against: Option<&Path>,
    drop_state: &[String],
    output: Output,
) -> ExitCode {
    let checked = match check(file, output) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    tell::diagnostics(&checked.warnings, &checked.text, output);
    match output {
        Output::Text => print!("{}", penstock_plan::explain(&checked.plan)),
        Output::Json => println!("{}", penstock_plan::plan_json(&checked.plan)),
    }
    let Some(against) = against else {
        return ExitCode::SUCCESS;
    };
    let old = match old_plan(against, output) {
        Ok(old) => old,
        Err(code) => return code,
    };
    let verdicts = penstock_plan::verdict(&old, &checked.plan, drop_state);
    tell_verdicts(&verdicts, output);
    if refused(&verdicts) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn old_plan(file: &Path, output: Output) -> Result<Value, ExitCode> {
    let text = read(file)?;
    match serde_json::from_str(&text) {
        Ok(value) => Ok(value),
        Err(_) => check(file, output).map(|c| penstock_plan::plan_json(&c.plan)),
    }
}

/// Whether some operator's state stands in the way.
pub fn refused(verdicts: &[StateVerdict]) -> bool {
    verdicts.iter().any(|v| matches!(v.fate, Fate::Refused(_)))
}

/// Says what becomes of the state.
pub fn tell_verdicts(verdicts: &[StateVerdict], output: Output) {
    for v in verdicts {
        let fate = match &v.fate {
            Fate::Restores => "restores".to_owned(),
            Fate::StartsEmpty => "starts empty".to_owned(),
            Fate::Dropped => "is dropped".to_owned(),
            Fate::Refused(why) => format!("is refused: {why}"),
        };
        match output {
            Output::Text => eprintln!("state of {} {fate}", v.uid.0),
            Output::Json => println!("{}", json!({"uid": v.uid.0, "state": fate})),
        }
    }
}

pub fn explain(code: &str, output: Output) -> ExitCode {
    let Some(entry) = explained(code) else {
        eprintln!("error: there is no code {code}; codes look like PS0007 or PR0201");
        return tell::wrong_input();
    };
    match output {
        Output::Text => println!("{}: {}\n\n{}", entry.code, entry.title, entry.text),
        Output::Json => println!(
            "{}",
            json!({"code": entry.code, "title": entry.title, "text": entry.text})
        ),
    }
    ExitCode::SUCCESS
}
