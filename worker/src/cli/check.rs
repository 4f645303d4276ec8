//! `lint`, `plan` and `explain`: everything about a manifest that can be said without running it.

use std::path::Path;
use std::process::ExitCode;

use penstock_crds::diagnostic::{Code, Diagnostic, explain as explained};
use penstock_crds::job::StreamingJob;
use penstock_crds::manifest::{self, Positions, Resource};
use penstock_plan::{Fate, Outcome, Plan, Terms, Verdict};
use serde_json::{Value, json};

use super::{Output, tell};
use crate::job::plan_of;

/// A job that was read, checked and planned.
pub struct Checked {
    pub job: StreamingJob,
    pub plan: Plan,
    pub warnings: Vec<Diagnostic>,
    pub positions: Positions,
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
    check_text(&text, file).map_err(|faults| {
        tell::diagnostics(&faults, &text, output);
        tell::wrong_input()
    })
}

/// The one job of a text, checked, or what is wrong with it.
fn check_text(text: &str, file: &Path) -> Result<Checked, Vec<Diagnostic>> {
    let resources = manifest::load(text, &file.display().to_string())?;
    let mut jobs = resources.into_iter().filter(|r| r.job().is_some());
    let (
        Some(Resource {
            kind: manifest::ResourceKind::StreamingJob(job),
            positions,
            mut warnings,
        }),
        None,
    ) = (jobs.next(), jobs.next())
    else {
        let why = "a file with exactly one StreamingJob is needed";
        let mut fault = Diagnostic::error(Code::KIND, "", why);
        fault.file = Some(file.display().to_string());
        return Err(vec![fault]);
    };
    let plan = plan_of(&job, &positions)?;
    warnings.extend(placed(plan.warnings(), &positions));
    Ok(Checked {
        job: *job,
        plan,
        warnings,
        positions,
        text: text.to_owned(),
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

/// What is said of one document of a file.
fn faults_of(resource: &Resource) -> Vec<Diagnostic> {
    let mut faults = resource.warnings.clone();
    if let Some(job) = resource.job() {
        match plan_of(job, &resource.positions) {
            Err(found) => faults.extend(found),
            Ok(plan) => faults.extend(placed(plan.warnings(), &resource.positions)),
        }
    }
    faults
}

fn placed(mut faults: Vec<Diagnostic>, positions: &Positions) -> Vec<Diagnostic> {
    faults.iter_mut().for_each(|f| positions.place(f));
    faults
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
            Ok(resources) => resources.iter().flat_map(faults_of).collect(),
        };
        wrong += tell_faults(&mut faults, &text, file, output);
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        tell::wrong_input()
    }
}

/// Says what is wrong with a file; how many errors.
fn tell_faults(faults: &mut [Diagnostic], text: &str, file: &Path, output: Output) -> usize {
    faults.sort_by_key(|f| f.position);
    tell::diagnostics(faults, text, output);
    let errors = faults.iter().filter(|f| f.is_error()).count();
    if output == Output::Text {
        println!(
            "{}: {errors} errors, {} warnings",
            file.display(),
            faults.len() - errors
        );
    }
    errors
}

/// What is said of an edit whose old version cannot be planned, or is not planned yet.
const UNKNOWN: &str = "unknown";

/// Lints one job as an edit of another: what is wrong with it, and then what becomes of the state.
pub fn lint_edit(file: &Path, against: &Path, output: Output) -> ExitCode {
    let (text, old) = match edit(file, against) {
        Ok(both) => both,
        Err(code) => return code,
    };
    let checked = match check_text(&text, file) {
        Ok(checked) => checked,
        Err(mut faults) => {
            tell_faults(&mut faults, &text, file, output);
            return tell::wrong_input();
        }
    };
    tell_faults(&mut checked.warnings.clone(), &text, file, output);
    if output == Output::Json {
        // Whoever bounds this process has this answer, should planning the old version break the bounds.
        println!("{}", json!({"verdict": UNKNOWN}));
    }
    let Some(old) = plan_json_of(&old, against) else {
        if output == Output::Text {
            let (file, against) = (file.display(), against.display());
            println!(
                "{file}: {against} cannot be planned, so what becomes of its state is unknown"
            );
        }
        return ExitCode::SUCCESS;
    };
    let terms = Terms::of(&checked.job.spec.upgrade);
    let verdict = penstock_plan::verdict(&old, &checked.plan, terms);
    let said = placed(verdict.diagnostics(), &checked.positions);
    tell::diagnostics(&said, &text, output);
    tell_verdict(&verdict, output);
    let outcome = match verdict.outcome() {
        Outcome::Restores => "restores",
        Outcome::StartsEmpty => "starts empty",
        Outcome::Refused => "refused",
    };
    match output {
        Output::Text => println!("{}: state: {outcome}", file.display()),
        Output::Json => println!("{}", json!({"verdict": outcome})),
    }
    match verdict.outcome() {
        Outcome::Restores | Outcome::StartsEmpty => ExitCode::SUCCESS,
        Outcome::Refused => ExitCode::FAILURE,
    }
}

/// The texts of the new version and of the old. When both are standard input, it holds the new one, a line `---`, and the old one.
fn edit(file: &Path, against: &Path) -> Result<(String, String), ExitCode> {
    let new = read(file)?;
    if (file, against) != (Path::new("-"), Path::new("-")) {
        return Ok((new, read(against)?));
    }
    match new.split_once("\n---\n") {
        Some((new, old)) => Ok((format!("{new}\n"), old.to_owned())),
        None => {
            eprintln!("error: standard input holds no second document");
            Err(tell::wrong_input())
        }
    }
}

/// The plan of a text: one that was written down, or that of a manifest. `None` where it is neither.
fn plan_json_of(text: &str, file: &Path) -> Option<Value> {
    written_plan(text).or_else(|| {
        let checked = check_text(text, file).ok()?;
        Some(penstock_plan::plan_json(&checked.plan))
    })
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
    let terms = Terms {
        drop_state,
        stateless: false,
    };
    let verdict = penstock_plan::verdict(&old, &checked.plan, terms);
    tell_verdict(&verdict, output);
    match verdict.outcome() {
        Outcome::Restores | Outcome::StartsEmpty => ExitCode::SUCCESS,
        Outcome::Refused => ExitCode::FAILURE,
    }
}

fn old_plan(file: &Path, output: Output) -> Result<Value, ExitCode> {
    let text = read(file)?;
    match written_plan(&text) {
        Some(plan) => Ok(plan),
        None => check(file, output).map(|c| penstock_plan::plan_json(&c.plan)),
    }
}

/// A plan as a log keeps it. A manifest may be JSON too.
fn written_plan(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text).ok()?;
    value["nodes"].is_array().then_some(value)
}

/// Says what becomes of each operator's state.
pub fn tell_verdict(verdict: &Verdict, output: Output) {
    for v in &verdict.operators {
        let fate = match &v.fate {
            Fate::Restores => "restores".to_owned(),
            Fate::StartsEmpty => "starts empty".to_owned(),
            Fate::Dropped => "is dropped".to_owned(),
            Fate::Refused(why) => format!("is refused: it {why}"),
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
