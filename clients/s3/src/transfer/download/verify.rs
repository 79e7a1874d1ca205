//! What the store says of the whole object, against the ranges that came.

use super::{Job, range::Version};
use crate::{
    Checksums, S3Failure,
    call::{DOWNLOAD, HEAD},
    checksum::{Sum, Told},
    encryption::with_key,
    get::length,
    transfer::part::{self, Part},
};
use aws_sdk_s3::types::ChecksumMode;
use mainstay_policy::Error;
use std::sync::Arc;

/// What HEAD says.
pub(crate) struct Head {
    pub(crate) told: Option<Told>,
    length: u64,
}

impl Job<'_> {
    /// Asks for the object's checksum, and whether it is still that version; for a part, for its length.
    pub(super) async fn ask(&self, part: Option<i32>) -> Result<Head, Error> {
        let checked = self.client().checksums() == Checksums::On;
        let etag = self.version.as_ref().and_then(|version| version.etag.clone());
        let customer = self.download.customer.as_ref();
        let head = self.client().call(&HEAD, self.target, 0, |sdk, attempt| {
            let head = with_key!(sdk.head_object(), customer)
                .bucket(self.target.bucket)
                .key(self.target.key.unwrap_or_default())
                .set_if_match(etag.clone())
                .set_part_number(part)
                .set_checksum_mode(checked.then_some(ChecksumMode::Enabled))
                .send();
            async move { head.await.map_err(|e| S3Failure::sdk(e, attempt)) }
        });
        let head = head.await?;
        let length = length(head.content_length).unwrap_or_default();
        let version = Version { total: length, etag: head.e_tag().map(str::to_owned) };
        if part.is_none() && self.version.as_ref() != Some(&version) {
            return Err(self.client().local(&DOWNLOAD, S3Failure::changed()));
        }
        let (crc32, c) = (head.checksum_crc32(), head.checksum_crc32_c());
        let told = Told::read(crc32, c, head.checksum_crc64_nvme()).filter(|_| checked);
        if let Some(told) = told {
            let _ = self.crc.set(told.crc);
        }
        Ok(Head { told, length })
    }

    /// # Errors
    /// Bytes that are not those the store has.
    pub(super) async fn verify(
        &self,
        told: Told,
        ranges: Vec<(Part, Option<Sum>)>,
    ) -> Result<(), Error> {
        let count = ranges.len() as u64;
        let sums = if told.parts.is_none_or(|parts| parts == count) {
            self.sums(told, ranges).await?
        } else {
            Vec::new()
        };
        if told.is_of(&sums) {
            return Ok(());
        }
        let damaged = || Err(self.client().local(&DOWNLOAD, S3Failure::other_bytes()));
        let Some(count) = told.parts else { return damaged() };
        // A checksum of checksums, of parts that are not our ranges: how long were they?
        let (first, total) = (self.ask(Some(1)).await?.length, self.total());
        if first == 0 || total.div_ceil(first) != count {
            // Of unequal lengths: that is more than a store tells in one answer.
            return Ok(());
        }
        let parts: Vec<_> = part::parts(0, total, first).map(|part| (part, None)).collect();
        let last = parts.last().map(|(part, _)| *part);
        if told.is_of(&self.sums(told, parts).await?) {
            return Ok(());
        }
        // Unequal ones may be as many as equal ones would be; then the last is of another length.
        match last {
            Some(last) if self.ask(Some(last.number)).await?.length != last.length => Ok(()),
            _ => damaged(),
        }
    }

    /// The checksums of these ranges; what was not hashed so when it came is read from the file.
    async fn sums(&self, told: Told, ranges: Vec<(Part, Option<Sum>)>) -> Result<Vec<Sum>, Error> {
        let file = Arc::clone(self.temporary.file());
        let sums = part::blocking(move || {
            let sum = |(part, sum): (Part, Option<Sum>)| match sum {
                Some(sum) if sum.crc == told.crc => Ok(sum),
                _ => part::hash(&file, part.start, part.length, told.crc),
            };
            ranges.into_iter().map(sum).collect()
        });
        sums.await.map_err(|error| self.download.failed(error))
    }
}
