//! How JSON objects are written to the store: the JSON on one line, then `crc32c:xxxxxxxx` on a line of its own.
//! Readable with `cat`, and damaged ones are found. Shared by records, closures and base manifests.

use serde::Serialize;
use serde::de::DeserializeOwned;

const TAG: &[u8] = b"crc32c:";
const TRAILER: usize = 1 + TAG.len() + 8 + 1;

/// Why bytes are not what they should be. The caller names the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("damaged: {why}")]
    Damaged { why: String },
    #[error("written for reader {asks} or newer, this is reader {reader}")]
    TooNew { asks: u16, reader: u16 },
    #[error("{bytes} bytes, more than the limit of {limit}")]
    TooLarge { bytes: u64, limit: u64 },
}

impl DecodeError {
    pub(crate) fn damaged(why: impl Into<String>) -> Self {
        DecodeError::Damaged { why: why.into() }
    }
}

#[derive(serde::Deserialize)]
struct Header {
    min_reader: u16,
}

pub(crate) fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>, DecodeError> {
    // serde_json writes no raw newline, so the body is one line.
    let mut bytes = serde_json::to_vec(value)
        .map_err(|e| DecodeError::damaged(format!("not writable: {e}")))?;
    let crc = crc32c::crc32c(&bytes);
    bytes.push(b'\n');
    bytes.extend_from_slice(TAG);
    bytes.extend_from_slice(format!("{crc:08x}\n").as_bytes());
    Ok(bytes)
}

/// Checks the checksum, then the version, then the shape.
pub(crate) fn open<T: DeserializeOwned>(bytes: &[u8], reader: u16) -> Result<T, DecodeError> {
    let body = unseal(bytes)?;
    let header: Header = serde_json::from_slice(body)
        .map_err(|e| DecodeError::damaged(format!("no version in it: {e}")))?;
    if header.min_reader > reader {
        return Err(DecodeError::TooNew {
            asks: header.min_reader,
            reader,
        });
    }
    serde_json::from_slice(body).map_err(|e| DecodeError::damaged(e.to_string()))
}

fn unseal(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let at = bytes
        .len()
        .checked_sub(TRAILER)
        .ok_or_else(|| DecodeError::damaged("too short"))?;
    let (body, trailer) = bytes.split_at(at);
    let digits = trailer
        .strip_prefix(b"\n")
        .and_then(|t| t.strip_prefix(TAG))
        .and_then(|t| t.strip_suffix(b"\n"))
        .ok_or_else(|| DecodeError::damaged("no checksum line"))?;
    let crc = crc32c::crc32c(body);
    // Compared as text, so that one checksum has one spelling.
    if format!("{crc:08x}").as_bytes() != digits {
        return Err(DecodeError::damaged("checksum differs"));
    }
    Ok(body)
}
