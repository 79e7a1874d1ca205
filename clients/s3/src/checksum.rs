//! The checksum of a whole object, worked out as its bytes go by.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, Digest};

/// A checksum in the making, and what the store says it has to be.
pub(crate) struct Running {
    digest: Digest,
    /// Of its result, the last so many bytes count.
    length: usize,
    expected: String,
}

impl Running {
    /// Of the checksum that goes with an answer, if there is one of the whole object. Its parts'
    /// (`...-3`) are of no use here.
    pub(crate) fn of(got: &GetObjectOutput) -> Option<Self> {
        let of = |expected: Option<&str>, algorithm, length| {
            let expected = expected.filter(|sum| !sum.contains('-'))?.to_owned();
            Some(Self { digest: Digest::new(algorithm), length, expected })
        };
        of(got.checksum_crc64_nvme(), CrcAlgorithm::Crc64Nvme, 8)
            .or_else(|| of(got.checksum_crc32(), CrcAlgorithm::Crc32IsoHdlc, 4))
            .or_else(|| of(got.checksum_crc32_c(), CrcAlgorithm::Crc32Iscsi, 4))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub(crate) fn matches(&self) -> bool {
        let sum = self.digest.finalize().to_be_bytes();
        STANDARD.encode(&sum[sum.len() - self.length..]) == self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_algorithm_has_the_catalogues_check_value() {
        for (expected, algorithm, length) in [
            (0xcbf4_3926_u64, CrcAlgorithm::Crc32IsoHdlc, 4),
            (0xe306_9283, CrcAlgorithm::Crc32Iscsi, 4),
            (0xae8b_1486_0a79_9888, CrcAlgorithm::Crc64Nvme, 8),
        ] {
            let expected = STANDARD.encode(&expected.to_be_bytes()[8 - length..]);
            let mut sum = Running { digest: Digest::new(algorithm), length, expected };
            sum.update(b"1234");
            assert!(!sum.matches());
            sum.update(b"56789");
            assert!(sum.matches());
        }
    }
}
