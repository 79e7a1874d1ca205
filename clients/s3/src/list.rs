//! What a bucket holds.

use crate::{
    S3Client, S3Failure,
    call::{HEAD, LIST, Target},
};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use mainstay_policy::Error;
use std::time::SystemTime;

/// One object, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectSummary {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// The store's mark of this version; not a checksum.
    pub etag: Option<String>,
    /// When it was written.
    pub last_modified: Option<SystemTime>,
}

impl S3Client {
    /// Every object whose key begins with `prefix`; an empty prefix means the whole bucket.
    ///
    /// Pages of up to 1,000 are read until the end, each by its own call.
    ///
    /// # Errors
    /// A missing bucket, or what kept a page from being read.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<ObjectSummary>, Error> {
        let target = Target::bucket(bucket)?;
        let mut objects = Vec::new();
        let mut next = None;
        loop {
            let page: ListObjectsV2Output = self
                .call(&LIST, target, 0, |sdk, attempt| {
                    let page = sdk
                        .list_objects_v2()
                        .bucket(bucket)
                        .prefix(prefix)
                        .set_continuation_token(next.clone())
                        .send();
                    async move { page.await.map_err(|e| S3Failure::sdk(e, attempt)) }
                })
                .await?;
            let more = page.is_truncated() == Some(true);
            let token = page.next_continuation_token;
            objects.extend(page.contents.into_iter().flatten().map(|object| ObjectSummary {
                key: object.key.unwrap_or_default(),
                size: size(object.size),
                etag: object.e_tag,
                last_modified: object.last_modified.and_then(|t| t.try_into().ok()),
            }));
            // The same token again would go round for ever.
            if !more || token.is_none() || token == next {
                return Ok(objects);
            }
            next = token;
        }
    }

    /// Length, ETag and time of one object.
    ///
    /// # Errors
    /// A missing object or bucket (the store does not say which), or what kept it from being asked.
    pub async fn head(&self, bucket: &str, key: &str) -> Result<ObjectSummary, Error> {
        let target = Target::object(bucket, key)?;
        let head = self
            .call(&HEAD, target, 0, |sdk, attempt| {
                let head = sdk.head_object().bucket(bucket).key(key).send();
                async move { head.await.map_err(|e| S3Failure::sdk(e, attempt)) }
            })
            .await?;
        Ok(ObjectSummary {
            key: key.to_owned(),
            size: size(head.content_length),
            etag: head.e_tag,
            last_modified: head.last_modified.and_then(|t| t.try_into().ok()),
        })
    }

    /// Whether there is such an object; `false` for a missing bucket too.
    ///
    /// # Errors
    /// As [`S3Client::head`], a missing object apart.
    pub async fn exists(&self, bucket: &str, key: &str) -> Result<bool, Error> {
        match self.head(bucket, key).await {
            Ok(_) => Ok(true),
            Err(error) if error.downcast_ref().is_some_and(S3Failure::is_not_found) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn size(bytes: Option<i64>) -> u64 {
    bytes.and_then(|n| n.try_into().ok()).unwrap_or_default()
}
