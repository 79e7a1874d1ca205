//! The checksums of the parts that one answer brings, as their bytes go by.

use crate::checksum::{Crc, Sum};
use crc_fast::Digest;

#[derive(Clone, Default)]
pub(super) struct Sums {
    /// Those of whole parts; `None` of one that was not hashed.
    pub(super) done: Vec<Option<Sum>>,
    /// Of the part in which we are.
    digest: Option<(Crc, Digest)>,
    length: u64,
}

impl Sums {
    /// The next bytes of parts of this size. A part that begins in them is hashed with this.
    pub(super) fn update(&mut self, mut bytes: &[u8], size: u64, crc: Option<Crc>) {
        while !bytes.is_empty() {
            if self.length == 0 {
                self.digest = crc.map(|crc| (crc, Digest::new(crc.algorithm())));
            }
            let left = usize::try_from(size - self.length).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(left.min(bytes.len()));
            if let Some((_, digest)) = &mut self.digest {
                digest.update(now);
            }
            self.length += now.len() as u64;
            if self.length == size {
                self.finish();
            }
            bytes = rest;
        }
    }

    /// The part ends here, however long it is.
    pub(super) fn finish(&mut self) {
        if self.length > 0 {
            let (length, digest) = (std::mem::take(&mut self.length), self.digest.take());
            let sum = |(crc, digest): (Crc, Digest)| Sum { crc, value: digest.finalize(), length };
            self.done.push(digest.map(sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_they_should_however_the_bytes_come() {
        let whole: Vec<u8> = (0..=255).cycle().take(1_050).collect();
        for step in [1, 7, 99, 100, 101, 250, 2_000] {
            let mut sums = Sums::default();
            for bytes in whole.chunks(step) {
                sums.update(bytes, 100, Some(Crc::Crc32C));
            }
            assert_eq!(sums.done.len(), 10, "{step}");
            sums.finish();
            sums.finish();
            let parts = whole.chunks(100).map(|part| {
                let value = crc_fast::checksum(Crc::Crc32C.algorithm(), part);
                Some(Sum { crc: Crc::Crc32C, value, length: part.len() as u64 })
            });
            assert!(parts.eq(sums.done), "{step}");
        }
    }

    /// What the store has is known after the first ranges have begun.
    #[test]
    fn another_checksum_begins_with_the_next_part() {
        let mut sums = Sums::default();
        sums.update(&[1; 5], 10, None);
        sums.update(&[1; 15], 10, Some(Crc::Crc32));
        sums.update(&[1; 10], 10, Some(Crc::Crc64));
        sums.finish();
        let kinds: Vec<_> = sums.done.iter().map(|sum| sum.map(|sum| sum.crc)).collect();
        assert_eq!(kinds, [None, Some(Crc::Crc32), Some(Crc::Crc64)]);
    }
}
