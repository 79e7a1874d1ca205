//! The single door to the policy, and the names of what goes through it.

use crate::{S3Client, S3Failure};
use aws_sdk_s3::Client;
use mainstay_policy::{CallError, Effect, Error, Idempotency, Operation, Policy};
use std::time::Duration;

/// Everything here may be sent twice: S3 writes whole objects. A repeated `create_upload` leaves an
/// upload without parts, which holds no data, and a repeated completion is looked into afterwards.
const fn safe(name: &'static str) -> Operation {
    Operation::new(name, Idempotency::Safe)
}

pub(crate) const PUT: Operation = safe("put");
pub(crate) const GET: Operation = safe("get");
pub(crate) const DELETE: Operation = safe("delete");
pub(crate) const HEAD: Operation = safe("head");
pub(crate) const LIST: Operation = safe("list");
pub(crate) const UPLOAD: Operation = safe("upload_file");
pub(crate) const CREATE_UPLOAD: Operation = safe("create_upload");
pub(crate) const UPLOAD_PART: Operation = safe("upload_part");
pub(crate) const COMPLETE_UPLOAD: Operation = safe("complete_upload");
pub(crate) const ABORT_UPLOAD: Operation = safe("abort_upload");
pub(crate) const DOWNLOAD: Operation = safe("download_file");

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

impl<'a> Target<'a> {
    /// # Errors
    /// An empty name, which would address something else.
    pub(crate) fn bucket(bucket: &'a str) -> Result<Self, Error> {
        if bucket.is_empty() {
            return Err(Error::invalid("the bucket's name is empty; give the name of a bucket"));
        }
        Ok(Self { bucket, key: None })
    }

    pub(crate) fn object(bucket: &'a str, key: &'a str) -> Result<Self, Error> {
        if key.is_empty() {
            return Err(Error::invalid("the object's key is empty; give the key of an object"));
        }
        Ok(Self { key: Some(key), ..Self::bucket(bucket)? })
    }
}

impl S3Client {
    /// Runs an operation that moves about `length` bytes; the closure gets the number of the
    /// attempt too.
    pub(crate) async fn call<T, F, Fut>(
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
        let sdk = self.sdk()?;
        let policy = self.policy_for(length);
        let end = policy.run(operation, |a| attempt(sdk.clone(), a.number())).await;
        end.map_err(|error| {
            let error = error.map(|e| e.about(target.bucket, target.key.is_some()));
            Error::from_call(policy.name(), operation.name(), error)
        })
    }

    /// A failure of this machine in the middle of an operation.
    pub(crate) fn local(&self, operation: &Operation, failure: S3Failure) -> Error {
        let (attempts, elapsed, effect) = (0, Duration::ZERO, Effect::Permanent);
        let error = CallError::Backend { attempts, elapsed, effect, error: failure };
        Error::from_call(self.policy().name(), operation.name(), error)
    }

    /// The same dependency with more time for many bytes; a deadline set by the user stays.
    fn policy_for(&self, length: u64) -> Policy {
        let policy = self.policy();
        let Some(timeout) = policy.timeout().filter(|_| length > SMALL) else {
            return policy.clone();
        };
        let timeout = timeout.saturating_add(Duration::from_secs(length / PER_SECOND));
        policy.with_timeout(timeout)
    }
}
