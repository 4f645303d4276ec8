//! What the API server wrote down of its writes: who wrote what, and when. A witness of its own for what a controller says of itself.

use std::path::PathBuf;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// A request to write that was answered, well or not.
#[derive(Debug, Clone)]
pub struct Written {
    pub by_controller: bool,
    pub verb: String,
    pub resource: String,
    pub name: String,
    /// Whether it changed something.
    pub accepted: bool,
    /// Microseconds since 1970.
    pub received: i64,
    pub done: i64,
}

impl Written {
    /// Whether it writes a job's status: the controller writes jobs otherwise only to hold them, which nothing of a bench asks for.
    pub fn is_status(&self) -> bool {
        self.resource == "streamingjobs"
    }
}

/// Reads on from where it was.
pub struct Audit {
    path: PathBuf,
    read: usize,
}

impl Audit {
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// Writes since the last call.
    pub fn since(&mut self) -> Result<Vec<Written>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = std::fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read as u64))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may not be whole.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        self.read += whole;
        text[..whole].lines().map(parse).collect()
    }
}

fn parse(line: &str) -> Result<Written> {
    let event: Value = serde_json::from_str(line)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |name: &str| -> Result<i64> {
        let at: Timestamp = event[name].as_str().unwrap_or_default().parse()?;
        Ok(at.as_microsecond())
    };
    let object = &event["objectRef"];
    Ok(Written {
        by_controller: event["user"]["username"] == "penstock-operator",
        verb: text(&event["verb"]),
        resource: text(&object["resource"]),
        name: text(&object["name"]),
        accepted: event["responseStatus"]["code"].as_u64().unwrap_or(0) < 400,
        received: time("requestReceivedTimestamp")?,
        done: time("stageTimestamp")?,
    })
}
