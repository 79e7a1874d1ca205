//! An object's tags.

use crate::{
    S3Client, S3Failure,
    call::{Doubt, SET_TAGS, TAGS, Target},
    options::check_tags,
};
use aws_sdk_s3::types::{Tag, Tagging};
use mainstay_policy::{Error, Operation};
use std::collections::BTreeMap;

impl S3Client {
    /// The tags of an object.
    ///
    /// # Errors
    /// A missing object or bucket, or what kept them from being read.
    pub async fn tags(&self, bucket: &str, key: &str) -> Result<BTreeMap<String, String>, Error> {
        self.tags_for(&TAGS, Target::object(bucket, key)?, None).await
    }

    pub(crate) async fn tags_for(
        &self,
        operation: &Operation,
        target: Target<'_>,
        version: Option<&str>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let tags = self.call(operation, target, 0, |sdk, attempt| {
            let tags = sdk.get_object_tagging().bucket(target.bucket);
            let tags = tags.key(target.key.unwrap_or_default());
            let tags = tags.set_version_id(version.map(str::to_owned)).send();
            async move { tags.await.map_err(|e| S3Failure::sdk(e, attempt)) }
        });
        let tags = tags.await?;
        Ok(tags.tag_set.into_iter().map(|tag| (tag.key, tag.value)).collect())
    }

    /// Gives an object these tags, ten at most, in place of those it has; none take them away.
    ///
    /// # Errors
    /// Tags that S3 does not take, a missing object or bucket, or what kept them from being
    /// written.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves the old tags or the new.
    pub async fn set_tags(
        &self,
        bucket: &str,
        key: &str,
        tags: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Result<(), Error> {
        let tags = tags.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let target = Target::object(bucket, key)?;
        check_tags(&tags)?;
        let doubt = &Doubt::default();
        self.call(&SET_TAGS, target, 0, |sdk, attempt| {
            // Both fail for a missing name only, and there is one.
            let tag = |(name, value)| Tag::builder().key(name).value(value).build().ok();
            let set = Some(tags.iter().filter_map(tag).collect());
            let tagging = Tagging::builder().set_tag_set(set).build().ok();
            let send = sdk.put_object_tagging().bucket(bucket).key(key).set_tagging(tagging).send();
            async move {
                doubt.sent();
                send.await.map(drop).map_err(|e| doubt.of(S3Failure::sdk(e, attempt)))
            }
        })
        .await
    }
}
