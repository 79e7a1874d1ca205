//! What probes, scrapers and people on call see of a service. One binary, a file per idea; the ones
//! with servers and a browser stand behind feature `test-servers`.
#![cfg(all(feature = "dashboard", feature = "prometheus"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "test-servers")]
#[path = "../contract/alone.rs"]
mod alone;
#[cfg(feature = "test-servers")]
#[path = "../../examples/service/app.rs"]
mod app;
mod ask;
#[cfg(feature = "test-servers")]
mod browser;
#[cfg(all(feature = "test-servers", feature = "doctor"))]
mod doctor;
mod documented;
#[cfg(feature = "test-servers")]
mod ending;
mod exposition;
mod operators;
#[cfg(feature = "test-servers")]
mod page;
mod probes;
#[cfg(feature = "test-servers")]
mod readme;
#[cfg(all(feature = "test-servers", feature = "doctor"))]
mod secrets;
#[cfg(feature = "test-servers")]
mod service;
#[cfg(feature = "test-servers")]
mod settings;
#[cfg(all(feature = "test-servers", feature = "chaos"))]
mod threads;
