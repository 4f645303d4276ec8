//! Files of a folder: JSON lines (or raw bodies, a line each), exactly once. A file grows over epochs and becomes visible when
//! it is whole: at `rollSize`, at `rollInterval`, or when the run ends. This module is the sink; `roll` decides when a file is
//! whole, `publisher` holds lines back until then.
//!
//! Why exactly once: a file's name says where its first line was staged, its contents follow from the log alone, and objects
//! are made by create-if-absent. Publishing a chunk again, by whomever, therefore changes nothing; a publisher that was
//! superseded can do no harm, and there is nothing to fence. (Where `rollSize` changes while such a publisher is still at work,
//! the two may cut differently. The first file that differs has the same name in both, so one of them is refused.)
//!
//! What is held back lies below `_penstock/`; readers pass over names that begin with an underscore.

use std::collections::BTreeMap;

use async_trait::async_trait;
use object_store::{ObjectStoreExt, PutPayload};
use penstock_crds::sink::FilesSink as Spec;

use super::rows::RowPlan;
use super::staged::stage;
use super::{DirectSender, Guarantee, Record, ShardPublisher, Sink, SinkEncoder, StagedRecords};
use crate::error::{EngineError, Result};
use crate::folder::Folder;

mod publisher;
mod roll;
#[cfg(test)]
mod tests;

pub use roll::Rules;

/// Where files go.
#[derive(Debug, Clone)]
pub struct FilesSinkConfig {
    pub rows: RowPlan,
    pub folder: Folder,
    /// Of the job; part of every name, so that jobs may share a folder.
    pub log_id: String,
    /// When a file is whole.
    pub rules: Rules,
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
            rules: Rules {
                size: spec.roll_size.as_bytes(),
                interval_ms: i64::try_from(
                    std::time::Duration::from(spec.roll_interval).as_millis(),
                )
                .unwrap_or(i64::MAX),
            },
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
        Ok(Box::new(publisher::Publisher::new(self.clone(), shard)))
    }

    fn direct(&self) -> Result<Box<dyn DirectSender>> {
        Err(EngineError::invalid(
            "PS0045",
            self.object(),
            "files are written at the end of an epoch; leave delivery out, or say ExactlyOnce",
        ))
    }
}
