//! What every client promises, written once and run against each of them: the real driver, a real
//! server, and the network's faults in between.
//!
//! A promise is a file, and so is a client. [`subject`] says what a promise needs of one.
#![cfg(feature = "test-servers")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// A test of this promise for each of these clients, named after both.
macro_rules! each {
    ($promise:ident: $($client:ident)+) => {
        mod $promise {
            $(
                #[tokio::test]
                async fn $client() {
                    super::$promise::<crate::$client::Subject>().await;
                }
            )+
        }
    };
}

mod alone;
mod faults;
mod subject;

mod database;
mod http;
mod mariadb;
mod redis;
mod s3;
mod sqlite;

mod attempts;
mod blocking;
mod deadline;
mod decider;
mod dropped;
mod left_behind;
mod once;
mod open_breaker;
mod secrets;
