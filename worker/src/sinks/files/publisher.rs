//! Publishes one shard of a files sink: holds lines back in objects below `_penstock/` until their file is whole, then makes
//! the file, by create-if-absent. What is whole is `roll`'s decision.
//!
//! Each chunk is one held object: its lines, then the shard's marker and open files as of this chunk. The newest object is the
//! shard's state; an older one stays while an open file has lines in it. Held objects are made by create-if-absent too, and say
//! the same whoever makes them, so that a superseded publisher cannot bring the state back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectStore as _, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart,
};
use serde::{Deserialize, Serialize};

use super::FilesSink;
use super::roll::{FileName, OpenFiles, Piece, Whole};
use crate::error::{EngineError, Result};
use crate::sinks::staged::records;
use crate::sinks::{Marker, Rolling, ShardPublisher, Turn};

/// A file of up to as many bytes is put together in memory; a larger one in parts of as many.
const PART: usize = 8 << 20;
/// Parts that are under way at once.
const PARTS_AT_ONCE: usize = 2;
/// The length of the state at the end of a held object.
const TRAILER: usize = 8;

/// The end of a held object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    chunk: u32,
    nonce: String,
    open: OpenFiles,
}

pub(super) struct Publisher {
    sink: FilesSink,
    shard: u16,
    /// After `open`, or the initial marker.
    state: Option<(Marker, OpenFiles)>,
    turn: Turn,
    /// Held objects that are known to be there.
    held: BTreeSet<String>,
    /// Folders whose own entry is durable.
    synced: BTreeSet<PathBuf>,
}

impl Publisher {
    pub(super) fn new(sink: FilesSink, shard: u16) -> Self {
        Self {
            sink,
            shard,
            state: None,
            turn: Turn::default(),
            held: BTreeSet::new(),
            synced: BTreeSet::new(),
        }
    }

    fn held_folder(&self) -> String {
        let config = &self.sink.config;
        format!(
            "_penstock/{}/{}/{:05}",
            config.log_id, config.rows.name, self.shard
        )
    }

    fn file_name(&self, folder: &str, name: &FileName) -> String {
        let config = &self.sink.config;
        let slash = if folder.is_empty() { "" } else { "/" };
        let cut = match name.cut {
            0 => String::new(),
            n => format!("-{n:05}"),
        };
        format!(
            "{folder}{slash}{}-{}-{:05}-{:020}-{}{cut}.json",
            config.rows.name,
            config.log_id,
            self.shard,
            name.epoch,
            chunk_name(name.chunk),
        )
    }

    fn fail(&self, message: impl Into<String>) -> EngineError {
        EngineError::fail("PR0210", self.sink.object(), message)
    }

    /// A local store answers before the disk has it.
    fn make_durable(&mut self, name: &str) -> Result<()> {
        let Some(local) = &self.sink.config.folder.local else {
            return Ok(());
        };
        let path = local.join(name);
        let mut sync = vec![path.clone()];
        let own = path.ancestors().skip(1).filter(|f| f.starts_with(local));
        for folder in own {
            sync.push(folder.to_owned());
            // A folder that is new is an entry of the one above it.
            if !self.synced.insert(folder.to_owned()) {
                break;
            }
        }
        for path in sync {
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|e| {
                    let message = format!("{name} cannot be made durable");
                    EngineError::retry("PR0409", self.sink.object(), message).caused_by(e)
                })?;
        }
        Ok(())
    }

    /// Makes an object that always has these contents; one that is there must have them.
    async fn create(&mut self, name: &str, contents: Vec<u8>) -> Result<()> {
        let folder = self.sink.config.folder.clone();
        let path = folder.object(name);
        let options = PutOptions::from(PutMode::Create);
        let contents = Bytes::from(contents);
        let payload = PutPayload::from_bytes(contents.clone());
        match folder.store.put_opts(&path, payload, options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => {
                let there = match folder.store.get(&path).await {
                    Ok(there) => there.bytes().await,
                    Err(e) => Err(e),
                };
                let there =
                    there.map_err(|e| self.sink.retry("an object cannot be compared", e))?;
                if there != contents {
                    return Err(self.fail(format!("{name} exists with other contents")));
                }
            }
            Err(e) => return Err(self.sink.retry("an object cannot be written", e)),
        }
        self.make_durable(name)
    }

    async fn read(&self, piece: &Piece) -> Result<Bytes> {
        let folder = &self.sink.config.folder;
        let path = folder.object(&format!("{}/{}", self.held_folder(), piece.0));
        let range = piece.1..piece.1 + piece.2;
        let bytes = folder.store.get_range(&path, range).await;
        bytes.map_err(|e| self.sink.retry("a held object cannot be read", e))
    }

    /// Makes a file, unless it is there: another publisher may have been here, and its lines may not be held any more.
    async fn make(&mut self, whole: Whole) -> Result<()> {
        let name = self.file_name(&whole.folder, &whole.name);
        let folder = self.sink.config.folder.clone();
        if !whole.pieces.is_empty() {
            match folder.store.head(&folder.object(&name)).await {
                Ok(there) if there.size == whole.len() => return self.make_durable(&name),
                Ok(_) => return Err(self.fail(format!("{name} exists with other contents"))),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.sink.retry("an object cannot be looked up", e)),
            }
        }
        if whole.len() > PART as u64 {
            return self.make_large(&name, &whole).await;
        }
        let mut lines = Vec::with_capacity(usize::try_from(whole.len()).unwrap_or(0));
        for piece in &whole.pieces {
            lines.extend_from_slice(&self.read(piece).await?);
        }
        lines.extend_from_slice(&whole.tail);
        self.create(&name, lines).await
    }

    /// In parts, so that no file is in memory as a whole. An object store shows it when it is complete; a local one gets
    /// it under a held name first.
    async fn make_large(&mut self, name: &str, whole: &Whole) -> Result<()> {
        let folder = self.sink.config.folder.clone();
        let path = folder.object(name);
        let config = &self.sink.config;
        let flat = format!("{}-{}", whole.folder.replace('/', "-"), self.shard);
        let before = format!(
            "_penstock/{}/{}/making/{flat}-{:020}-{}-{}",
            config.log_id, config.rows.name, whole.name.epoch, whole.name.chunk, whole.name.cut
        );
        let target = match folder.local {
            Some(_) => folder.object(&before),
            None => path.clone(),
        };
        let retry = |e| self.sink.retry("a file cannot be written", e);
        let upload = folder.store.put_multipart(&target).await.map_err(retry)?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        for piece in &whole.pieces {
            let bytes = match self.read(piece).await {
                Ok(bytes) => bytes,
                Err(e) => {
                    // What was uploaded is dropped by the store sooner or later; the error counts.
                    let _ = writer.abort().await;
                    return Err(e);
                }
            };
            let room = writer.wait_for_capacity(PARTS_AT_ONCE).await;
            room.map_err(retry)?;
            writer.write(&bytes);
        }
        writer.write(&whole.tail);
        writer.finish().await.map_err(retry)?;
        if folder.local.is_none() {
            return Ok(());
        }
        self.make_durable(&before)?;
        match folder.store.rename_if_not_exists(&target, &path).await {
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(e) => return Err(self.sink.retry("a file cannot be renamed", e)),
        }
        self.make_durable(name)
    }

    /// Writes the shard's state as a held object behind `data`, and deletes held objects that nothing needs any more.
    async fn hold(
        &mut self,
        name: &str,
        mut data: Vec<u8>,
        marker: Marker,
        open: OpenFiles,
    ) -> Result<()> {
        let state = State {
            epoch: marker.epoch,
            chunk: marker.chunk,
            nonce: format!("{:016x}", marker.nonce),
            open,
        };
        let text = serde_json::to_vec(&state)
            .map_err(|e| self.fail("the open files cannot be written").caused_by(e))?;
        data.extend_from_slice(&text);
        data.extend_from_slice(&(text.len() as u64).to_le_bytes());
        let folder = self.held_folder();
        self.create(&format!("{folder}/{name}"), data).await?;
        self.held.insert(name.to_owned());
        let needed: BTreeSet<&str> = state.open.objects().chain([name]).collect();
        let needless: Vec<String> = self
            .held
            .iter()
            .filter(|held| !needed.contains(held.as_str()))
            .cloned()
            .collect();
        for name in needless {
            let to = &self.sink.config.folder;
            let path = to.object(&format!("{folder}/{name}"));
            match to.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {
                    self.held.remove(&name);
                }
                // Found again and deleted after the next chunk.
                Err(error) => tracing::debug!(%error, "a held object was not deleted"),
            }
        }
        self.state = Some((marker, state.open));
        Ok(())
    }

    fn state(&self) -> Result<(Marker, OpenFiles)> {
        let message = "the publisher is not open";
        self.state
            .clone()
            .ok_or_else(|| EngineError::retry("PR0209", self.sink.object(), message))
    }

    /// Makes these files and remembers that they are made.
    async fn end(&mut self, whole: Vec<Whole>, name: &str, open: OpenFiles) -> Result<()> {
        if whole.is_empty() {
            return Ok(());
        }
        let (marker, _) = self.state()?;
        for whole in whole {
            self.make(whole).await?;
        }
        self.hold(name, Vec::new(), marker, open).await
    }

    /// Small pieces of this chunk's predecessors are held again behind its own.
    async fn merge(&self, open: &mut OpenFiles, name: &str, data: &mut Vec<u8>) -> Result<()> {
        for (folder, pieces) in open.to_merge() {
            let from = data.len();
            for piece in &pieces {
                if piece.0 == name {
                    let at = usize::try_from(piece.1).unwrap_or(0);
                    data.extend_from_within(at..at + usize::try_from(piece.2).unwrap_or(0));
                } else {
                    data.extend_from_slice(&self.read(piece).await?);
                }
            }
            let len = (data.len() - from) as u64;
            open.merged(
                &folder,
                pieces.len(),
                Piece(name.to_owned(), from as u64, len),
            );
        }
        Ok(())
    }
}

#[async_trait]
impl ShardPublisher for Publisher {
    async fn open(&mut self) -> Result<Option<Marker>> {
        self.state = None;
        let folder = self.sink.config.folder.clone();
        let held = folder.object(&self.held_folder());
        let listed: Vec<_> = folder
            .store
            .list(Some(&held))
            .try_collect()
            .await
            .map_err(|e| self.sink.retry("the held objects cannot be listed", e))?;
        let names = listed.iter().filter_map(|o| o.location.filename());
        self.held = names.map(str::to_owned).collect();
        let Some(newest) = self.held.last() else {
            return Ok(None);
        };
        let path = folder.object(&format!("{}/{newest}", self.held_folder()));
        let bytes = match folder.store.get(&path).await {
            Ok(object) => object.bytes().await,
            Err(e) => Err(e),
        };
        let bytes = bytes.map_err(|e| self.sink.retry("the marker cannot be read", e))?;
        let (marker, open) = parse(&bytes).ok_or_else(|| {
            let text = "the marker cannot be understood";
            EngineError::invalid("PR0210", self.sink.object(), text)
        })?;
        self.state = Some((marker, open));
        Ok(Some(marker))
    }

    async fn init_marker(&mut self, marker: Marker) -> Result<()> {
        let name = held_name(marker);
        self.hold(&name, Vec::new(), marker, OpenFiles::default())
            .await
    }

    async fn publish(&mut self, chunk: Bytes, marker: Marker) -> Result<()> {
        let (at, mut open) = self.state()?;
        if (marker.epoch, marker.chunk) <= (at.epoch, at.chunk) {
            return Ok(());
        }
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
        let name = held_name(marker);
        let at = (marker.epoch, marker.chunk);
        let rules = self.sink.config.rules;
        let mut done = open.append(files, at, &name, self.turn, rules);
        for whole in done.whole {
            self.make(whole).await?;
        }
        self.merge(&mut open, &name, &mut done.held).await?;
        self.hold(&name, done.held, marker, open).await
    }

    fn rolling(&mut self) -> Option<&mut dyn Rolling> {
        Some(self)
    }
}

#[async_trait]
impl Rolling for Publisher {
    async fn turn(&mut self, turn: Turn) -> Result<()> {
        let (_, mut open) = self.state()?;
        self.turn = turn;
        let whole = open.turn(turn, self.sink.config.rules);
        // Sorts before the epoch's chunks.
        self.end(whole, &format!("{:020}--turn", turn.epoch), open)
            .await
    }

    async fn close(&mut self) -> Result<()> {
        let (marker, mut open) = self.state()?;
        let whole = open.close();
        // Sorts behind the chunks of the marker's epoch and of the turns after it.
        let newest = self
            .held
            .last()
            .and_then(|name| name.get(..20)?.parse().ok());
        let epoch = marker.epoch.max(newest.unwrap_or(0));
        self.end(whole, &format!("{epoch:020}-stop"), open).await
    }
}

/// Sorts in the order of the chunks: the last one says so instead of its number.
fn chunk_name(chunk: u32) -> String {
    match chunk {
        Marker::ALL => "last".to_owned(),
        chunk => format!("{chunk:05}"),
    }
}

fn held_name(marker: Marker) -> String {
    format!("{:020}-{}", marker.epoch, chunk_name(marker.chunk))
}

fn parse(bytes: &[u8]) -> Option<(Marker, OpenFiles)> {
    let (rest, length) = bytes.split_last_chunk::<TRAILER>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let text = &rest[rest.len().checked_sub(length)?..];
    let state: State = serde_json::from_slice(text).ok()?;
    let marker = Marker {
        epoch: state.epoch,
        chunk: state.chunk,
        nonce: u64::from_str_radix(&state.nonce, 16).ok()?,
    };
    Some((marker, state.open))
}
