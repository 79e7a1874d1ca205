//! What a store says about the bytes of an object, and the same worked out here.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, Digest};

/// Whether transfers carry and compare checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checksums {
    /// A CRC-32 goes with every upload, and downloads are compared with what the store says.
    #[default]
    On,
    /// None is sent, asked for or compared: for stores that refuse requests with checksums.
    Off,
}

/// A CRC; the kinds that S3 has. Their values fold: that of a whole follows from those of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crc {
    /// CRC-32, that of zip files; ours.
    Crc32,
    /// CRC-32C, of iSCSI.
    Crc32C,
    /// CRC-64/NVME, which AWS gives objects that came without any.
    Crc64,
}

impl Crc {
    pub(crate) const fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
            Self::Crc32C => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64 => CrcAlgorithm::Crc64Nvme,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32C => "crc32c",
            Self::Crc64 => "crc64nvme",
        }
    }

    /// How many bits it has, and its polynomial with the highest power in the lowest bit.
    const fn polynomial(self) -> (u32, u64) {
        match self {
            Self::Crc32 => (32, 0xedb8_8320),
            Self::Crc32C => (32, 0x82f6_3b78),
            Self::Crc64 => (64, 0x9a6c_9329_ac4b_c9b5),
        }
    }

    /// The product of two polynomials, modulo its own.
    fn multiply(self, a: u64, mut b: u64) -> u64 {
        let (width, polynomial) = self.polynomial();
        let mut product = 0;
        for power in 1..=width {
            if a >> (width - power) & 1 == 1 {
                product ^= b;
            }
            b = (b >> 1) ^ if b & 1 == 1 { polynomial } else { 0 };
        }
        product
    }

    /// What the checksum of the bytes before counts for, so many bytes later. crc_fast's `checksum_combine`
    /// squares matrices, 0.1 ms each time; this multiplies by a power of x as zlib does, in 4 µs.
    fn shift(self, mut value: u64, mut bytes: u64) -> u64 {
        // x to the 8th, squared for each bit of the length.
        let mut factor = 1 << (self.polynomial().0 - 9);
        while bytes > 0 {
            if bytes & 1 == 1 {
                value = self.multiply(value, factor);
            }
            factor = self.multiply(factor, factor);
            bytes >>= 1;
        }
        value
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Crc32, Self::Crc32C, Self::Crc64].into_iter().find(|crc| crc.name() == name)
    }

    /// As S3 writes it: base64 of the bytes, the highest first.
    pub(crate) fn text(self, value: u64) -> String {
        let bytes = value.to_be_bytes();
        STANDARD.encode(if self == Self::Crc64 { &bytes[..] } else { &bytes[4..] })
    }

    fn value(self, text: &str) -> Option<u64> {
        let decoded = STANDARD.decode(text).ok()?;
        let width = if self == Self::Crc64 { 8 } else { 4 };
        let mut bytes = [0; 8];
        bytes[8 - width..].copy_from_slice(Some(decoded).filter(|d| d.len() == width)?.as_slice());
        Some(u64::from_be_bytes(bytes))
    }
}

/// The checksum of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) crc: Crc,
    pub(crate) value: u64,
    pub(crate) length: u64,
}

/// The checksum of the whole, from those of its parts in order.
pub(crate) fn fold(crc: Crc, parts: impl IntoIterator<Item = Sum>) -> u64 {
    parts.into_iter().fold(0, |value, part| crc.shift(value, part.length) ^ part.value)
}

/// The checksum of the parts' checksums.
pub(crate) fn compose(crc: Crc, parts: impl IntoIterator<Item = Sum>) -> u64 {
    let mut digest = Digest::new(crc.algorithm());
    for part in parts {
        let bytes = part.value.to_be_bytes();
        digest.update(if crc == Crc::Crc64 { &bytes[..] } else { &bytes[4..] });
    }
    digest.finalize()
}

/// What a store says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) crc: Crc,
    pub(crate) value: u64,
    /// Of a checksum of checksums: how many parts there were.
    pub(crate) parts: Option<u64>,
}

impl Told {
    /// From an answer's checksums, of which an object has one. SHA-1 and SHA-256 do not fold; they are
    /// left out.
    pub(crate) fn read(crc32: Option<&str>, c: Option<&str>, crc64: Option<&str>) -> Option<Self> {
        let read = |crc: Crc, text: Option<&str>| {
            let text = text?;
            let (text, parts) = match text.split_once('-') {
                Some((text, parts)) => (text, Some(parts.parse().ok()?)),
                None => (text, None),
            };
            Some(Self { crc, value: crc.value(text)?, parts })
        };
        read(Crc::Crc64, crc64).or_else(|| read(Crc::Crc32, crc32)).or_else(|| read(Crc::Crc32C, c))
    }

    /// Whether these parts in order are what was told, be it of the whole or of these parts.
    pub(crate) fn is_of(self, parts: &[Sum]) -> bool {
        let value = match self.parts {
            Some(count) if count == parts.len() as u64 => compose(self.crc, parts.iter().copied()),
            Some(_) => return false,
            None => fold(self.crc, parts.iter().copied()),
        };
        parts.iter().all(|part| part.crc == self.crc) && value == self.value
    }
}

/// The checksum of a whole object in the making, as its bytes go by, and what it has to be.
pub(crate) struct Running {
    digest: Digest,
    told: Told,
}

impl Running {
    /// Of what an answer says, if it says it of the whole object: its parts' is of no use here.
    pub(crate) fn of(got: &GetObjectOutput) -> Option<Self> {
        let (crc32, c) = (got.checksum_crc32(), got.checksum_crc32_c());
        let told = Told::read(crc32, c, got.checksum_crc64_nvme());
        let told = told.filter(|told| told.parts.is_none())?;
        Some(Self { digest: Digest::new(told.crc.algorithm()), told })
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub(crate) fn matches(&self) -> bool {
        self.digest.finalize() == self.told.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(crc: Crc, bytes: &[u8]) -> Sum {
        let value = crc_fast::checksum(crc.algorithm(), bytes);
        Sum { crc, value, length: bytes.len() as u64 }
    }

    #[test]
    fn parts_fold_to_the_checksum_of_the_whole() {
        let whole: Vec<u8> = (0..2_000_u32).flat_map(u32::to_le_bytes).collect();
        for crc in [Crc::Crc32, Crc::Crc32C, Crc::Crc64] {
            for at in [1, 256, 7_999] {
                let parts = whole.chunks(at).map(|part| sum(crc, part)).collect::<Vec<_>>();
                assert_eq!(
                    fold(crc, parts.iter().copied()),
                    sum(crc, &whole).value,
                    "{crc:?} {at}"
                );
                let text = crc.text(sum(crc, &whole).value);
                let told = match crc {
                    Crc::Crc32 => Told::read(Some(&text), None, None),
                    Crc::Crc32C => Told::read(None, Some(&text), None),
                    Crc::Crc64 => Told::read(None, None, Some(&text)),
                };
                assert!(told.unwrap().is_of(&parts), "{crc:?} {at}");
            }
            assert_eq!(fold(crc, []), 0);
        }
    }

    #[test]
    fn the_check_values_of_the_catalogue_are_met() {
        // https://reveng.sourceforge.io/crc-catalogue/all.htm, of "123456789".
        for (crc, value) in [
            (Crc::Crc32, 0xcbf4_3926),
            (Crc::Crc32C, 0xe306_9283),
            (Crc::Crc64, 0xae8b_1486_0a79_9888),
        ] {
            assert_eq!(sum(crc, b"123456789").value, value, "{crc:?}");
            assert_eq!(crc.value(&crc.text(value)), Some(value));
            let got = GetObjectOutput::builder();
            let got = match crc {
                Crc::Crc32 => got.checksum_crc32(crc.text(value)),
                Crc::Crc32C => got.checksum_crc32_c(crc.text(value)),
                Crc::Crc64 => got.checksum_crc64_nvme(crc.text(value)),
            };
            let mut running = Running::of(&got.build()).unwrap();
            running.update(b"1234");
            assert!(!running.matches());
            running.update(b"56789");
            assert!(running.matches());
        }
        let parts = GetObjectOutput::builder().checksum_crc32("AAAAAA==-2").build();
        assert!(Running::of(&parts).is_none());
    }

    #[test]
    fn a_checksum_of_checksums_is_known_by_its_number_of_parts() {
        let parts = [sum(Crc::Crc32, b"one"), sum(Crc::Crc32, b"two")];
        let text = format!("{}-2", Crc::Crc32.text(compose(Crc::Crc32, parts)));
        let told = Told::read(Some(&text), None, None).unwrap();
        assert_eq!(told.parts, Some(2));
        assert!(told.is_of(&parts));
        assert!(!told.is_of(&parts[..1]) && !told.is_of(&[sum(Crc::Crc32, b"onetwo"); 2]));
        for bad in ["", "AAAA", "-", "AAAAAA==-x", "no base64"] {
            assert_eq!(Told::read(Some(bad), None, None), None, "{bad}");
        }
    }
}
