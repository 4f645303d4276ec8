//! One file as blocks of whole lines, read and decompressed on a thread of its own in bounded memory.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Notify;

/// Bytes that one block aims at.
const BLOCK: usize = 256 << 10;
/// Blocks that wait for the reader.
const WAITING: usize = 4;

pub(super) enum Block {
    /// The file is there.
    Opened { modified_ms: i64 },
    /// Whole lines; the file's last may lack its newline.
    Lines(Vec<u8>),
    /// A line beyond the bound; its bytes were passed over.
    TooLong { bytes: u64 },
    End,
}

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Gone(object_store::Error),
    Store(io::Error),
    Corrupt(io::Error),
}

impl From<object_store::Error> for ReadError {
    fn from(e: object_store::Error) -> Self {
        match e {
            object_store::Error::NotFound { .. } => Self::Gone(e),
            other => Self::Store(io::Error::other(other)),
        }
    }
}

/// The receiving end; dropping it ends the thread at its next block.
pub(super) struct LineStream {
    blocks: Receiver<Result<Block, ReadError>>,
}

impl LineStream {
    /// `skip`: lines to pass over first.
    pub fn open(
        store: Arc<dyn ObjectStore>,
        path: Path,
        skip: u64,
        max_line: usize,
        waker: Arc<Notify>,
    ) -> Self {
        let (send, blocks) = sync_channel(WAITING);
        let out = Out { send, waker };
        // Without a thread the stream is disconnected, which `next` reports as a failure of the store.
        let _ = std::thread::Builder::new()
            .name("penstock-files".to_owned())
            .spawn(move || {
                if let Err(error) = read(store, &path, skip, max_line, &out)
                    && let Some(error) = error
                {
                    out.send(Err(error));
                }
            });
        Self { blocks }
    }

    /// `None`: nothing yet.
    pub fn next(&mut self) -> Option<Result<Block, ReadError>> {
        match self.blocks.try_recv() {
            Ok(block) => Some(block),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                let gone = io::Error::other("the reading thread ended");
                Some(Err(ReadError::Store(gone)))
            }
        }
    }
}

struct Out {
    send: SyncSender<Result<Block, ReadError>>,
    waker: Arc<Notify>,
}

impl Out {
    /// False: nobody listens.
    fn send(&self, block: Result<Block, ReadError>) -> bool {
        let sent = self.send.send(block).is_ok();
        self.waker.notify_one();
        sent
    }
}

/// The object's bytes as they arrive.
struct Body {
    runtime: tokio::runtime::Runtime,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
}

/// Marks the errors that the store gave, among those that a decompressor passes on or makes.
#[derive(Debug, thiserror::Error)]
#[error("the store failed")]
struct StoreFailed(#[source] object_store::Error);

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(e)) => return Err(io::Error::other(StoreFailed(e))),
            }
        }
        let n = out.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut out[..n]);
        Ok(n)
    }
}

fn classify(e: io::Error) -> ReadError {
    let store = e.get_ref().is_some_and(|inner| inner.is::<StoreFailed>());
    if store { ReadError::Store(e) } else { ReadError::Corrupt(e) }
}

/// `Err(None)`: nobody listens any more.
fn read(
    store: Arc<dyn ObjectStore>,
    path: &Path,
    mut skip: u64,
    max_line: usize,
    out: &Out,
) -> Result<(), Option<ReadError>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Some(ReadError::Store(e)))?;
    let object = runtime.block_on(store.get(path)).map_err(|e| Some(e.into()))?;
    let send = |block| if out.send(Ok(block)) { Ok(()) } else { Err(None) };
    send(Block::Opened {
        modified_ms: object.meta.last_modified.timestamp_millis(),
    })?;
    let body = Body {
        stream: object.into_stream(),
        runtime,
        chunk: Bytes::new(),
    };
    let mut input: Box<dyn Read> = match path.extension() {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(body)),
        Some("zst") => Box::new(
            zstd::stream::read::Decoder::new(body).map_err(|e| Some(ReadError::Corrupt(e)))?,
        ),
        _ => Box::new(body),
    };
    let mut buffer: Vec<u8> = Vec::with_capacity(BLOCK);
    // Bytes of a line beyond the bound that were passed over already.
    let mut passed: u64 = 0;
    loop {
        let start = buffer.len();
        buffer.resize(start + BLOCK, 0);
        let n = input.read(&mut buffer[start..]).map_err(|e| Some(classify(e)))?;
        buffer.truncate(start + n);
        let end = n == 0;
        if passed > 0 {
            let newline = find_newline(&buffer);
            passed += newline as u64;
            if newline == buffer.len() && !end {
                buffer.clear();
                continue;
            }
            buffer.drain(..(newline + 1).min(buffer.len()));
            if skip > 0 {
                skip -= 1;
            } else {
                send(Block::TooLong { bytes: passed })?;
            }
            passed = 0;
        }
        let mut whole = match (end, last_newline(&buffer)) {
            (true, _) => buffer.len(),
            (false, Some(newline)) => newline + 1,
            (false, None) => 0,
        };
        let mut from = 0;
        while skip > 0 && from < whole {
            from = (from + find_newline(&buffer[from..whole]) + 1).min(whole);
            skip -= 1;
        }
        if skip > 0 {
            whole = from;
        }
        if from < whole {
            send(Block::Lines(buffer[from..whole].to_vec()))?;
        }
        buffer.drain(..whole);
        if end {
            send(Block::End)?;
            return Ok(());
        }
        if buffer.len() > max_line {
            passed = buffer.len() as u64;
            buffer.clear();
        }
    }
}

fn last_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|b| *b == b'\n')
}

/// Index of the first newline, or the length. Eight bytes at a time.
pub(super) fn find_newline(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let mut i = 0;
    while let Some(chunk) = bytes.get(i..i + 8) {
        let x = u64::from_le_bytes(chunk.try_into().expect("the slice has 8 bytes"))
            ^ (ONES * b'\n' as u64);
        let found = x.wrapping_sub(ONES) & !x & (ONES << 7);
        if found != 0 {
            return i + (found.trailing_zeros() / 8) as usize;
        }
        i += 8;
    }
    bytes[i..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| i + at)
}
