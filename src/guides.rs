//! Guides: one question each.
//!
//! | guide | answers |
//! |---|---|
//! | [`choosing_settings`] | which settings to change, and which to leave |
//! | [`what_is_retried`] | what is sent again, what is not, and why |
//! | [`errors`] | what to do with each error, and what may be logged |
//! | [`testing`] | what your service does when a dependency fails |
//! | [`kubernetes`] | which probe asks what, and how a process ends |
//! | [`runbook`] | what an alert means, and what to do about it |
//! | [`from_python`] | each use of the Python resilience layer, here |

#[doc = include_str!("guides/choosing_settings.md")]
pub mod choosing_settings {}
#[doc = include_str!("guides/what_is_retried.md")]
pub mod what_is_retried {}
#[doc = include_str!("guides/errors.md")]
pub mod errors {}
#[doc = include_str!("guides/testing.md")]
pub mod testing {}
#[doc = include_str!("guides/from_python.md")]
pub mod from_python {}
#[doc = include_str!("guides/kubernetes.md")]
pub mod kubernetes {}
#[doc = include_str!("guides/runbook.md")]
pub mod runbook {}
