//! What goes with an object's bytes, from the requests that write it to the answers about it; and how names are
//! written there.

use s3s::dto::*;

/// What a writer says of an object beside its bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    pub(super) metadata: Option<Metadata>,
    pub(super) content_type: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) expires: Option<Timestamp>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) encryption: Option<ServerSideEncryption>,
    /// Of the customer's own key.
    pub(super) key_md5: Option<String>,
    pub(super) tags: TagSet,
}

/// Of any of the requests that write an object.
macro_rules! said {
    ($input:expr) => {
        Said {
            metadata: $input.metadata,
            content_type: $input.content_type,
            cache_control: $input.cache_control,
            content_disposition: $input.content_disposition,
            content_encoding: $input.content_encoding,
            content_language: $input.content_language,
            expires: $input.expires,
            storage_class: $input.storage_class,
            encryption: $input.server_side_encryption,
            key_md5: $input.sse_customer_key_md5,
            tags: $input.tagging.as_deref().map($crate::s3::memory::said::tags).unwrap_or_default(),
        }
    };
}

/// Of any of the answers about an object.
macro_rules! tell {
    ($object:expr, $output:ident { $($field:ident: $value:expr),* $(,)? }) => {
        $output {
            $($field: $value,)*
            e_tag: Some($object.etag),
            metadata: $object.said.metadata,
            content_type: $object.said.content_type,
            cache_control: $object.said.cache_control,
            content_disposition: $object.said.content_disposition,
            content_encoding: $object.said.content_encoding,
            content_language: $object.said.content_language,
            expires: $object.said.expires,
            storage_class: $object.said.storage_class,
            server_side_encryption: $object.said.encryption,
            ..Default::default()
        }
    };
}

/// Without percent signs.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, rest) {
            (b'%', [high, low, after @ ..]) => {
                let hex = [*high, *low];
                bytes.push(u8::from_str_radix(str::from_utf8(&hex).unwrap(), 16).unwrap());
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// From the header `x-amz-tagging`.
pub(super) fn tags(header: &str) -> TagSet {
    let pairs = header.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| Tag { key: Some(decoded(k)), value: Some(decoded(v)) }).collect()
}

pub(super) fn url_encoded(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./".contains(b);
    let encode = |b: u8| match b {
        b' ' => "+".to_owned(),
        b if plain(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(encode).collect()
}

pub(super) fn url_decoded(text: &str) -> String {
    decoded(&text.replace('+', " "))
}

pub(super) use {said, tell};
