//! What an interrupted upload left with the store. Nothing is kept here: the store lists the parts, and a part
//! that has the checksum of the file's stretch is that stretch.

use super::{
    Begun, Job, Sent,
    pending::{self, Pending},
    source::Block,
};
use crate::{
    CustomerKey, S3Client, S3Failure,
    call::{LIST_PARTS, Target},
    encryption::with_key,
    transfer::part::Part,
};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedPart, MultipartUpload, Part as Listed, StorageClass,
};
use mainstay_policy::Error;
use std::{collections::HashMap, sync::atomic::AtomicBool};
use tokio::sync::OnceCell;

/// The parts of an upload, by number.
#[derive(Default)]
pub(crate) struct Earlier {
    pub(crate) parts: HashMap<i32, Listed>,
    whole: bool,
}

impl Job<'_> {
    /// The latest unfinished upload to this key. Of a store that does not know how to list it there is none: then
    /// from the beginning, and this one cannot be gone on with either.
    pub(super) async fn find_earlier(&self, pending: &mut Pending) -> Result<Option<Begun>, Error> {
        match self.latest().await {
            Err(error) if is_no_list(&error) => {
                pending.leave_nothing();
                Ok(None)
            }
            end => end,
        }
    }

    /// The same of one that was just begun, where there was none to list the parts of.
    pub(super) async fn keep_if_listed(&self, id: &str, pending: &mut Pending) {
        let listed = parts(self.client(), self.target, id, self.customer()).await;
        if listed.is_err_and(|error| is_no_list(&error)) {
            pending.leave_nothing();
        }
    }

    async fn latest(&self) -> Result<Option<Begun>, Error> {
        let (client, key) = (self.client(), self.key());
        let uploads = pending::list(client, self.target.bucket, key).await?;
        let ours = uploads.into_iter().filter(|upload| upload.key() == Some(key));
        let ours = ours.filter(|upload| self.can_be_made_of(upload));
        let latest =
            ours.max_by_key(|upload| upload.initiated().map(|t| (t.secs(), t.subsec_nanos())));
        let Some(id) = latest.and_then(|upload| upload.upload_id) else { return Ok(None) };
        let earlier = match parts(client, self.target, &id, self.customer()).await {
            // Completed or aborted since it was listed.
            Err(error) if is_gone(&error) => return Ok(None),
            end => end?,
        };
        // Its mark is not known; what is there is told by its checksum.
        let (whole, mark) = (earlier.whole, String::new());
        Ok(Some(Begun { id, whole, mark, earlier, untold: AtomicBool::new(false) }))
    }

    /// Whether an upload, so far as the store tells, takes our parts and becomes what was asked for here.
    fn can_be_made_of(&self, upload: &MultipartUpload) -> bool {
        // Some stores write the element and nothing in it, and those without classes the usual one of all.
        let told = upload.checksum_algorithm().map(ChecksumAlgorithm::as_str);
        let sums = matches!(told, None | Some("" | "CRC32"));
        let told = upload.storage_class().map(StorageClass::as_str);
        let told = told.filter(|told| !matches!(*told, "" | "STANDARD"));
        let class = self.upload.options.storage_class.as_deref();
        sums && class.is_none_or(|class| told.is_none_or(|told| told == class))
    }

    /// The part, if it is with the store already.
    pub(super) async fn keep_part(
        &self,
        begun: &Begun,
        read: &OnceCell<Block>,
        part: Part,
    ) -> Result<Option<Sent>, Error> {
        let Some(listed) = begun.earlier.parts.get(&part.number) else { return Ok(None) };
        // How the upload is encrypted the store tells when it gets a part: it gets the last one.
        if self.encryption().is_some() && part.start + part.length == self.source.length {
            return Ok(None);
        }
        let (Some(theirs), Some(_)) = (listed.checksum_crc32(), self.source.crc) else {
            return Ok(None);
        };
        let block = self.block(read, part).await;
        let block = block.map_err(|failure| self.client().local(&crate::call::UPLOAD, failure))?;
        let same = block.sum.is_some_and(|sum| sum.crc.text(sum.value) == theirs);
        if !same || listed.size().and_then(|n| u64::try_from(n).ok()) != Some(part.length) {
            return Ok(None);
        }
        let part = CompletedPart::builder()
            .part_number(part.number)
            .set_e_tag(listed.e_tag.clone())
            .set_checksum_crc32(listed.checksum_crc32.clone())
            .build();
        Ok(Some(Sent { part, sum: block.sum }))
    }
}

/// Of a list that was asked for.
fn is_no_list(error: &Error) -> bool {
    error.downcast_ref().is_some_and(S3Failure::is_no_list)
}

fn is_gone(error: &Error) -> bool {
    let failure: Option<&S3Failure> = error.downcast_ref();
    failure.is_some_and(|failure| failure.code() == Some("NoSuchUpload"))
}

/// All parts of an upload. Of one with a key of the caller's and checksums the store wants the key.
pub(crate) async fn parts(
    client: &S3Client,
    target: Target<'_>,
    id: &str,
    customer: Option<&CustomerKey>,
) -> Result<Earlier, Error> {
    let mut earlier = Earlier::default();
    let mut next: Option<String> = None;
    loop {
        let page = client.call(&LIST_PARTS, target, 0, |sdk, attempt| {
            let list = with_key!(sdk.list_parts(), customer).bucket(target.bucket);
            let list = list.key(target.key.unwrap_or_default()).upload_id(id);
            let page = list.set_part_number_marker(next.clone()).send();
            async move { page.await.map_err(|e| S3Failure::sdk(e, attempt)) }
        });
        let page = page.await?;
        earlier.whole = page.checksum_type() == Some(&ChecksumType::FullObject);
        let more = page.is_truncated() == Some(true);
        let marker = page.next_part_number_marker;
        let listed = page.parts.into_iter().flatten();
        earlier.parts.extend(listed.filter_map(|part| Some((part.part_number?, part))));
        if !more || marker.is_none() || marker == next {
            return Ok(earlier);
        }
        next = marker;
    }
}
