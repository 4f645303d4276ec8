//! Making a base: a snapshot of one key group's committed state, taken off the hot path, whose files are uploaded but for
//! those that the newest commit names already. When one is due is the coordinator's decision, and a commit names it.

use std::collections::BTreeMap;

use penstock_checkpoint::base::{self, BaseManifest};
use penstock_checkpoint::ids::{Epoch, Generation, KeyGroup, LogId, Nonce};
use penstock_checkpoint::log::LogError;
use penstock_checkpoint::record::{BaseFile, BaseRef};
use penstock_checkpoint::store::CheckpointStore;

use super::storage;
use crate::error::{EngineError, Result};
use crate::fault;
use crate::process;
use crate::state::{Base, StateWorker};

/// Where a base goes and what of it need not go.
pub(super) struct Upload {
    pub store: CheckpointStore,
    pub log: LogId,
    pub generation: Generation,
    pub nonce: Nonce,
    pub group: KeyGroup,
    /// By id: files of the newest commit's base of this key group.
    pub reuse: Vec<BaseFile>,
}

impl Upload {
    /// Makes the base, uploads it, and removes its files here whatever comes of it.
    pub(super) async fn run(
        self,
        make: impl FnOnce() -> Result<Base> + Send + 'static,
    ) -> Result<BaseRef> {
        let made = process::blocking(make).await;
        let made = made.map_err(|e| {
            let object = format!("base of key group {}", self.group);
            EngineError::retry("PR0515", object, "it was given up").caused_by(e)
        })??;
        fault::point("base.before");
        let uploaded = self.upload(&made).await;
        fault::point("base.after");
        if let Err(error) = StateWorker::forget_base(&made) {
            tracing::warn!(%error, "the files of a base stay on the volume until the next start");
        }
        uploaded
    }

    async fn upload(&self, made: &Base) -> Result<BaseRef> {
        let epoch = Epoch::new(made.identity.epoch);
        let folder = base::folder(self.group, epoch, self.generation, self.nonce);
        let known: BTreeMap<&str, &BaseFile> =
            self.reuse.iter().map(|f| (f.id.as_str(), f)).collect();
        let mut files = Vec::with_capacity(made.files.len());
        for file in &made.files {
            if let Some(there) = known.get(file.unique.as_str()).filter(|_| file.shared) {
                files.push((*there).clone());
                continue;
            }
            let path = file.path.clone();
            let body = process::blocking(move || std::fs::read(path)).await;
            let body = body.map_err(std::io::Error::other).flatten().map_err(|e| {
                let object = file.path.display().to_string();
                EngineError::retry("PR0515", object, "cannot read a base's file").caused_by(e)
            })?;
            let named = BaseFile {
                name: file.name.clone(),
                id: file.unique.clone(),
                path: format!("{folder}/{}", file.name),
                length: body.len() as u64,
                crc: crc32c::crc32c(&body),
            };
            self.put(&named.path, body).await?;
            files.push(named);
        }
        let manifest = BaseManifest::new(self.log, self.group, epoch, files);
        let (bytes, named) = manifest.encode(&folder).map_err(|e| {
            EngineError::fail(
                "PR0404",
                format!("base of key group {}", self.group),
                e.to_string(),
            )
        })?;
        self.put(&named.path, bytes).await?;
        Ok(named)
    }

    async fn put(&self, path: &str, body: Vec<u8>) -> Result<()> {
        self.store
            .put(path, body.into())
            .await
            .map_err(|e| storage(LogError::from(e)))
    }
}
