//! Diagnostics and errors as people and machines read them.

use std::process::ExitCode;

use miette::{LabeledSpan, MietteDiagnostic, NamedSource, Report, Severity as Level};
use penstock_crds::diagnostic::{Diagnostic, Severity};
use serde_json::json;

use super::Output;
use crate::error::EngineError;

/// The input is wrong: exit code 2.
pub fn wrong_input() -> ExitCode {
    ExitCode::from(2)
}

/// Writes diagnostics to stderr; as JSON one object per line to stdout.
pub fn diagnostics(all: &[Diagnostic], text: &str, output: Output) {
    for d in all {
        match output {
            Output::Json => match serde_json::to_string(d) {
                Ok(line) => println!("{line}"),
                Err(e) => eprintln!("{d} ({e})"),
            },
            Output::Text => eprintln!("{:?}", report(d, text)),
        }
    }
}

/// A report with the line of the manifest that is meant.
fn report(d: &Diagnostic, text: &str) -> Report {
    let level = match d.severity {
        Severity::Error => Level::Error,
        Severity::Warning => Level::Warning,
    };
    let mut report = MietteDiagnostic::new(d.to_string()).with_severity(level);
    report = report.with_code(format!("penstock explain {}", code(d)));
    if let Some(help) = &d.help {
        report = report.with_help(help.clone());
    }
    let file = d.file.clone().unwrap_or_default();
    let at = d.position.and_then(|p| {
        let line = text.split_inclusive('\n').take(p.line.saturating_sub(1)).map(str::len).sum::<usize>();
        let rest = text.get(line..)?;
        let column = rest.char_indices().nth(p.column.saturating_sub(1)).map_or(rest.len(), |(i, _)| i);
        Some(line + column)
    });
    match at {
        Some(at) => Report::new(report.with_label(LabeledSpan::at_offset(at, "here")))
            .with_source_code(NamedSource::new(file, text.to_owned())),
        None => Report::new(report),
    }
}

fn code(d: &Diagnostic) -> String {
    serde_json::to_value(d.code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Writes why a job failed.
pub fn failure(error: &EngineError, output: Output) {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !error.message.contains(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    match output {
        Output::Json => {
            println!("{}", json!({"outcome": "Failed", "code": error.code, "object": error.object, "message": error.message, "causes": causes}));
        }
        Output::Text => {
            eprintln!("error: {error} [{}]", error.code);
            for cause in causes {
                eprintln!("  caused by: {cause}");
            }
            eprintln!("  see: penstock explain {}", error.code);
        }
    }
}
