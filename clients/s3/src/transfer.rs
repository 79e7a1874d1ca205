//! Files to objects and back.
//!
//! A part is a call of its own through the policy: its attempts, its timeout by its length, its place in the
//! [`gate`], which parts that come in one answer share. Everything else (what is asked for, in which order,
//! what makes it whole) is in `upload` and `download`.

mod buffers;
pub(crate) mod cleanup;
pub(crate) mod download;
pub(crate) mod gate;
pub(crate) mod part;
pub(crate) mod progress;
pub(crate) mod tuning;
pub(crate) mod upload;

use crate::{
    S3Client, S3Failure,
    call::Target,
    numbers::{Direction, count_part, count_repeat},
};
use aws_sdk_s3::Client;
use mainstay_policy::{Error, Operation};
pub(crate) use part::OutOfTime;

impl S3Client {
    /// Runs the call that moves one part, when there is a place for it. Of a write in doubt its caller
    /// [tells](Self::tell).
    pub(crate) async fn move_part<T, F, Fut>(
        &self,
        direction: Direction,
        operation: &Operation,
        target: Target<'_>,
        length: u64,
        attempt: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Client, u32) -> Fut,
        Fut: Future<Output = Result<T, S3Failure>>,
    {
        let _place = self.gate().enter().await;
        self.move_in_place(direction, operation, target, length, attempt).await
    }

    /// Runs the call that moves one part, which has a place.
    pub(crate) async fn move_in_place<T, F, Fut>(
        &self,
        direction: Direction,
        operation: &Operation,
        target: Target<'_>,
        length: u64,
        mut attempt: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Client, u32) -> Fut,
        Fut: Future<Output = Result<T, S3Failure>>,
    {
        let gate = self.gate();
        let moved = self.call_untold(operation, target, length, |sdk, number| {
            count_repeat(direction, number);
            let (round, sent) = (gate.round(), attempt(sdk, number));
            async move {
                let answer = sent.await;
                gate.answered(round, &answer);
                answer
            }
        });
        let moved = moved.await?;
        count_part(direction);
        Ok(moved)
    }
}
