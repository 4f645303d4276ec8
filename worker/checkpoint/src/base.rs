//! The manifest of a base: the files of one key group's snapshot, by unique id. A base may reuse files that the closure of
//! the newest commit names, and no others: only those cannot be collected meanwhile. Owns the manifest's bytes and names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::closure::EpochState;
use crate::envelope::{self, DecodeError};
use crate::ids::{Epoch, Generation, KeyGroup, LogId, Nonce};
use crate::record::{BaseFile, BaseRef, FORMAT, READER};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseManifest {
    pub format: u16,
    pub min_reader: u16,
    pub log: LogId,
    pub key_group: KeyGroup,
    pub epoch: Epoch,
    pub files: Vec<BaseFile>,
}

/// The folder of a base, below the log's prefix.
pub fn folder(key_group: KeyGroup, epoch: Epoch, generation: Generation, nonce: Nonce) -> String {
    format!("base/{key_group}/{epoch:020}-{generation}-{nonce}")
}

impl BaseManifest {
    pub fn new(log: LogId, key_group: KeyGroup, epoch: Epoch, files: Vec<BaseFile>) -> Self {
        Self {
            format: FORMAT,
            min_reader: READER,
            log,
            key_group,
            epoch,
            files,
        }
    }

    /// Its bytes, to be written to `<folder>/manifest`, and what a commit says of the base.
    pub fn encode(&self, folder: &str) -> Result<(Vec<u8>, BaseRef), DecodeError> {
        let bytes = envelope::seal(self)?;
        let base = BaseRef {
            key_group: self.key_group,
            epoch: self.epoch,
            path: format!("{folder}/manifest"),
            length: bytes.len() as u64,
            crc: crc32c::crc32c(&bytes),
            files: self.files.clone(),
            of: None,
        };
        Ok((bytes, base))
    }

    /// Reads the manifest that `base` names.
    pub fn decode(bytes: &[u8], base: &BaseRef, log: LogId) -> Result<BaseManifest, DecodeError> {
        if bytes.len() as u64 != base.length || crc32c::crc32c(bytes) != base.crc {
            return Err(DecodeError::damaged(
                "its length or checksum differs from what the commit says",
            ));
        }
        let manifest: BaseManifest = envelope::open(bytes, READER)?;
        let same = manifest.log == base.of.unwrap_or(log)
            && manifest.key_group == base.key_group
            && manifest.epoch == base.epoch;
        if !same || manifest.files != base.files {
            return Err(DecodeError::damaged("it is the manifest of another base"));
        }
        Ok(manifest)
    }
}

/// `body` if it is the file that a base names.
pub fn check_file<'a>(file: &BaseFile, body: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    if body.len() as u64 != file.length || crc32c::crc32c(body) != file.crc {
        return Err(DecodeError::damaged(
            "its length or checksum differs from what the base says",
        ));
    }
    Ok(body)
}

/// The files that a new base of `key_group` may name again, by id: those in the state of the newest commit.
pub fn reusable(newest: &EpochState, key_group: KeyGroup) -> BTreeMap<&str, &BaseFile> {
    let base = newest.chains.get(&key_group).and_then(|c| c.base.as_ref());
    base.into_iter()
        .flat_map(|b| &b.files)
        .map(|f| (f.id.as_str(), f))
        .collect()
}
