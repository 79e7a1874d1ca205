//! Objects deleted, one or many.

use crate::{
    S3Client, S3Failure,
    call::{DELETE, DELETE_MANY, Doubt, Target, check_key, fits_xml},
};
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use mainstay_policy::Error;
use std::{
    mem,
    sync::{Mutex, PoisonError},
};

/// What S3 takes in one request.
const AT_ONCE: usize = 1_000;

/// What became of many deletions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "some objects may still be there: look at `failed`"]
#[non_exhaustive]
pub struct Deletion {
    /// How many objects are gone, those included that were not there.
    pub deleted: usize,
    /// Those that are still there.
    pub failed: Vec<NotDeleted>,
}

/// An object that was not deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotDeleted {
    /// Its key.
    pub key: String,
    /// The store's code, such as `AccessDenied`.
    pub code: String,
}

impl S3Client {
    /// Deletes an object; one that is not there is no error. In a bucket that keeps versions it puts
    /// a marker on top of them.
    ///
    /// # Errors
    /// A missing bucket, or what kept it from being deleted.
    ///
    /// # Cancel safety
    /// A future that is dropped may have deleted it.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        let doubt = &Doubt::default();
        self.call(&DELETE, Target::object(bucket, key)?, 0, |sdk, attempt| {
            let delete = sdk.delete_object().bucket(bucket).key(key).send();
            async move {
                doubt.sent();
                delete.await.map(drop).map_err(|e| doubt.of(S3Failure::sdk(e, attempt)))
            }
        })
        .await
    }

    /// Deletes many objects, 1,000 in a request; those that are not there count as deleted. A key with a
    /// control character that XML cannot hold is a request of its own.
    ///
    /// What the store says of single keys is in the result: those it could not delete for the
    /// moment are asked for again, the others' codes are reported.
    ///
    /// # Errors
    /// A missing bucket, a key that no object can have (before anything is deleted), or what kept a
    /// whole request from being answered: some objects may be gone by then, and it is safe to ask
    /// for all of them again.
    ///
    /// # Cancel safety
    /// A future that is dropped may have deleted any of them.
    pub async fn delete_many(
        &self,
        bucket: &str,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Deletion, Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        let target = Target::bucket(bucket)?;
        keys.iter().try_for_each(|key| check_key(key))?;
        let mut end = Deletion::default();
        let (keys, alone): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| fits_xml(key));
        for batch in keys.chunks(AT_ONCE) {
            let failed = self.delete_batch(target, batch).await?;
            end.deleted += batch.len() - failed.len();
            end.failed.extend(failed);
        }
        for key in alone {
            match self.delete(bucket, &key).await {
                Ok(()) => end.deleted += 1,
                Err(error) => match error.downcast_ref().filter(|e: &&S3Failure| e.is_denied()) {
                    Some(denied) => {
                        let code = denied.code().unwrap_or_default().to_owned();
                        end.failed.push(NotDeleted { key, code });
                    }
                    None => return Err(error),
                },
            }
        }
        Ok(end)
    }

    async fn delete_batch(
        &self,
        target: Target<'_>,
        keys: &[String],
    ) -> Result<Vec<NotDeleted>, Error> {
        /// What is left to do, and what will not be done.
        struct Left {
            keys: Vec<String>,
            again: Vec<NotDeleted>,
            failed: Vec<NotDeleted>,
        }
        let left = Mutex::new(Left { keys: keys.to_vec(), again: Vec::new(), failed: Vec::new() });
        let lock = || left.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self
            .call(&DELETE_MANY, target, 0, |sdk, attempt| {
                let objects = lock().keys.iter().filter_map(identifier).collect();
                let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build();
                let lock = &lock;
                async move {
                    let delete = delete.map_err(|_| S3Failure::garbled())?;
                    let send = sdk.delete_objects().bucket(target.bucket).delete(delete).send();
                    let answer = send.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                    let mut left = lock();
                    let sent = mem::take(&mut left.keys);
                    left.again.clear();
                    let mut worst = None;
                    for error in answer.errors.unwrap_or_default() {
                        let (key, code) =
                            (error.key.unwrap_or_default(), error.code.unwrap_or_default());
                        if !sent.contains(&key) {
                            continue;
                        }
                        let failure = S3Failure::of_a_key(&code, attempt);
                        let told = NotDeleted { key, code };
                        if failure.is_repeatable() {
                            left.keys.push(told.key.clone());
                            left.again.push(told);
                            worst = Some(failure);
                        } else {
                            left.failed.push(told);
                        }
                    }
                    worst.map_or(Ok(()), Err)
                }
            })
            .await;
        let Left { again, mut failed, .. } =
            left.into_inner().unwrap_or_else(PoisonError::into_inner);
        match end {
            Ok(()) => Ok(failed),
            // The store answered to the last, and some keys could still not be deleted.
            Err(e) if e.downcast_ref().is_some_and(S3Failure::is_of_a_key) => {
                failed.extend(again);
                Ok(failed)
            }
            Err(error) => Err(error),
        }
    }
}

/// `None` for a key that is missing, which none is.
fn identifier(key: &String) -> Option<ObjectIdentifier> {
    ObjectIdentifier::builder().key(key).build().ok()
}
