//! Files of a folder: JSON lines (or raw bodies, a line each), one object per shard, epoch and chunk (and per folder of
//! `partitionBy`), exactly once.
//!
//! Why exactly once: an object's name says which chunk it holds, a chunk's bytes are fixed when it is staged, and objects are
//! made by create-if-absent. Publishing a chunk again, by whomever, therefore changes nothing; a publisher that was
//! superseded can do no harm, and there is nothing to fence. The marker, a small object per shard below `_penstock/`,
//! only saves the work; readers pass over names that begin with an underscore.

use std::collections::BTreeMap;
use std::path::Path as LocalPath;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{ObjectStore as _, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use penstock_crds::sink::FilesSink as Spec;

use super::rows::RowPlan;
use super::staged::{records, stage};
use super::{
    DirectSender, Guarantee, Marker, Record, ShardPublisher, Sink, SinkEncoder, StagedRecords,
};
use crate::error::{EngineError, Result};
use crate::folder::Folder;

/// Where files go.
#[derive(Debug, Clone)]
pub struct FilesSinkConfig {
    pub rows: RowPlan,
    pub folder: Folder,
    /// Of the job; part of every name, so that jobs may share a folder.
    pub log_id: String,
}

impl FilesSinkConfig {
    /// `options`: what the sink's secret holds. `rows.key` is the folder columns that `partitionBy` names.
    pub fn from_spec(
        spec: &Spec,
        rows: RowPlan,
        log_id: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Ok(Self {
            rows,
            folder: Folder::open(&spec.url, options)?,
            log_id: log_id.to_owned(),
        })
    }
}

/// Writes files.
#[derive(Debug, Clone)]
pub struct FilesSink {
    config: FilesSinkConfig,
}

impl FilesSink {
    pub fn new(config: FilesSinkConfig) -> Self {
        Self { config }
    }

    fn object(&self) -> String {
        format!("sink {}", self.config.rows.name)
    }

    fn retry(&self, what: &str, e: object_store::Error) -> EngineError {
        EngineError::retry("PR0209", self.object(), what).caused_by(e)
    }
}

#[async_trait]
impl Sink for FilesSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn shards(&self) -> u16 {
        self.config.rows.shards
    }

    /// Makes a local folder; proves that the store can be written.
    async fn prepare(&self) -> Result<()> {
        let folder = &self.config.folder;
        if let Some(local) = &folder.local {
            std::fs::create_dir_all(local).map_err(|e| {
                let message = format!("{} cannot be made", folder.url);
                EngineError::fail("PR0209", self.object(), message).caused_by(e)
            })?;
        }
        let probe = format!(
            "_penstock/{}/{}/probe",
            self.config.log_id, self.config.rows.name
        );
        let probe = folder.object(&probe);
        folder
            .store
            .put(&probe, PutPayload::default())
            .await
            .map_err(|e| {
                let message = format!("{} cannot be written", folder.url);
                EngineError::fail("PR0209", self.object(), message).caused_by(e)
            })?;
        Ok(())
    }

    fn encoder(&self) -> Result<Box<dyn SinkEncoder>> {
        Ok(Box::new(self.config.rows.encoder()))
    }

    fn stage_record(&self, record: &Record, out: &mut StagedRecords) {
        // A record's key would be its folder; one made outside SQL goes to the top, as one line of what is left of it.
        let line = Record {
            key: None,
            ..record.clone()
        };
        stage(&line, -1, out);
    }

    fn publisher(&self, shard: u16, _partition: i32) -> Result<Box<dyn ShardPublisher>> {
        Ok(Box::new(Publisher {
            sink: self.clone(),
            shard,
        }))
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Err(EngineError::invalid(
            "PS0045",
            self.object(),
            "files are written at the end of an epoch; leave delivery out, or say ExactlyOnce",
        ))
    }
}

struct Publisher {
    sink: FilesSink,
    shard: u16,
}

impl Publisher {
    fn marker_name(&self) -> String {
        let config = &self.sink.config;
        format!(
            "_penstock/{}/{}/marker-{:05}",
            config.log_id, config.rows.name, self.shard
        )
    }

    fn data_name(&self, folder: &str, marker: Marker) -> String {
        let config = &self.sink.config;
        let slash = if folder.is_empty() { "" } else { "/" };
        format!(
            "{folder}{slash}{}-{}-{:05}-{:020}-{}.json",
            config.rows.name,
            config.log_id,
            self.shard,
            marker.epoch,
            chunk_name(marker),
        )
    }

    async fn write_marker(&self, marker: Marker) -> Result<()> {
        let text = serde_json::json!({
            "epoch": marker.epoch, "chunk": marker.chunk, "nonce": format!("{:016x}", marker.nonce),
        });
        let folder = &self.sink.config.folder;
        let path = folder.object(&self.marker_name());
        let put = folder.store.put(&path, text.to_string().into());
        put.await
            .map_err(|e| self.sink.retry("the marker cannot be written", e))?;
        self.make_durable(&self.marker_name())
    }

    /// A local store answers before the disk has it.
    fn make_durable(&self, name: &str) -> Result<()> {
        let Some(local) = &self.sink.config.folder.local else {
            return Ok(());
        };
        let path = local.join(name);
        let sync = |path: &LocalPath| std::fs::File::open(path).and_then(|file| file.sync_all());
        sync(&path)
            .and_then(|()| path.parent().map_or(Ok(()), sync))
            .map_err(|e| {
                let message = format!("{name} cannot be made durable");
                EngineError::retry("PR0409", self.sink.object(), message).caused_by(e)
            })
    }

    async fn write_data(&self, name: &str, lines: Vec<u8>) -> Result<()> {
        let folder = &self.sink.config.folder;
        let path = folder.object(name);
        let options = PutOptions::from(PutMode::Create);
        let lines = Bytes::from(lines);
        let payload = PutPayload::from_bytes(lines.clone());
        match folder.store.put_opts(&path, payload, options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => {
                let there = match folder.store.get(&path).await {
                    Ok(there) => there.bytes().await,
                    Err(e) => Err(e),
                };
                let there =
                    there.map_err(|e| self.sink.retry("an object cannot be compared", e))?;
                if there != lines {
                    let message = format!("{name} exists with other contents");
                    return Err(EngineError::fail("PR0210", self.sink.object(), message));
                }
            }
            Err(e) => return Err(self.sink.retry("an object cannot be written", e)),
        }
        self.make_durable(name)
    }
}

/// Sorts in the order of the chunks: the last one says so instead of its number.
fn chunk_name(marker: Marker) -> String {
    match marker.chunk {
        Marker::ALL => "last".to_owned(),
        chunk => format!("{chunk:05}"),
    }
}

fn parse_marker(text: &[u8]) -> Option<Marker> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    Some(Marker {
        epoch: value["epoch"].as_u64()?,
        chunk: u32::try_from(value["chunk"].as_u64()?).ok()?,
        nonce: u64::from_str_radix(value["nonce"].as_str()?, 16).ok()?,
    })
}

#[async_trait]
impl ShardPublisher for Publisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        let folder = &self.sink.config.folder;
        let text = match folder.store.get(&folder.object(&self.marker_name())).await {
            Ok(object) => object.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => Err(e),
        };
        let text = text.map_err(|e| self.sink.retry("the marker cannot be read", e))?;
        let message = "the marker cannot be understood";
        let marker = parse_marker(&text);
        marker
            .map(Some)
            .ok_or_else(|| EngineError::fail("PR0210", self.sink.object(), message))
    }

    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        self.write_marker(marker).await
    }

    async fn publish(&mut self, chunk: Bytes, marker: Marker) -> Result<()> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for record in records(&chunk) {
            let record = record?;
            let folder = record.key.map(String::from_utf8_lossy).unwrap_or_default();
            let lines = match files.get_mut(folder.as_ref()) {
                Some(lines) => lines,
                None => files.entry(folder.into_owned()).or_default(),
            };
            lines.extend_from_slice(record.value.unwrap_or(b"null"));
            lines.push(b'\n');
        }
        for (folder, lines) in files {
            self.write_data(&self.data_name(&folder, marker), lines)
                .await?;
        }
        self.write_marker(marker).await
    }
}
