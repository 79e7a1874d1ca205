//! Bytes, from requests and into answers, and what is said of them.

use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, checksum};
use futures_util::{StreamExt, stream};
use hyper::body::Bytes;
use s3s::{S3Result, dto::*, s3_error};
use std::convert::Infallible;

pub(super) fn crc(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(checksum(CrcAlgorithm::Crc32IsoHdlc, bytes)).unwrap().to_be_bytes()
}

pub(super) fn etag(bytes: &[u8], suffix: &str) -> ETag {
    ETag::Strong(format!("{:016x}{suffix}", checksum(CrcAlgorithm::Crc64Nvme, bytes)))
}

/// The bytes of a body, if their checksum is the one that goes with them.
pub(super) async fn read(body: Option<StreamingBlob>, announced: Option<&str>) -> S3Result<Bytes> {
    let mut bytes = Vec::new();
    if let Some(mut body) = body {
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|_| s3_error!(IncompleteBody))?);
        }
    }
    bytes.shrink_to_fit();
    match announced {
        Some(sum) if sum != STANDARD.encode(crc(&bytes)) => Err(s3_error!(BadDigest)),
        _ => Ok(bytes.into()),
    }
}

/// In pieces, as from a network.
pub(super) fn blob(bytes: Bytes) -> StreamingBlob {
    let pieces = (0..bytes.len()).step_by(16 * 1024);
    let pieces: Vec<_> =
        pieces.map(|at| bytes.slice(at..bytes.len().min(at + 16 * 1024))).collect();
    StreamingBlob::wrap(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
}

pub(super) fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap()
}
