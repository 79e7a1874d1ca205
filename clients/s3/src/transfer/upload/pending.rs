//! An upload in parts that is aborted unless it was completed.

use crate::{
    CustomerKey, S3Client, S3Failure,
    call::{ABORT_UPLOAD, CREATE_UPLOAD, LIST_UPLOADS, Target, fits_xml},
    list::decoded,
};
use aws_sdk_s3::{
    Client,
    types::{EncodingType, MultipartUpload},
};
use mainstay_policy::{Classify, Effect, Error};
use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, SystemTime},
};
use tokio::{runtime::Handle, task::JoinHandle};

const ABORT_LIMIT: Duration = Duration::from_secs(30);
/// How far the store's clock may be from ours for an upload without an owner to be ours.
const SKEW: Duration = Duration::from_secs(2);
/// A creation may still be on its way when its caller is gone: so long after the first look is a second.
const LATE: Duration = Duration::from_secs(1);

pub(crate) struct Pending {
    client: S3Client,
    bucket: String,
    key: String,
    id: Option<String>,
    /// When the upload was first asked for, while an answer may have been lost: there may be one whose
    /// name we do not know.
    asked: Option<SystemTime>,
    /// It is to be gone on with later.
    keep: bool,
    /// The caller's key, with which its parts are listed.
    customer: Option<CustomerKey>,
    runtime: Handle,
}

impl Pending {
    pub(crate) fn new(
        client: &S3Client,
        target: Target<'_>,
        keep: bool,
        customer: Option<&CustomerKey>,
    ) -> Self {
        Self {
            client: client.clone(),
            bucket: target.bucket.to_owned(),
            key: target.key.unwrap_or_default().to_owned(),
            id: None,
            asked: None,
            keep,
            customer: customer.cloned(),
            runtime: Handle::current(),
        }
    }

    /// Creates the upload; an answer that is lost leaves one whose name we do not know.
    pub(crate) async fn create<T, F, Fut>(
        &mut self,
        target: Target<'_>,
        mut create: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Client, u32) -> Fut,
        Fut: Future<Output = Result<T, S3Failure>>,
    {
        if !fits_xml(&self.key) {
            return Err(Error::invalid(
                "the object's key holds a control character, which the store's XML about an object in \
                 parts cannot; give another key, or for a file a part_size() of over half its length",
            ));
        }
        // Attempts whose answer was lost, or not waited for.
        let lost = &AtomicU32::new(0);
        self.asked = Some(SystemTime::now());
        let created = self.client.call(&CREATE_UPLOAD, target, 0, |sdk, attempt| {
            let create = create(sdk, attempt);
            async move {
                lost.fetch_add(1, Relaxed);
                let created = create.await;
                if !created.as_ref().is_err_and(|e| e.classify().effect == Effect::Unknown) {
                    lost.fetch_sub(1, Relaxed);
                }
                created
            }
        });
        let created = created.await;
        if lost.load(Relaxed) == 0 {
            self.asked = None;
        }
        created
    }

    pub(crate) fn begun(&mut self, id: &str) {
        self.id = Some(id.to_owned());
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.keep
    }

    /// It is aborted unless completed, whatever was wanted before.
    pub(crate) fn leave_nothing(&mut self) {
        self.keep = false;
    }

    /// Nothing is left to abort but what a lost answer may have left.
    pub(crate) fn completed(&mut self) {
        self.id = None;
        self.leave_nothing();
        let _ = self.abort();
    }

    /// Starts the abort, which bounds itself: nobody need wait for it.
    pub(crate) fn abort(&mut self) -> Option<JoinHandle<()>> {
        let (id, asked) = (self.id.take(), self.asked.take());
        if self.keep || (id.is_none() && asked.is_none()) {
            return None;
        }
        let (client, bucket, key) = (self.client.clone(), self.bucket.clone(), self.key.clone());
        let customer = self.customer.clone();
        Some(self.runtime.spawn(async move {
            let target = Target { bucket: &bucket, key: Some(&key) };
            let abort = async {
                if let Some(id) = id {
                    patient(|| abort(&client, &bucket, &key, &id)).await?;
                }
                match asked {
                    Some(asked) => abort_nameless(&client, target, asked, customer.as_ref()).await,
                    None => Ok(()),
                }
            };
            bounded(&client, &bucket, abort).await;
            let Some(asked) = asked else { return };
            // Nobody waits for this one.
            tokio::spawn(async move {
                tokio::time::sleep(LATE).await;
                let target = Target { bucket: &bucket, key: Some(&key) };
                let abort = abort_nameless(&client, target, asked, customer.as_ref());
                bounded(&client, &bucket, abort).await;
            });
        }))
    }
}

async fn bounded(client: &S3Client, bucket: &str, abort: impl Future<Output = Result<(), Error>>) {
    if !matches!(tokio::time::timeout(ABORT_LIMIT, abort).await, Ok(Ok(()))) {
        tracing::warn!(
            mainstay.policy.name = client.policy().name(),
            aws.s3.bucket = bucket,
            "an unfinished upload could not be aborted; its parts hold storage"
        );
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = self.abort();
    }
}

/// Aborts one upload; one that is gone is no error.
pub(crate) async fn abort(
    client: &S3Client,
    bucket: &str,
    key: &str,
    id: &str,
) -> Result<(), Error> {
    let target = Target { bucket, key: Some(key) };
    let aborted = client.call(&ABORT_UPLOAD, target, 0, |sdk, attempt| {
        let abort = sdk.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send();
        async move {
            match abort.await.map_err(|e| S3Failure::sdk(e, attempt)) {
                Err(e) if e.code() != Some("NoSuchUpload") => Err(e),
                _ => Ok(()),
            }
        }
    });
    aborted.await
}

/// What failed the upload may have opened the breaker: comes back when it lets a probe in, where nobody waits.
async fn patient<T, Fut>(mut send: impl FnMut() -> Fut) -> Result<T, Error>
where
    Fut: Future<Output = Result<T, Error>>,
{
    match send().await {
        Err(e) if e.is_rejected() => {
            tokio::time::sleep(e.retry_after().unwrap_or_default()).await;
            send().await
        }
        end => end,
    }
}

/// Aborts what was created for this key since then and holds nothing: an upload whose name was in an answer
/// that was lost.
async fn abort_nameless(
    client: &S3Client,
    target: Target<'_>,
    since: SystemTime,
    customer: Option<&CustomerKey>,
) -> Result<(), Error> {
    let (bucket, key) = (target.bucket, target.key.unwrap_or_default());
    let since = since.checked_sub(SKEW).unwrap_or(since);
    let uploads = patient(|| list(client, bucket, key)).await?;
    for upload in uploads.into_iter().filter(|upload| upload.key() == Some(key)) {
        let initiated = upload.initiated().and_then(|t| SystemTime::try_from(*t).ok());
        let (Some(initiated), Some(id)) = (initiated, upload.upload_id()) else { continue };
        if (since..=SystemTime::now() + SKEW).contains(&initiated)
            && super::resume::parts(client, target, id, customer).await?.parts.is_empty()
        {
            patient(|| abort(client, bucket, key, id)).await?;
        }
    }
    Ok(())
}

/// All unfinished uploads to keys that begin so.
pub(crate) async fn list(
    client: &S3Client,
    bucket: &str,
    prefix: &str,
) -> Result<Vec<MultipartUpload>, Error> {
    let target = Target::bucket(bucket)?;
    let mut uploads = Vec::new();
    let (mut next_key, mut next_id) = (None, None);
    loop {
        let page = client.call(&LIST_UPLOADS, target, 0, |sdk, attempt| {
            let page = sdk
                .list_multipart_uploads()
                .bucket(bucket)
                .prefix(prefix)
                .encoding_type(EncodingType::Url)
                .set_key_marker(next_key.clone())
                .set_upload_id_marker(next_id.clone())
                .send();
            async move { page.await.map_err(|e| S3Failure::sdk(e, attempt)) }
        });
        let page = page.await?;
        let more = page.is_truncated() == Some(true);
        let encoded = page.encoding_type == Some(EncodingType::Url);
        let plain = |text: String| if encoded { decoded(&text) } else { text };
        let next = (page.next_key_marker.map(plain), page.next_upload_id_marker);
        uploads.extend(page.uploads.into_iter().flatten().map(|mut upload| {
            upload.key = upload.key.map(plain);
            upload
        }));
        // The same marker again would go round for ever.
        if !more || next.0.is_none() || next == (next_key.clone(), next_id.clone()) {
            return Ok(uploads);
        }
        (next_key, next_id) = next;
    }
}
