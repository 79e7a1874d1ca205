//! An object that is too long for one request: its parts are copied each on its own, and joined.

use super::{Copy, source};
use crate::{
    CustomerKey, PutOptions, S3Failure, Written,
    call::{COMPLETE_UPLOAD, COPY_PART, COPY_TAGS, Doubt, LOOK, Target},
    encryption::with_key,
    get::length,
    numbers::{Direction, count_bytes, count_part, count_repeat},
    object::ObjectHead,
    transfer::{
        part::{self, Part},
        upload::{MARK, mark, pending::Pending},
    },
};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use mainstay_policy::Error;

/// Parts at once; the store does the work.
const PARALLEL: usize = 4;

impl Copy {
    pub(super) async fn in_parts(
        &self,
        target: Target<'_>,
        head: &ObjectHead,
    ) -> Result<Written, Error> {
        let client = &self.source.client;
        // Nothing goes along by itself, as it does with a copy in one request.
        let mut options = self.options.clone().or_of(head);
        if options.tags.is_empty() {
            let from = Target::object(&self.source.bucket, &self.source.key)?;
            let version = self.source.version_id.as_deref();
            let has_no_tags =
                |e: &Error| e.downcast_ref::<S3Failure>().and_then(S3Failure::status) == Some(501);
            match client.tags_for(&COPY_TAGS, from, version).await {
                Err(e) if has_no_tags(&e) => {}
                tags => options.tags = tags?,
            }
        }
        options.check_room(MARK)?;
        let mark = mark();
        let mut pending = Pending::new(client, target, false, options.customer());
        let id = pending.create(target, |sdk, attempt| {
            let create = options.create(sdk.create_multipart_upload());
            let create = create.bucket(&self.bucket).key(&self.key).metadata(MARK, &mark).send();
            async move {
                let created = create.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                created.upload_id.ok_or_else(S3Failure::garbled)
            }
        });
        let id = id.await?;
        pending.begun(&id);
        let parts = part::parts(0, head.size, part::size_for(Some(self.part), head.size));
        let copied = parts.map(|part| self.copy_part(target, head, &options, &id, part));
        let mut copied: Vec<CompletedPart> =
            stream::iter(copied).buffer_unordered(PARALLEL).try_collect().await?;
        copied.sort_by_key(|part| part.part_number);
        let upload = CompletedMultipartUpload::builder().set_parts(Some(copied)).build();
        let doubt = &Doubt::default();
        let completed = client.call_untold(&COMPLETE_UPLOAD, target, self.part, |sdk, attempt| {
            let complete = options.complete(sdk.complete_multipart_upload());
            let complete = complete.bucket(&self.bucket).key(&self.key).upload_id(&id);
            let send = complete.multipart_upload(upload.clone()).send();
            async move {
                doubt.sent();
                let done = send.await.map_err(|e| doubt.of(S3Failure::of_write(e, attempt)))?;
                Ok(Written { etag: done.e_tag, version_id: done.version_id })
            }
        });
        let end = match completed.await {
            // A completion that went unacknowledged makes its repeat fail: look.
            Err(error) if error.is_outcome_unknown() || error.attempts() > 1 => {
                self.landed(target, &mark, head.size).await.ok_or(error)
            }
            end => end,
        };
        let written = client.tell(end)?;
        pending.completed();
        Ok(written)
    }

    async fn copy_part(
        &self,
        target: Target<'_>,
        head: &ObjectHead,
        options: &PutOptions,
        id: &str,
        part: Part,
    ) -> Result<CompletedPart, Error> {
        let (client, key) = (&self.source.client, self.source.customer.as_ref());
        let from = source(&self.source);
        let copy = client.call(&COPY_PART, target, part.length / super::FASTER, |sdk, attempt| {
            count_repeat(Direction::Copy, attempt);
            let copy = with_key!(sdk.upload_part_copy(), options.customer())
                .bucket(&self.bucket)
                .key(&self.key)
                .upload_id(id)
                .part_number(part.number)
                .copy_source(&from)
                .copy_source_range(format!("bytes={}-{}", part.start, part.start + part.length - 1))
                .set_copy_source_if_match(head.etag.clone())
                .set_copy_source_sse_customer_algorithm(key.map(CustomerKey::algorithm))
                .set_copy_source_sse_customer_key(key.map(CustomerKey::base64))
                .set_copy_source_sse_customer_key_md5(key.map(CustomerKey::md5))
                .send();
            async move {
                let copied = copy.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                copied.copy_part_result.ok_or_else(S3Failure::garbled)
            }
        });
        let copied = copy.await?;
        count_part(Direction::Copy);
        count_bytes(Direction::Copy, part.length);
        let done = CompletedPart::builder()
            .part_number(part.number)
            .set_e_tag(copied.e_tag)
            .set_checksum_crc32(copied.checksum_crc32)
            .set_checksum_crc32_c(copied.checksum_crc32_c)
            .set_checksum_crc64_nvme(copied.checksum_crc64_nvme);
        Ok(done.build())
    }

    /// What was written, if the object is the one of this copy.
    async fn landed(&self, target: Target<'_>, mark: &str, size: u64) -> Option<Written> {
        let head = self.source.client.call_untold(&LOOK, target, 0, |sdk, attempt| {
            let head = with_key!(sdk.head_object(), self.options.customer());
            let send = head.bucket(&self.bucket).key(&self.key).send();
            async move { send.await.map_err(|e| S3Failure::sdk(e, attempt)) }
        });
        let head = head.await.ok()?;
        let marked = head.metadata().and_then(|m| m.get(MARK)).is_some_and(|m| m == mark);
        (marked && length(head.content_length) == Some(size))
            .then_some(Written { etag: head.e_tag, version_id: head.version_id })
    }
}

#[cfg(test)]
mod tests {
    use crate::{S3Client, S3Failure, copy::Copy};
    use mainstay_policy::{Kind, Policy, report};
    use mainstay_test_support::{
        S3,
        s3::{Answer, BUCKET, KEY, Memory, SECRET, Sums},
    };
    use std::{
        sync::atomic::{AtomicU32, Ordering::SeqCst},
        time::Duration,
    };

    const LENGTH: usize = 700_000;

    fn bytes() -> Vec<u8> {
        (0..LENGTH as u32).map(|n| (n.wrapping_mul(n) >> 8) as u8).collect()
    }

    async fn begun() -> (S3, Memory, S3Client) {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        let s3 = S3Client::builder().endpoint_url(store.endpoint()).credentials(KEY, SECRET);
        let wait = Duration::from_millis(1);
        let s3 = s3.policy(move |policy| policy.base_delay(wait).max_delay(wait)).build().unwrap();
        let put = s3.put(BUCKET, "from", bytes()).metadata("owner", "me").tag("team", "x");
        put.content_type("text/x").await.unwrap();
        (store, memory, s3)
    }

    /// As of an object over 5 GiB, of which no test has one.
    fn long(s3: &S3Client, to: &str) -> Copy {
        let copy = s3.copy((BUCKET, "from"), (BUCKET, to));
        Copy { at_once: LENGTH as u64 - 1, part: 200_000, ..copy }
    }

    async fn none_left(memory: &Memory) {
        for _ in 0..2_000 {
            if memory.uploads() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("an upload is left");
    }

    #[tokio::test]
    async fn what_is_not_set_goes_along_and_each_part_is_repeated_alone() {
        let (store, memory, s3) = begun().await;
        let asked = AtomicU32::new(0);
        store.front(move |line| {
            match line.contains("partNumber=2") && asked.fetch_add(1, SeqCst) < 2 {
                true => Answer::Close,
                false => Answer::Pass,
            }
        });
        long(&s3, "to").await.unwrap();
        assert!(memory.object("to").unwrap() == bytes());
        assert_eq!(store.seen(|line| line.contains("partNumber=")), 4 + 2);
        let head = s3.head(BUCKET, "to").await.unwrap();
        assert_eq!(
            (head.content_type.as_deref(), head.metadata["owner"].as_str()),
            (Some("text/x"), "me")
        );
        assert_eq!(s3.tags(BUCKET, "to").await.unwrap()["team"], "x");
        assert_eq!(memory.uploads(), 0);
    }

    #[tokio::test]
    async fn a_completion_without_an_answer_is_looked_into() {
        let (store, memory, s3) = begun().await;
        store.front(|line| match line.starts_with("POST") && line.contains("uploadId=") {
            true => Answer::ApplyThenClose,
            false => Answer::Pass,
        });
        let written = long(&s3, "to").if_absent().await.unwrap();
        assert_eq!(written.etag, s3.head(BUCKET, "to").await.unwrap().etag);
        none_left(&memory).await;
    }

    #[tokio::test]
    async fn one_that_may_not_be_looked_into_has_an_unknown_outcome() {
        let (store, memory, s3) = begun().await;
        let completions = AtomicU32::new(0);
        store.front(move |line| {
            let completes = line.starts_with("POST") && line.contains("uploadId=");
            match line {
                _ if completes && completions.fetch_add(1, SeqCst) == 0 => Answer::ApplyThenClose,
                _ if line.starts_with("HEAD") && line.contains("/to") => Answer::Status(403, ""),
                _ => Answer::Pass,
            }
        });
        let around = Policy::builder(Kind::Custom, "around-a-long-copy").build().unwrap();
        let copy = || async { long(&s3, "to").await.map_err(|e| e.attempts()) };
        let error = around.call(copy).await.unwrap_err();
        assert!(error.is_outcome_unknown() && error.last() == Some(&2), "{error:?}");
        assert!(memory.object("to").unwrap() == bytes());
    }

    /// To look at the source changes nothing, and a part makes no object.
    #[tokio::test]
    async fn one_that_fails_before_its_end_has_certainly_not_happened() {
        let around = Policy::builder(Kind::Custom, "around-a-long-copy-that-fails");
        let around = around.enable_circuit_breaker(false).build().unwrap();
        for step in ["HEAD", "tagging", "partNumber=2"] {
            let (store, memory, s3) = begun().await;
            store.front(move |line| match line.contains(step) {
                true => Answer::Close,
                false => Answer::Pass,
            });
            let copy = || async { long(&s3, "to").await.map_err(|e| e.is_outcome_unknown()) };
            let error = around.call(copy).await.unwrap_err();
            assert!(
                !error.is_outcome_unknown() && error.last() == Some(&false),
                "{step}: {error:?}"
            );
            assert!(memory.object("to").is_none());
            none_left(&memory).await;
        }
    }

    #[tokio::test]
    async fn a_source_that_is_replaced_meanwhile_is_told_and_nothing_is_left() {
        let (store, memory, s3) = begun().await;
        let other = memory.clone();
        store.front(move |line| {
            if line.contains("partNumber=3") {
                other.put("from", vec![1; LENGTH]);
            }
            Answer::Pass
        });
        let error = long(&s3, "to").await.unwrap_err();
        assert!(error.downcast_ref::<S3Failure>().unwrap().is_precondition_failed(), "{error:?}");
        assert!(report(&error).to_string().contains("changed meanwhile"), "{}", report(&error));
        assert!(memory.object("to").is_none());
        none_left(&memory).await;
    }
}
