//! Without feature `chaos` nothing strikes, and nothing is left of it.

use crate::{classify::Verdict, clock::Instant};
use std::task::{Context, Poll};

#[derive(Debug)]
pub(crate) struct Blow;

#[derive(Debug)]
pub(crate) struct Struck;

#[inline(always)]
pub(crate) const fn blow(_: &str) -> Blow {
    Blow
}

impl Blow {
    #[inline(always)]
    #[allow(clippy::needless_pass_by_ref_mut)] // As the one that strikes.
    pub(crate) const fn before(&mut self, _: &mut Context<'_>) -> Poll<Struck> {
        Poll::Ready(Struck)
    }

    pub(crate) const fn before_blocking(&self, _: Instant) -> Option<Struck> {
        Some(Struck)
    }

    #[inline(always)]
    pub(crate) const fn after(&self) -> Struck {
        Struck
    }
}

impl Struck {
    pub(crate) const NOT: Self = Self;

    #[inline(always)]
    pub(crate) const fn verdict(&self) -> Option<Verdict> {
        None
    }
}
