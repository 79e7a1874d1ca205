//! What an object carries and how it is kept: options that `put`, `copy` and `upload_file` share.

use crate::{
    content_type,
    encryption::{CustomerKey, Encryption, with_key},
};
use aws_sdk_s3::{
    operation::{
        complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder as Complete,
        copy_object::builders::CopyObjectFluentBuilder as Copy,
        create_multipart_upload::builders::CreateMultipartUploadFluentBuilder as Create,
        put_object::builders::PutObjectFluentBuilder as Put,
    },
    primitives::DateTime,
    types::StorageClass,
};
use mainstay_policy::Error;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::{collections::BTreeMap, fmt, path::Path, time::SystemTime};

/// What S3 takes of metadata, names and values together.
const METADATA: usize = 2 * 1024;
/// What a mark of ours has beside its name: 128 random bits in hexadecimal.
const MARK_LENGTH: usize = 32;
/// What S3 takes of tags.
const TAGS: usize = 10;

/// What an object carries and how it is kept; nothing of it by default.
///
/// The same options are methods of the builders that write objects; this type is for those who use
/// one set of them for many.
///
/// # Examples
/// ```no_run
/// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
/// use mainstay_s3::PutOptions;
///
/// let archived = PutOptions::new().storage_class("STANDARD_IA").tag("team", "billing");
/// s3.put("bucket", "2026/report.json", "{}").options(archived).await?;
/// s3.put("bucket", "2026/note.txt", "hello").content_type("text/plain").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct PutOptions {
    pub(crate) content_type: Option<String>,
    pub(crate) cache_control: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) expires: Option<SystemTime>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) storage_class: Option<String>,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) condition: Option<Condition>,
}

/// What must hold for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There is no such object.
    Absent,
    /// The object is this version.
    Match(String),
}

impl fmt::Debug for PutOptions {
    /// Without values: they are the caller's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutOptions")
            .field("content_type", &self.content_type)
            .field("storage_class", &self.storage_class)
            .field("metadata", &self.metadata.len())
            .field("tags", &self.tags.len())
            .field("encryption", &self.encryption)
            .finish_non_exhaustive()
    }
}

impl PutOptions {
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The type of the content. Default: by the extension of the key, or of the local file, if it
    /// is a well-known one; else what the store says, usually `application/octet-stream`.
    pub fn content_type(mut self, value: impl Into<String>) -> Self {
        self.content_type = Some(value.into());
        self
    }

    /// How long caches may keep it, such as `max-age=3600`.
    pub fn cache_control(mut self, value: impl Into<String>) -> Self {
        self.cache_control = Some(value.into());
        self
    }

    /// How a browser shows it, such as `attachment; filename="report.csv"`.
    pub fn content_disposition(mut self, value: impl Into<String>) -> Self {
        self.content_disposition = Some(value.into());
        self
    }

    /// What the bytes were compressed with, such as `gzip`. Nothing is compressed here.
    pub fn content_encoding(mut self, value: impl Into<String>) -> Self {
        self.content_encoding = Some(value.into());
        self
    }

    /// The language of the content, such as `de`.
    pub fn content_language(mut self, value: impl Into<String>) -> Self {
        self.content_language = Some(value.into());
        self
    }

    /// When caches should drop it. It deletes nothing.
    pub fn expires(mut self, when: SystemTime) -> Self {
        self.expires = Some(when);
        self
    }

    /// Adds a pair of metadata (`x-amz-meta-...`), 2 KiB in all; S3 makes names lower case. A write in parts or on
    /// a condition adds a mark of some 50 bytes.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Adds a tag, of which an object may have ten.
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// The storage class, such as `STANDARD_IA` or `GLACIER`.
    pub fn storage_class(mut self, class: impl Into<String>) -> Self {
        self.storage_class = Some(class.into());
        self
    }

    /// How the store encrypts it. Default: as the bucket says.
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(encryption);
        self
    }

    /// Writes only if there is no such object (`If-None-Match: *`); else the error's
    /// [`is_precondition_failed`](crate::S3Failure::is_precondition_failed).
    pub fn if_absent(mut self) -> Self {
        self.condition = Some(Condition::Absent);
        self
    }

    /// Writes only over the version with this ETag (`If-Match`); else the error's
    /// [`is_precondition_failed`](crate::S3Failure::is_precondition_failed).
    pub fn if_match(mut self, etag: impl Into<String>) -> Self {
        self.condition = Some(Condition::Match(etag.into()));
        self
    }

    /// # Errors
    /// What S3 would refuse, or what would become another header.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (name, value) in [
            ("content type", &self.content_type),
            ("cache control", &self.cache_control),
            ("content disposition", &self.content_disposition),
            ("content encoding", &self.content_encoding),
            ("content language", &self.content_language),
            ("storage class", &self.storage_class),
        ] {
            if let Some(value) = value {
                header(name, value)?;
            }
        }
        if let Some(Condition::Match(etag)) = &self.condition {
            header("ETag of the condition", etag)?;
        }
        check_metadata(&self.metadata)?;
        check_tags(&self.tags)?;
        self.encryption.as_ref().map_or(Ok(()), Encryption::check)
    }

    /// # Errors
    /// Metadata that leaves no room for this mark, which is added to it.
    pub(crate) fn check_room(&self, mark: &str) -> Result<(), Error> {
        let own = self.metadata.iter().filter(|(name, _)| *name != mark);
        let length = length_of(own) + mark.len() + MARK_LENGTH;
        if length > METADATA {
            return Err(Error::invalid(format!(
                "the metadata has {length} bytes with `{mark}`, which is added, and S3 takes \
                 {METADATA}; keep it in an object of its own"
            )));
        }
        Ok(())
    }

    /// The type of the content, where the caller said none: by the key's extension, else by the
    /// local file's.
    pub(crate) fn with_type_of(mut self, key: &str, file: Option<&Path>) -> Self {
        let known = || {
            let file = file.and_then(|file| file.file_name()?.to_str());
            content_type::of(key).or_else(|| content_type::of(file?))
        };
        self.content_type = self.content_type.or_else(|| known().map(str::to_owned));
        self
    }

    /// The customer's own key, which goes with parts and with reads too.
    pub(crate) fn customer(&self) -> Option<&CustomerKey> {
        self.encryption.as_ref().and_then(Encryption::customer)
    }

    fn if_none_match(&self) -> Option<String> {
        matches!(self.condition, Some(Condition::Absent)).then(|| "*".to_owned())
    }

    fn if_match_etag(&self) -> Option<String> {
        match &self.condition {
            Some(Condition::Match(etag)) => Some(etag.clone()),
            _ => None,
        }
    }

    /// As the header `x-amz-tagging` wants them.
    fn tagging(&self) -> Option<String> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let pairs: Vec<_> =
            self.tags.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        (!pairs.is_empty()).then(|| pairs.join("&"))
    }
}

/// A header's value that stays one: S3 signs and keeps printable ASCII only.
fn header(what: &str, value: &str) -> Result<(), Error> {
    if value.bytes().all(|b| matches!(b, b' '..=b'~')) && value.trim() == value && !value.is_empty()
    {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the {what} is empty, has spaces around it, or holds other than printable ASCII, such as a \
         line break; encode it first"
    )))
}

fn length_of<'a>(metadata: impl Iterator<Item = (&'a String, &'a String)>) -> usize {
    metadata.map(|(name, value)| name.len() + value.len()).sum()
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in metadata {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(Error::invalid(
                "a metadata name is empty or holds other than letters, digits, `-`, `_` and `.`",
            ));
        }
        if !value.is_empty() {
            header(&format!("metadata value of `{name}`"), value)?;
        }
    }
    let length = length_of(metadata.iter());
    if length > METADATA {
        return Err(Error::invalid(format!(
            "the metadata has {length} bytes, and S3 takes {METADATA}; keep it in an object of its \
             own"
        )));
    }
    Ok(())
}

pub(crate) fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Error> {
    if tags.len() > TAGS {
        let count = tags.len();
        return Err(Error::invalid(format!("there are {count} tags, and S3 takes {TAGS}")));
    }
    for (name, value) in tags {
        if name.is_empty() || name.chars().count() > 128 || value.chars().count() > 256 {
            return Err(Error::invalid(
                "a tag's name has to have 1 to 128 characters, its value at most 256",
            ));
        }
        if name.chars().chain(value.chars()).any(char::is_control) {
            return Err(Error::invalid("a tag holds a control character, such as a line break"));
        }
    }
    Ok(())
}

/// The requests that write an object have the same setters, and no trait in common.
macro_rules! carry {
    ($options:expr, $request:expr) => {{
        let (options, request) = ($options, $request);
        let metadata = &options.metadata;
        let metadata = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
        let encryption = options.encryption.as_ref();
        let request = request
            .set_content_type(options.content_type.clone())
            .set_cache_control(options.cache_control.clone())
            .set_content_disposition(options.content_disposition.clone())
            .set_content_encoding(options.content_encoding.clone())
            .set_content_language(options.content_language.clone())
            .set_expires(options.expires.map(DateTime::from))
            .set_metadata(metadata)
            .set_tagging(options.tagging())
            .set_storage_class(options.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(encryption.and_then(Encryption::by_the_store))
            .set_ssekms_key_id(encryption.and_then(Encryption::kms_key));
        with_key!(request, options.customer())
    }};
}

impl PutOptions {
    pub(crate) fn put(&self, request: Put) -> Put {
        carry!(self, request)
            .set_if_none_match(self.if_none_match())
            .set_if_match(self.if_match_etag())
    }

    pub(crate) fn copy(&self, request: Copy) -> Copy {
        carry!(self, request)
            .set_if_none_match(self.if_none_match())
            .set_if_match(self.if_match_etag())
    }

    /// The start of an upload in parts. Its condition goes with [`Self::complete`], the customer's
    /// key with each part too.
    pub(crate) fn create(&self, request: Create) -> Create {
        carry!(self, request)
    }

    pub(crate) fn complete(&self, request: Complete) -> Complete {
        let request = with_key!(request, self.customer());
        request.set_if_none_match(self.if_none_match()).set_if_match(self.if_match_etag())
    }
}

/// The setters of [`PutOptions`] on a builder that has them in its field `options`.
macro_rules! put_options {
    ($builder:ident) => {
        impl $builder {
            /// All options at once, in place of those set so far.
            pub fn options(mut self, options: $crate::PutOptions) -> Self {
                self.options = options;
                self
            }

            /// See [`PutOptions::content_type`](crate::PutOptions::content_type).
            pub fn content_type(mut self, value: impl Into<String>) -> Self {
                self.options = self.options.content_type(value);
                self
            }

            /// See [`PutOptions::cache_control`](crate::PutOptions::cache_control).
            pub fn cache_control(mut self, value: impl Into<String>) -> Self {
                self.options = self.options.cache_control(value);
                self
            }

            /// See [`PutOptions::content_disposition`](crate::PutOptions::content_disposition).
            pub fn content_disposition(mut self, value: impl Into<String>) -> Self {
                self.options = self.options.content_disposition(value);
                self
            }

            /// See [`PutOptions::content_encoding`](crate::PutOptions::content_encoding).
            pub fn content_encoding(mut self, value: impl Into<String>) -> Self {
                self.options = self.options.content_encoding(value);
                self
            }

            /// See [`PutOptions::content_language`](crate::PutOptions::content_language).
            pub fn content_language(mut self, value: impl Into<String>) -> Self {
                self.options = self.options.content_language(value);
                self
            }

            /// See [`PutOptions::expires`](crate::PutOptions::expires).
            pub fn expires(mut self, when: std::time::SystemTime) -> Self {
                self.options = self.options.expires(when);
                self
            }

            /// See [`PutOptions::metadata`](crate::PutOptions::metadata).
            pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
                self.options = self.options.metadata(name, value);
                self
            }

            /// See [`PutOptions::tag`](crate::PutOptions::tag).
            pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
                self.options = self.options.tag(name, value);
                self
            }

            /// See [`PutOptions::storage_class`](crate::PutOptions::storage_class).
            pub fn storage_class(mut self, class: impl Into<String>) -> Self {
                self.options = self.options.storage_class(class);
                self
            }

            /// See [`PutOptions::encryption`](crate::PutOptions::encryption).
            pub fn encryption(mut self, encryption: $crate::Encryption) -> Self {
                self.options = self.options.encryption(encryption);
                self
            }

            /// See [`PutOptions::if_absent`](crate::PutOptions::if_absent).
            pub fn if_absent(mut self) -> Self {
                self.options = self.options.if_absent();
                self
            }

            /// See [`PutOptions::if_match`](crate::PutOptions::if_match).
            pub fn if_match(mut self, etag: impl Into<String>) -> Self {
                self.options = self.options.if_match(etag);
                self
            }
        }
    };
}
pub(crate) use put_options;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_s3_would_refuse_is_refused_before_it_is_sent() {
        let new = PutOptions::new;
        let many = (0..11).fold(new(), |options, n| options.tag(format!("{n}"), ""));
        for (bad, words) in [
            (new().content_type("text/plain\r\nx-evil: 1"), "content type"),
            (new().cache_control(""), "cache control"),
            (new().metadata("a b", "v"), "metadata name"),
            (new().metadata("name", "line\nbreak"), "metadata value of `name`"),
            (new().metadata("name", "naïve"), "printable ASCII"),
            (new().metadata("name", "v".repeat(3_000)), "3004 bytes"),
            (new().tag("", "v"), "1 to 128"),
            (new().tag("n", "line\nbreak"), "control character"),
            (many, "11 tags"),
            (new().if_match("\"a\"\n"), "ETag"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
            assert!(!error.contains("evil") && !error.contains("break\""), "{error}");
        }
        let good = new().metadata("x-y_z.1", "").metadata("n", "a b").tag("größe", "1 & 2");
        good.check().unwrap();
        assert_eq!(good.tagging().unwrap(), "gr%C3%B6%C3%9Fe=1%20%26%202");
    }

    #[test]
    fn a_type_that_was_given_stays() {
        let file = Path::new("report.csv");
        let of = |options: PutOptions, key| options.with_type_of(key, Some(file)).content_type;
        assert_eq!(of(PutOptions::new(), "key").unwrap(), "text/csv");
        assert_eq!(of(PutOptions::new(), "key.json").unwrap(), "application/json");
        assert_eq!(of(PutOptions::new().content_type("a/b"), "key.json").unwrap(), "a/b");
        assert_eq!(PutOptions::new().with_type_of("key", None).content_type, None);
    }
}
