//! URLs that carry their own signature: whoever has one may do what it says, until it expires.

use crate::{
    PutOptions, S3Client, S3Failure,
    call::{PRESIGN, Target},
    options::put_options,
};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use mainstay_policy::{CallError, Deadline, Decider, Effect, Error};
use std::{
    fmt,
    pin::Pin,
    time::{Duration, Instant},
};

/// What S3 takes.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A request that anybody may send who has it. Its `Debug` shows no signature.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Presigned {
    /// `GET` or `PUT`.
    pub method: String,
    /// The URL with its signature: a secret while it lasts.
    pub url: String,
    /// Headers that have to be sent with it, as they are.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for Presigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presigned").field("method", &self.method).finish_non_exhaustive()
    }
}

impl From<PresignedRequest> for Presigned {
    fn from(request: PresignedRequest) -> Self {
        Self {
            method: request.method().to_owned(),
            url: request.uri().to_owned(),
            headers: request.headers().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        }
    }
}

/// A presigned upload to be made; see [`S3Client::presign_put`].
#[must_use = "it is signed when this is awaited"]
pub struct PresignPut {
    client: S3Client,
    bucket: String,
    key: String,
    expires_in: Duration,
    options: PutOptions,
}

put_options!(PresignPut);

impl fmt::Debug for PresignPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresignPut").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl S3Client {
    /// A URL to read an object with, for 1 s to 7 days from now by this machine's clock.
    ///
    /// Nothing is sent but a search for credentials, and nobody checks that the object is there. The
    /// URL ends with the session of temporary credentials, whatever it says.
    ///
    /// # Errors
    /// A time out of range, no credentials or none by the deadline around it, an anonymous client.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// use std::time::Duration;
    ///
    /// let link = s3.presign_get("bucket", "report.csv", Duration::from_secs(600)).await?;
    /// println!("download it from {}", link.url);
    /// # Ok(()) }
    /// ```
    pub async fn presign_get(
        &self,
        bucket: &str,
        key: &str,
        expires_in: Duration,
    ) -> Result<Presigned, Error> {
        let target = Target::object(bucket, key)?;
        let config = self.presigning(expires_in)?;
        let get = self.sdk()?.get_object().bucket(bucket).key(key);
        let signing = async { get.presigned(config).await.map_err(|e| S3Failure::sdk(e, 1)) };
        self.signed(target, signing).await
    }

    /// A URL to write an object with, for 1 s to 7 days from now by this machine's clock.
    ///
    /// What is set here (type, metadata, conditions) has to be sent along, as
    /// [`Presigned::headers`] says. The length is not limited, and no checksum is demanded.
    ///
    /// # Errors
    /// Awaiting it: as [`S3Client::presign_get`], and options that S3 does not take.
    pub fn presign_put(&self, bucket: &str, key: &str, expires_in: Duration) -> PresignPut {
        let (client, bucket, key) = (self.clone(), bucket.to_owned(), key.to_owned());
        PresignPut { client, bucket, key, expires_in, options: PutOptions::new() }
    }

    fn presigning(&self, expires_in: Duration) -> Result<PresigningConfig, Error> {
        if self.is_anonymous() {
            return Err(Error::invalid(
                "an anonymous client has nothing to sign a URL with; give it credentials",
            ));
        }
        let valid = (Duration::from_secs(1)..=LONGEST).contains(&expires_in);
        let config = valid.then(|| PresigningConfig::expires_in(expires_in).ok()).flatten();
        config.ok_or_else(|| {
            Error::invalid(format!(
                "a presigned URL cannot expire in {expires_in:?}; give 1 s to 7 days"
            ))
        })
    }

    /// Waits for credentials until the deadline around it at most.
    async fn signed(
        &self,
        target: Target<'_>,
        signing: impl Future<Output = Result<PresignedRequest, S3Failure>> + Send,
    ) -> Result<Presigned, Error> {
        let started = Instant::now();
        let signed = match Deadline::current() {
            Some(deadline) => tokio::time::timeout(deadline.left(), signing).await,
            None => Ok(signing.await),
        };
        match signed {
            Ok(Ok(request)) => Ok(request.into()),
            Ok(Err(error)) => Err(self.local(&PRESIGN, error.about(target.bucket, true))),
            Err(_) => {
                let end = CallError::<S3Failure>::Stopped {
                    by: Decider::Deadline,
                    attempts: 0,
                    elapsed: started.elapsed(),
                    effect: Effect::NeverSent,
                    retry_after: None,
                    last: None,
                };
                Err(Error::from_call(self.policy().name(), PRESIGN.name(), end))
            }
        }
    }
}

impl IntoFuture for PresignPut {
    type Output = Result<Presigned, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let target = Target::object(&self.bucket, &self.key)?;
            self.options.check()?;
            let config = self.client.presigning(self.expires_in)?;
            let sdk = self.client.sdk()?;
            let put = self.options.put(sdk.put_object()).bucket(&self.bucket).key(&self.key);
            let signing = async { put.presigned(config).await.map_err(|e| S3Failure::sdk(e, 1)) };
            self.client.signed(target, signing).await
        })
    }
}
