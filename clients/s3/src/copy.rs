//! An object copied inside the store.

mod parts;

use crate::{
    CustomerKey, PutOptions, S3Client, S3Failure, Written,
    call::{COPY, COPY_SOURCE, Doubt, Target},
    get::Get,
    numbers::{Direction, count_bytes, count_repeat},
    object::ObjectHead,
    options::put_options,
    transfer::part::LONGEST,
};
use aws_sdk_s3::types::{MetadataDirective, TaggingDirective};
use mainstay_policy::Error;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{fmt, pin::Pin};

/// Of a longer object, each.
const PART: u64 = 512 * 1024 * 1024;
/// The store copies faster than it is sent to: so many times as much in the same time.
const FASTER: u64 = 64;
/// What stays as it is in a copy's source.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A copy to be made; see [`S3Client::copy`].
#[must_use = "an object is copied when this is awaited"]
pub struct Copy {
    source: Get,
    bucket: String,
    key: String,
    options: PutOptions,
    /// What is copied in one request, and in each of several.
    at_once: u64,
    part: u64,
}

put_options!(Copy);

impl fmt::Debug for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copy")
            .field("from", &self.source.bucket)
            .field("to", &self.bucket)
            .finish_non_exhaustive()
    }
}

impl S3Client {
    /// Copies an object inside the store: from a bucket and key to a bucket and key.
    ///
    /// Type, metadata and tags go along; those that are set here replace them, each on its own. So a
    /// copy onto itself changes an object's metadata. The copy is of the version that was there
    /// when it began. An object over 5 GiB is copied in parts, each repeated on its own, and carries the
    /// metadata `mainstay-upload` from then on.
    ///
    /// # Errors
    /// A missing object or bucket, a condition on the target that does not
    /// hold or a source that was replaced meanwhile
    /// ([`is_precondition_failed`](S3Failure::is_precondition_failed)), or what kept it from being
    /// copied. The target is then as it was, unless the [outcome is
    /// unknown](Error::is_outcome_unknown).
    ///
    /// # Cancel safety
    /// A future that is dropped leaves the target as it was or copied, never in part. One in parts is
    /// aborted.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// s3.copy(("bucket", "new/a.csv"), ("bucket", "done/a.csv")).await?;
    /// s3.copy(("bucket", "a.csv"), ("bucket", "a.csv")).metadata("checked", "yes").await?;
    /// # Ok(()) }
    /// ```
    pub fn copy(&self, from: (&str, &str), to: (&str, &str)) -> Copy {
        Copy {
            source: self.get(from.0, from.1),
            bucket: to.0.to_owned(),
            key: to.1.to_owned(),
            options: PutOptions::new(),
            at_once: LONGEST,
            part: PART,
        }
    }
}

impl Copy {
    /// This version of the source, in a bucket that keeps versions.
    pub fn source_version_id(mut self, id: impl Into<String>) -> Self {
        self.source = self.source.version_id(id);
        self
    }

    /// The key that the source was [encrypted](crate::Encryption::Customer) with.
    pub fn source_customer_key(mut self, key: CustomerKey) -> Self {
        self.source = self.source.customer_key(key);
        self
    }

    async fn run(self) -> Result<Written, Error> {
        let target = Target::object(&self.bucket, &self.key)?;
        self.options.check()?;
        let client = &self.source.client;
        let head = self.source.head_for(&COPY_SOURCE).await?;
        if head.size > self.at_once {
            return self.in_parts(target, &head).await;
        }
        let replaces = self.options.replaces_head();
        let options = if replaces { self.options.or_of(&head) } else { self.options };
        let source = source(&self.source);
        let doubt = &Doubt::default();
        let copied = client
            .call(&COPY, target, head.size / FASTER, |sdk, attempt| {
                count_repeat(Direction::Copy, attempt);
                let key = self.source.customer.as_ref();
                let copy = options
                    .copy(sdk.copy_object())
                    .bucket(&self.bucket)
                    .key(&self.key)
                    .copy_source(&source)
                    .set_copy_source_if_match(head.etag.clone())
                    .set_copy_source_sse_customer_algorithm(key.map(CustomerKey::algorithm))
                    .set_copy_source_sse_customer_key(key.map(CustomerKey::base64))
                    .set_copy_source_sse_customer_key_md5(key.map(CustomerKey::md5))
                    .set_metadata_directive(replaces.then_some(MetadataDirective::Replace))
                    .set_tagging_directive(
                        (!options.tags.is_empty()).then_some(TaggingDirective::Replace),
                    );
                let (send, conditional) = (copy.send(), options.condition.is_some());
                async move {
                    doubt.sent();
                    let copied = send.await.map_err(|e| {
                        doubt.of(match conditional {
                            true => S3Failure::of_write(e, attempt),
                            // Of the source.
                            false => S3Failure::sdk(e, attempt),
                        })
                    });
                    let copied = copied?;
                    let etag = copied.copy_object_result.and_then(|result| result.e_tag);
                    Ok(Written { etag, version_id: copied.version_id })
                }
            })
            .await?;
        count_bytes(Direction::Copy, head.size);
        Ok(copied)
    }
}

impl IntoFuture for Copy {
    type Output = Result<Written, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// As the header `x-amz-copy-source` wants it.
fn source(source: &Get) -> String {
    let encode = |text| utf8_percent_encode(text, ENCODED);
    let (bucket, key) = (encode(&source.bucket), encode(&source.key));
    // Below an access point the key is a part of the ARN.
    let below = if source.bucket.starts_with("arn:") { "/object" } else { "" };
    match &source.version_id {
        Some(version) => format!("{bucket}{below}/{key}?versionId={}", encode(version)),
        None => format!("{bucket}{below}/{key}"),
    }
}

impl PutOptions {
    /// Whether something is set that S3 takes over from the source as a whole or not at all.
    fn replaces_head(&self) -> bool {
        !self.metadata.is_empty()
            || self.expires.is_some()
            || [
                &self.content_type,
                &self.cache_control,
                &self.content_disposition,
                &self.content_encoding,
                &self.content_language,
            ]
            .iter()
            .any(|value| value.is_some())
    }

    /// What is not set, as the source has it.
    fn or_of(mut self, head: &ObjectHead) -> Self {
        fn or<T: Clone>(own: &mut Option<T>, of_source: &Option<T>) {
            if own.is_none() {
                own.clone_from(of_source);
            }
        }
        or(&mut self.content_type, &head.content_type);
        or(&mut self.cache_control, &head.cache_control);
        or(&mut self.content_disposition, &head.content_disposition);
        or(&mut self.content_encoding, &head.content_encoding);
        or(&mut self.content_language, &head.content_language);
        or(&mut self.expires, &head.expires);
        if self.metadata.is_empty() {
            self.metadata.clone_from(&head.metadata);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_in_a_bucket_or_below_an_access_point() {
        let s3 =
            S3Client::builder().endpoint_url("http://copy.source").credentials("key", "secret");
        let s3 = s3.build().unwrap();
        let arn = "arn:aws:s3:eu-central-1:123456789012:accesspoint/mine";
        let below = "arn%3Aaws%3As3%3Aeu-central-1%3A123456789012%3Aaccesspoint/mine/object";
        for (from, version, written) in [
            (("my.bucket", "a b/%.csv"), None, "my.bucket/a%20b/%25.csv".to_owned()),
            (("bucket", "k"), Some("v+1"), "bucket/k?versionId=v%2B1".to_owned()),
            ((arn, "a/k"), None, format!("{below}/a/k")),
            ((arn, "k"), Some("v1"), format!("{below}/k?versionId=v1")),
        ] {
            let copy = s3.copy(from, ("bucket", "to"));
            let copy = version.into_iter().fold(copy, Copy::source_version_id);
            assert_eq!(source(&copy.source), written);
        }
    }
}
