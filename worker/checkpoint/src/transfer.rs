//! Packs to and from the store: writes the objects of a pack, reads its index and single sections by range. A damaged answer
//! is asked for once more, since the wire may have been at fault; then it is refused by name.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::envelope::DecodeError;
use crate::ids::LogId;
use crate::log::{LogError, patiently};
use crate::pack::{PackIndex, PackObject, Section};
use crate::record::PackRef;
use crate::store::CheckpointStore;

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
