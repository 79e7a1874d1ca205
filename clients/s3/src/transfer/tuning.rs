//! What uploads and downloads are told alike: in which parts, how many at once, when one has stalled.

use super::progress::Listener;
use mainstay_policy::Error;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
/// Parts of one transfer on their way at once, unless the caller says otherwise.
const PARALLEL: usize = 8;

pub(crate) struct Tuning {
    pub(crate) part_size: Option<u64>,
    pub(crate) parallel: usize,
    /// Default: the attempt timeout.
    pub(crate) idle: Option<Duration>,
    pub(crate) resume: bool,
    pub(crate) listener: Option<Listener>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { part_size: None, parallel: PARALLEL, idle: None, resume: false, listener: None }
    }
}

impl Tuning {
    /// # Errors
    /// A part size that no store takes, no part at a time, or no time at all.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.part_size.is_some_and(|size| !(64 * 1024..=5 * 1024 * MIB).contains(&size)) {
            let range = "the part size must be from 64 KiB to 5 GiB; AWS takes 5 MiB and more";
            return Err(Error::invalid(range));
        }
        if self.parallel == 0 {
            return Err(Error::invalid(
                "no part at a time moves nothing; give parallel(1) or more",
            ));
        }
        check_idle(self.idle)
    }
}

/// # Errors
/// A limit that every wait exceeds.
pub(crate) fn check_idle(idle: Option<Duration>) -> Result<(), Error> {
    match idle {
        Some(Duration::ZERO) => {
            Err(Error::invalid("an idle timeout of 0 lets nothing move; give it some seconds"))
        }
        _ => Ok(()),
    }
}

/// The setters of [`Tuning`] on a builder that has it in its field `tuning`.
macro_rules! tuning {
    ($builder:ident) => {
        impl $builder {
            /// Bytes in a part. Default: 8 MiB; more for an upload that would have over 10,000 parts. AWS
            /// takes no parts under 5 MiB.
            pub fn part_size(mut self, bytes: u64) -> Self {
                self.tuning.part_size = Some(bytes);
                self
            }

            /// Parts on their way at once. Default: 8; all transfers of a client share 16, and a download that
            /// comes quicker than it is written makes do with fewer.
            pub fn parallel(mut self, parts: usize) -> Self {
                self.tuning.parallel = parts;
                self
            }

            /// A part of which no byte moves for so long has failed, and is repeated from where it was, or
            /// whole. Default: the attempt timeout of the policy.
            pub fn idle_timeout(mut self, idle: std::time::Duration) -> Self {
                self.tuning.idle = Some(idle);
                self
            }

            /// Called whenever bytes have come through (of an upload, whole parts), from the task that awaits the
            /// transfer: keep it short. It begins again at 0 when a download does.
            pub fn on_progress(
                mut self,
                listener: impl Fn($crate::Progress) + Send + Sync + 'static,
            ) -> Self {
                self.tuning.listener = Some(std::sync::Arc::new(listener));
                self
            }
        }
    };
}
pub(crate) use tuning;
