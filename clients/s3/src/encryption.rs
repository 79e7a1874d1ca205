//! Encryption by the store, and what a request has to say for it.

use aws_sdk_s3::types::ServerSideEncryption;
use base64::{Engine, engine::general_purpose::STANDARD};
use mainstay_policy::Error;
use md5::{Digest, Md5};
use std::fmt;

/// How the store encrypts an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// With keys that S3 keeps (`AES256`).
    Store,
    /// With a key in KMS (`aws:kms`); without one, with the account's own.
    Kms {
        /// The key's id, ARN or alias.
        key: Option<String>,
    },
    /// With a key of the caller's, which every reader has to give again.
    Customer(CustomerKey),
}

impl Encryption {
    /// With the account's own key in KMS.
    #[must_use]
    pub const fn kms() -> Self {
        Self::Kms { key: None }
    }

    /// With this key in KMS: its id, ARN or alias.
    pub fn kms_with(key: impl Into<String>) -> Self {
        Self::Kms { key: Some(key.into()) }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Kms { key: Some(key) }
                if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Err(Error::invalid(
                    "the id of the KMS key is empty or holds spaces or control characters",
                ))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn by_the_store(&self) -> Option<ServerSideEncryption> {
        match self {
            Self::Store => Some(ServerSideEncryption::Aes256),
            Self::Kms { .. } => Some(ServerSideEncryption::AwsKms),
            Self::Customer(_) => None,
        }
    }

    pub(crate) fn kms_key(&self) -> Option<String> {
        match self {
            Self::Kms { key } => key.clone(),
            _ => None,
        }
    }

    /// Whether an answer about a part tells of this: by the store with which kind of key, and in KMS with which.
    /// A key of the customer's needs no such look: a part with another one is refused.
    pub(crate) fn is_told(&self, by: Option<&ServerSideEncryption>, key: Option<&str>) -> bool {
        let wanted = match self {
            Self::Customer(_) => return true,
            Self::Store => None,
            Self::Kms { key } => key.as_deref(),
        };
        // Of an alias the key's own id is told, and of an id its ARN.
        let is_it = |told: &str, wanted: &str| {
            let before = told.strip_suffix(wanted);
            before.is_some_and(|before| before.is_empty() || before.ends_with(['/', ':']))
        };
        let wanted = wanted.filter(|wanted| !wanted.contains("alias/"));
        by == self.by_the_store().as_ref()
            && wanted.is_none_or(|wanted| key.is_none_or(|told| is_it(told, wanted)))
    }

    pub(crate) const fn customer(&self) -> Option<&CustomerKey> {
        match self {
            Self::Customer(key) => Some(key),
            _ => None,
        }
    }
}

/// A key of the caller's for SSE-C, of 256 bits. S3 keeps no copy: who loses it loses the object. It
/// is sent with each request, so it wants an `https` endpoint, and is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey([u8; 32]);

impl CustomerKey {
    /// The key.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    pub(crate) fn algorithm(&self) -> String {
        "AES256".to_owned()
    }

    pub(crate) fn base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// S3 checks with it that the key arrived whole.
    pub(crate) fn md5(&self) -> String {
        STANDARD.encode(Md5::digest(self.0))
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(..)")
    }
}

/// A request with the customer's key, if there is one; they share no trait.
macro_rules! with_key {
    ($request:expr, $key:expr) => {{
        let key: Option<&$crate::CustomerKey> = $key;
        $request
            .set_sse_customer_algorithm(key.map($crate::CustomerKey::algorithm))
            .set_sse_customer_key(key.map($crate::CustomerKey::base64))
            .set_sse_customer_key_md5(key.map($crate::CustomerKey::md5))
    }};
}
pub(crate) use with_key;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_with_its_digest_and_is_never_shown() {
        let key = CustomerKey::new(*b"0123456789abcdef0123456789abcdef");
        assert_eq!(key.base64(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
        // As `openssl md5 -binary | base64` has it.
        assert_eq!(key.md5(), "hRasmdxgYDKV3nvbahU1MA==");
        assert_eq!(format!("{:?}", Encryption::Customer(key)), "Customer(CustomerKey(..))");
        assert!(Encryption::kms_with("a b").check().is_err());
        assert!(Encryption::kms_with("alias/mine").check().is_ok());
    }

    #[test]
    fn what_a_store_tells_of_a_part_is_what_was_asked_for_or_another() {
        use ServerSideEncryption::{Aes256, AwsKms};
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/12ab";
        for (wanted, by, key, same) in [
            (Encryption::Store, Some(Aes256), None, true),
            (Encryption::Store, None, None, false),
            (Encryption::Store, Some(AwsKms), Some(arn), false),
            (Encryption::kms(), Some(AwsKms), Some(arn), true),
            (Encryption::kms(), Some(Aes256), None, false),
            (Encryption::kms_with(arn), Some(AwsKms), Some(arn), true),
            (Encryption::kms_with("12ab"), Some(AwsKms), Some(arn), true),
            (Encryption::kms_with("2ab"), Some(AwsKms), Some(arn), false),
            (Encryption::kms_with("alias/mine"), Some(AwsKms), Some(arn), true),
            (Encryption::kms_with("12ab"), Some(AwsKms), None, true),
            (Encryption::Customer(CustomerKey::new([7; 32])), None, None, true),
        ] {
            assert_eq!(wanted.is_told(by.as_ref(), key), same, "{wanted:?} {by:?} {key:?}");
        }
    }
}
