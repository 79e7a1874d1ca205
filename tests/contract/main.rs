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

/// As `each`, in a process where no other test has descriptors.
macro_rules! each_alone {
    ($promise:ident: $($client:ident)+) => {
        mod $promise {
            $(
                #[test]
                fn $client() {
                    let module = module_path!().split_once("::").unwrap().1;
                    let test = format!("{module}::{}", stringify!($client));
                    match crate::alone::alone(&test, &[]) {
                        None => super::$promise::<crate::$client::Subject>(),
                        // Figures, for who asks for them.
                        Some(told) => print!("{told}"),
                    }
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

mod amplification;
mod attempts;
mod blocking;
mod bombs;
mod certificates;
mod deadline;
mod decider;
mod dropped;
mod health;
mod left_behind;
mod once;
mod open_breaker;
mod secrets;
mod ten_thousand;
