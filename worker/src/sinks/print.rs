//! Standard output, for people: one JSON object a line. A terminal cannot take rows back, so it gives at-least-once at most.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::rows::RowPlan;
use super::staged::records;
use super::{DirectSender, Guarantee, Marker, ShardPublisher, Sink, SinkEncoder, StagedRecords};
use crate::error::{EngineError, Result};

/// Where lines go.
pub type Out = Arc<Mutex<dyn Write + Send>>;

/// Prints rows.
#[derive(Clone)]
pub struct PrintSink {
    rows: RowPlan,
    out: Out,
}

impl PrintSink {
    pub fn new(rows: RowPlan, out: Out) -> Self {
        Self { rows, out }
    }

    pub fn to_stdout(rows: RowPlan) -> Self {
        Self::new(rows, Arc::new(Mutex::new(std::io::stdout())))
    }

    fn failed(&self, e: std::io::Error) -> EngineError {
        let name = format!("sink {}", self.rows.name);
        EngineError::fail("PR0209", name, "standard output is closed").caused_by(e)
    }

    fn print(&self, chunk: &[u8]) -> Result<()> {
        let mut lines = Vec::with_capacity(chunk.len());
        for record in records(chunk) {
            lines.extend_from_slice(record?.value.unwrap_or(b"null"));
            lines.push(b'\n');
        }
        self.out
            .lock()
            .write_all(&lines)
            .map_err(|e| self.failed(e))
    }

    fn flush_out(&self) -> Result<()> {
        self.out.lock().flush().map_err(|e| self.failed(e))
    }
}

#[async_trait]
impl Sink for PrintSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn shards(&self) -> u16 {
        self.rows.shards
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        Ok(Box::new(self.rows.encoder()))
    }

    /// Prints after the commit; there is no marker to read, so after a crash rows come again.
    fn publisher(&self, _shard: u16, _partition: i32) -> Result<Box<dyn ShardPublisher>> {
        Ok(Box::new(self.clone()))
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl ShardPublisher for PrintSink {
    async fn open(&mut self) -> Result<Option<Marker>> {
        Ok(None)
    }

    async fn init_marker(&mut self, _marker: Marker) -> Result<()> {
        Ok(())
    }

    async fn publish(&mut self, records: Bytes, _marker: Marker) -> Result<()> {
        self.print(&records)?;
        self.flush_out()
    }

    fn rolling(&mut self) -> Option<&mut dyn crate::sinks::Rolling> {
        None
    }
}

impl DirectSender for PrintSink {
    fn send(&mut self, records: &StagedRecords) -> Result<()> {
        self.print(&records.data)
    }

    fn seal(&mut self) -> Result<()> {
        self.flush_out()
    }

    fn settled(&mut self) -> Result<bool> {
        Ok(true)
    }
}
