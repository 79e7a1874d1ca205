//! The single door to the policy, and the names of what goes through it.

use crate::{S3Client, S3Failure};
use aws_sdk_s3::Client;
use mainstay_policy::{CallError, Decider, Effect, Error, Idempotency, Operation, Policy};
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Everything here may be sent twice, though not at once: S3 writes whole objects. A repeated `create_upload` leaves an
/// upload without parts, which holds no data, and a repeated completion is looked into afterwards.
const fn safe(name: &'static str) -> Operation {
    Operation::new(name, Idempotency::Safe)
}

pub(crate) const PUT: Operation = safe("put");
pub(crate) const GET: Operation = Operation::read("get");
pub(crate) const DELETE: Operation = safe("delete");
pub(crate) const HEAD: Operation = Operation::read("head");
/// At what a write in doubt has done, which its caller tells.
pub(crate) const LOOK: Operation = HEAD.told_by_client();
pub(crate) const LIST: Operation = Operation::read("list");
pub(crate) const COPY: Operation = safe("copy");
// What a copy wants to know of its source first.
pub(crate) const COPY_SOURCE: Operation = Operation::read("copy_source").told_by_client();
pub(crate) const COPY_TAGS: Operation = Operation::read("copy_tags").told_by_client();
pub(crate) const COPY_PART: Operation = safe("copy_part").told_by_client();
pub(crate) const DELETE_MANY: Operation = safe("delete_many");
pub(crate) const TAGS: Operation = Operation::read("tags");
pub(crate) const SET_TAGS: Operation = safe("set_tags");
pub(crate) const PRESIGN: Operation = safe("presign");
// What of an upload is unknown is told when all of it has ended: a completion is looked into first.
pub(crate) const UPLOAD: Operation = safe("upload_file").told_by_client();
pub(crate) const CREATE_UPLOAD: Operation = safe("create_upload").told_by_client();
pub(crate) const UPLOAD_PART: Operation = safe("upload_part").told_by_client();
pub(crate) const COMPLETE_UPLOAD: Operation = safe("complete_upload").told_by_client();
pub(crate) const ABORT_UPLOAD: Operation = safe("abort_upload");
pub(crate) const LIST_UPLOADS: Operation = Operation::read("list_uploads").told_by_client();
pub(crate) const LIST_PARTS: Operation = Operation::read("list_parts").told_by_client();
pub(crate) const DOWNLOAD: Operation = safe("download_file");

/// These change no object, whatever came of them: only a completion does.
const ASIDE: [Operation; 7] =
    [CREATE_UPLOAD, UPLOAD_PART, COPY_SOURCE, COPY_TAGS, COPY_PART, LIST_UPLOADS, LIST_PARTS];

/// Up to this many bytes fit into the plain attempt timeout.
const SMALL: u64 = 1024 * 1024;
/// More get a second longer for each of these: the slowest link a transfer may have.
const PER_SECOND: u64 = 256 * 1024;

/// What a call is about, for its error.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: Option<&'a str>,
}

/// S3's own limit; most stores have it too.
const LONGEST_KEY: usize = 1024;
/// Names of old are longer than the 63 characters of today.
const LONGEST_BUCKET: usize = 255;

impl<'a> Target<'a> {
    /// # Errors
    /// A name that no bucket has.
    pub(crate) fn bucket(bucket: &'a str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Err(Error::invalid(format!("the bucket's name {why}; give the name of a bucket")))
        };
        // An access point's ARN stands for a bucket.
        let allowed =
            |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b) || b":/".contains(&b);
        match bucket {
            "" => refuse("is empty"),
            "." | ".." => refuse("is a path"),
            _ if !bucket.bytes().all(allowed) => {
                refuse("holds other than letters, digits, `-`, `_` and `.`")
            }
            _ if bucket.contains([':', '/']) && !bucket.starts_with("arn:") => {
                refuse("holds `/` or `:`, and is no ARN")
            }
            _ if bucket.len() > LONGEST_BUCKET && !bucket.starts_with("arn:") => {
                refuse(&format!("has {} characters, and S3 takes 63", bucket.len()))
            }
            _ => Ok(Self { bucket, key: None }),
        }
    }

    /// # Errors
    /// A name that no bucket has, or a key that no object can have.
    pub(crate) fn object(bucket: &'a str, key: &'a str) -> Result<Self, Error> {
        let target = Self { key: Some(key), ..Self::bucket(bucket)? };
        check_key(key)?;
        Ok(target)
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::invalid("the object's key is empty; give the key of an object"));
    }
    if key.len() > LONGEST_KEY {
        return Err(Error::invalid(format!(
            "the object's key has {} bytes, and S3 takes {LONGEST_KEY}; give a shorter one",
            key.len()
        )));
    }
    Ok(())
}

/// Whether XML 1.0 can hold all of the key. Most requests need no XML, and listings are encoded.
pub(crate) fn fits_xml(key: &str) -> bool {
    let fits = |c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    key.chars().all(fits)
}

impl S3Client {
    /// Runs an operation that moves about `length` bytes; the closure gets the number of the
    /// attempt too.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        operation: &Operation,
        target: Target<'_>,
        length: u64,
        attempt: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Client, u32) -> Fut,
        Fut: Future<Output = Result<T, S3Failure>>,
    {
        self.tell(self.call_untold(operation, target, length, attempt).await)
    }

    /// What an error leaves unknown is told to the policy around it, which keeps it whatever comes later.
    pub(crate) fn tell<T>(&self, end: Result<T, Error>) -> Result<T, Error> {
        end.inspect_err(|error| {
            if error.is_outcome_unknown() {
                self.policy().tell_unknown();
            }
        })
    }

    /// [`Self::call`] of a write that its caller looks into when it is in doubt, and [tells](Self::tell) then.
    pub(crate) async fn call_untold<T, F, Fut>(
        &self,
        operation: &Operation,
        target: Target<'_>,
        length: u64,
        mut attempt: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Client, u32) -> Fut,
        Fut: Future<Output = Result<T, S3Failure>>,
    {
        let link = self.link()?;
        let policy = self.policy_for(length);
        let credentials = link.credentials.as_ref();
        // New credentials are asked for once: those that are refused again are all there are.
        let renewed = &AtomicBool::new(false);
        let run = policy.run(operation, |a| {
            // The SDK's future takes 20 KB, and what holds it is copied on its way, in debug builds often.
            let work = Box::pin(attempt(link.sdk.clone(), a.number()));
            async move {
                // Before the clock is read: those of this attempt are not newer than it. Why there
                // are none the SDK is told, too.
                if let Some(credentials) = credentials {
                    let _ = credentials.load().await;
                }
                let began = Instant::now();
                let end = work.await;
                match (end, credentials) {
                    (Err(e), Some(credentials))
                        if e.may_be_expired() && !renewed.swap(true, Relaxed) =>
                    {
                        credentials.forget(began);
                        Err(e.repeatable())
                    }
                    (end, _) => end,
                }
            }
        });
        let end = run.await;
        end.map_err(|error| {
            let mut error = error.map(|e| e.about(target.bucket, target.key.is_some()));
            let aside = ASIDE.iter().any(|aside| aside.name() == operation.name());
            match &mut error {
                CallError::Backend { effect, error, .. } if error.is_in_doubt() => {
                    *effect = Effect::Unknown;
                }
                CallError::Backend { effect, .. } | CallError::Stopped { effect, .. }
                    if aside && *effect == Effect::Unknown =>
                {
                    *effect = Effect::Transient;
                }
                _ => {}
            }
            Error::from_call(policy.name(), operation.name(), error)
        })
    }

    /// A failure of this machine in the middle of an operation.
    pub(crate) fn local(&self, operation: &Operation, failure: S3Failure) -> Error {
        let (attempts, elapsed, effect) = (0, Duration::ZERO, Effect::Permanent);
        let policy = self.policy();
        let error = match failure.out_of_time() {
            None => CallError::Backend { attempts, elapsed, effect, error: failure },
            Some(late) => {
                let effect = match late.may_have_happened {
                    true => {
                        policy.tell_unknown();
                        Effect::Unknown
                    }
                    false => Effect::NeverSent,
                };
                let (by, retry_after, last) = (Decider::Deadline, None, Some(failure));
                CallError::Stopped { by, attempts, elapsed, effect, retry_after, last }
            }
        };
        Error::from_call(policy.name(), operation.name(), error)
    }

    /// The same dependency with more time for many bytes; a deadline set by the user stays.
    pub(crate) fn policy_for(&self, length: u64) -> Policy {
        let policy = self.policy();
        let Some(timeout) = policy.timeout().filter(|_| length > SMALL) else {
            return policy.clone();
        };
        let timeout = timeout.saturating_add(Duration::from_secs(length / PER_SECOND));
        policy.with_timeout(timeout)
    }
}

/// How many attempts of a write may have done it: all that were sent, but for those that certainly did not.
/// What one may have done, the refusal of a later one does not undo.
#[derive(Default)]
pub(crate) struct Doubt(AtomicU32);

impl Doubt {
    /// An attempt begins.
    pub(crate) fn sent(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// What an attempt failed with; it says whether another one may have done it.
    pub(crate) fn of(&self, failure: S3Failure) -> S3Failure {
        let undone = u32::from(failure.is_undone());
        let in_doubt = self.0.fetch_sub(undone, Relaxed) > 1;
        if in_doubt { failure.in_doubt() } else { failure }
    }
}
