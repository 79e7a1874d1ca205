//! Files to objects and back.

mod download;
pub(crate) mod part;
mod upload;
