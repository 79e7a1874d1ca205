//! What the store says about an object.

use crate::get::length;
use aws_sdk_s3::{
    operation::{get_object::GetObjectOutput, head_object::HeadObjectOutput},
    primitives::{DateTime, DateTimeFormat},
};
use std::{collections::BTreeMap, time::SystemTime};

/// What the store says about one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectHead {
    /// Its length in bytes.
    pub size: u64,
    /// The store's mark of this version; not a checksum.
    pub etag: Option<String>,
    /// When it was written.
    pub last_modified: Option<SystemTime>,
    /// The type of its content.
    pub content_type: Option<String>,
    /// How long caches may keep it.
    pub cache_control: Option<String>,
    /// How a browser shows it.
    pub content_disposition: Option<String>,
    /// What it was compressed with.
    pub content_encoding: Option<String>,
    /// The language of its content.
    pub content_language: Option<String>,
    /// When caches should drop it.
    pub expires: Option<SystemTime>,
    /// Its metadata, names in lower case, without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    /// Its storage class; `None` is `STANDARD`.
    pub storage_class: Option<String>,
    /// How the store encrypts it, such as `AES256` or `aws:kms`.
    pub encryption: Option<String>,
    /// The version's id, in a bucket that keeps versions.
    pub version_id: Option<String>,
}

/// The two answers have the same fields, and no trait in common.
macro_rules! head {
    ($answer:expr, $size:expr) => {{
        let answer = $answer;
        let date = |text: &str| DateTime::from_str(text, DateTimeFormat::HttpDate).ok();
        ObjectHead {
            size: $size,
            etag: answer.e_tag.clone(),
            last_modified: answer.last_modified.and_then(|time| time.try_into().ok()),
            content_type: answer.content_type.clone(),
            cache_control: answer.cache_control.clone(),
            content_disposition: answer.content_disposition.clone(),
            content_encoding: answer.content_encoding.clone(),
            content_language: answer.content_language.clone(),
            expires: answer
                .expires_string
                .as_deref()
                .and_then(date)
                .and_then(|time| time.try_into().ok()),
            metadata: answer.metadata.clone().unwrap_or_default().into_iter().collect(),
            storage_class: answer.storage_class.as_ref().map(|class| class.as_str().to_owned()),
            encryption: answer.server_side_encryption.as_ref().map(|e| e.as_str().to_owned()),
            version_id: answer.version_id.clone(),
        }
    }};
}

impl ObjectHead {
    pub(crate) fn of_head(answer: HeadObjectOutput) -> Self {
        let size = length(answer.content_length).unwrap_or_default();
        head!(&answer, size)
    }

    /// Of an answer with bytes, whose length may be a range's.
    pub(crate) fn of_get(answer: &GetObjectOutput, size: u64) -> Self {
        head!(answer, size)
    }
}
