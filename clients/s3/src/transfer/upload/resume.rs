//! What an interrupted upload left with the store. Nothing is kept here: the store lists the parts, and a part
//! that has the checksum of the file's stretch is that stretch.

use super::{
    Begun, Job, Sent,
    pending::{self, Pending},
    source::Block,
};
use crate::{
    S3Client, S3Failure,
    call::{LIST_PARTS, Target},
    transfer::part::Part,
};
use aws_sdk_s3::types::{ChecksumType, CompletedPart, Part as Listed};
use mainstay_policy::Error;
use std::collections::HashMap;
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
            Err(e) if e.downcast_ref().is_some_and(S3Failure::is_no_list) => {
                pending.leave_nothing();
                Ok(None)
            }
            end => end,
        }
    }

    async fn latest(&self) -> Result<Option<Begun>, Error> {
        let (client, bucket, key) = (self.client(), self.target.bucket, self.key());
        let uploads = pending::list(client, bucket, key).await?;
        let ours = uploads.into_iter().filter(|upload| upload.key() == Some(key));
        let latest =
            ours.max_by_key(|upload| upload.initiated().map(|t| (t.secs(), t.subsec_nanos())));
        let Some(id) = latest.and_then(|upload| upload.upload_id) else { return Ok(None) };
        let earlier = parts(client, bucket, key, &id).await?;
        // Its mark is not known; what is there is told by its checksum.
        let (whole, mark) = (earlier.whole, String::new());
        Ok(Some(Begun { id, whole, mark, earlier }))
    }

    /// The part, if it is with the store already.
    pub(super) async fn keep_part(
        &self,
        begun: &Begun,
        read: &OnceCell<Block>,
        part: Part,
    ) -> Result<Option<Sent>, Error> {
        let Some(listed) = begun.earlier.parts.get(&part.number) else { return Ok(None) };
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

/// All parts of an upload.
pub(crate) async fn parts(
    client: &S3Client,
    bucket: &str,
    key: &str,
    id: &str,
) -> Result<Earlier, Error> {
    let target = Target { bucket, key: Some(key) };
    let mut earlier = Earlier::default();
    let mut next: Option<String> = None;
    loop {
        let page = client.call(&LIST_PARTS, target, 0, |sdk, attempt| {
            let list = sdk.list_parts().bucket(bucket).key(key).upload_id(id);
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
