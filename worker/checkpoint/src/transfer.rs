//! Packs to and from the store: writes the objects of a pack, reads its index and single sections by range. A damaged answer
//! is asked for once more, since the wire may have been at fault; then it is refused by name.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::envelope::DecodeError;
use crate::ids::{KeyGroup, LogId};
use crate::log::{LogError, patiently};
use crate::pack::{PackIndex, PackObject, Section, SectionName};
use crate::record::PackRef;
use crate::store::CheckpointStore;

/// Packs up to this many bytes are read whole: one request costs more than the bytes that are not needed.
const WHOLE: u64 = 4 << 20;

/// Writes a pack's objects, the pack itself last. Idempotent: names carry a nonce.
pub async fn write_pack(store: &CheckpointStore, objects: Vec<PackObject>) -> Result<(), LogError> {
    let mut objects = objects;
    let Some(pack) = objects.pop() else {
        return Ok(());
    };
    stream::iter(objects)
        .map(|o| async move { patiently(|| store.put(&o.path, o.body.clone())).await })
        .buffer_unordered(4)
        .try_collect::<Vec<()>>()
        .await?;
    patiently(|| store.put(&pack.path, pack.body.clone())).await?;
    Ok(())
}

async fn range(
    store: &CheckpointStore,
    path: &str,
    range: std::ops::Range<u64>,
) -> Result<Bytes, LogError> {
    let missing = || LogError::Missing {
        object: store.key(path),
    };
    patiently(|| store.get_range(path, range.clone()))
        .await?
        .ok_or_else(missing)
}

/// The index of a pack of `log`; two range reads.
pub async fn read_index(
    store: &CheckpointStore,
    log: LogId,
    pack: &PackRef,
) -> Result<PackIndex, LogError> {
    let (head, tail) = PackIndex::ranges(pack);
    let mut again = true;
    loop {
        let (header, index) = futures::try_join!(
            range(store, &pack.path, head.clone()),
            range(store, &pack.path, tail.clone())
        )?;
        match PackIndex::open(pack, log, &header, &index) {
            Ok(index) => return Ok(index),
            Err(DecodeError::Damaged { .. }) if again => again = false,
            Err(source) => {
                return Err(LogError::Unreadable {
                    object: store.key(&pack.path),
                    source,
                });
            }
        }
    }
}

/// The checked changes of these key groups (all that the pack has of them). A pack of at most [`WHOLE`] bytes is read in
/// one request, a larger one by its index and sections.
pub async fn read_segments(
    store: &CheckpointStore,
    log: LogId,
    pack: &PackRef,
    groups: &[KeyGroup],
) -> Result<Vec<(KeyGroup, Bytes)>, LogError> {
    if pack.length > WHOLE {
        let index = read_index(store, log, pack).await?;
        let sections = groups.iter().filter_map(|group| {
            let section = index.section(&SectionName::State(*group))?;
            Some((*group, section))
        });
        return stream::iter(sections.collect::<Vec<_>>())
            .map(|(group, section)| async move {
                Ok((group, read_section(store, pack, section).await?))
            })
            .buffered(8)
            .try_collect()
            .await;
    }
    let mut again = true;
    loop {
        let body = range(store, &pack.path, 0..pack.length).await?;
        match segments_of(pack, log, &body, groups) {
            Ok(segments) => return Ok(segments),
            Err(DecodeError::Damaged { .. }) if again => again = false,
            Err(source) => {
                return Err(LogError::Unreadable {
                    object: store.key(&pack.path),
                    source,
                });
            }
        }
    }
}

fn segments_of(
    pack: &PackRef,
    log: LogId,
    body: &Bytes,
    groups: &[KeyGroup],
) -> Result<Vec<(KeyGroup, Bytes)>, DecodeError> {
    let index = PackIndex::of_whole(pack, log, body)?;
    let mut segments = Vec::new();
    for group in groups {
        let Some(section) = index.section(&SectionName::State(*group)) else {
            continue;
        };
        let range = section.range();
        // Within the body: the index was checked against the pack's length.
        let bytes = body.slice(range.start as usize..range.end as usize);
        section.check(&bytes)?;
        segments.push((*group, bytes));
    }
    Ok(segments)
}

/// The checked bytes of one section; one range read.
pub async fn read_section(
    store: &CheckpointStore,
    pack: &PackRef,
    section: Section,
) -> Result<Bytes, LogError> {
    let path = match section.out {
        None => pack.path.clone(),
        Some(n) => pack.out_path(n as usize),
    };
    let mut again = true;
    loop {
        let bytes = range(store, &path, section.range()).await?;
        match section.check(&bytes) {
            Ok(_) => return Ok(bytes),
            Err(DecodeError::Damaged { .. }) if again => again = false,
            Err(source) => {
                return Err(LogError::Unreadable {
                    object: store.key(&path),
                    source,
                });
            }
        }
    }
}
