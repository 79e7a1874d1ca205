//! Mainstay: resilient clients for Rust services.
//!
//! This release holds the policy engine that all clients will share; see `mainstay_policy`.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mainstay::{Kind, Policy};
//!
//! let policy = Policy::builder(Kind::Api, "payments").max_attempts(3).build()?;
//! let answer = policy.call(|| async { Ok::<_, std::io::Error>(42) }).await?;
//! assert_eq!(answer, 42);
//! println!("{:?}", mainstay::get_resilience_health().overall_health);
//! # Ok(()) }
//! ```

pub use mainstay_policy::*;
