//! Sizes in bytes, read and printed with binary units.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The unit of tracking, presence and segments, in bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// The unit of the write-intent log and of comparisons with a twin, in bytes: 256 blocks.
pub const REGION_SIZE: u64 = 1 << 20;

/// The logical sector that guests see, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// A number of bytes. Text form: a whole number with `B`, `KiB`, `MiB`, `GiB` or `TiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// Text that should have been a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size (expected a whole number and a unit, such as `512 MiB` or `20GiB`)")]
pub struct ParseBytesError(String);

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseBytesError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = match number.parse() {
            Ok(number) => number,
            Err(_) => return Err(refuse()),
        };
        let unit = unit.trim();
        // `G` and `GB` are read as `GiB`: nobody means 10^9 bytes of a virtual disk.
        let scale = UNITS
            .iter()
            .find(|(name, _)| {
                unit.eq_ignore_ascii_case(name)
                    || unit.eq_ignore_ascii_case(&name[..1])
                    || unit.eq_ignore_ascii_case(&name.replace('i', ""))
            })
            .map(|(_, scale)| *scale)
            .ok_or_else(refuse)?;
        number.checked_mul(scale).map(Bytes).ok_or_else(refuse)
    }
}

impl TryFrom<String> for Bytes {
    type Error = ParseBytesError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Exact: the largest unit that divides it, so that it can be read back.
impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        let (unit, scale) = UNITS
            .iter()
            .find(|(_, scale)| bytes.0 >= *scale && bytes.0 % *scale == 0)
            .unwrap_or(&UNITS[4]);
        format!("{} {unit}", bytes.0 / scale)
    }
}

/// For people: at most one decimal.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS
            .iter()
            .find(|(_, scale)| self.0 >= *scale)
            .unwrap_or(&UNITS[4]);
        let tenths = u128::from(self.0) * 10 / u128::from(*scale);
        let text = if tenths % 10 == 0 || *scale == 1 {
            format!("{} {unit}", tenths / 10)
        } else {
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        };
        f.pad(&text)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_spaces_and_in_one_letter_units() {
        for (text, bytes) in [
            ("512 MiB", 512 << 20),
            ("20GiB", 20 << 30),
            ("20g", 20 << 30),
            ("4 KB", 4096),
            ("1 TiB", 1 << 40),
            ("7 B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in [
            "",
            "MiB",
            "12",
            "-1 MiB",
            "1.5 GiB",
            "99999999 TiB",
            "3 parsecs",
            "1 Bé",
            "1 é",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_stored_form_reads_back_exactly() {
        for bytes in [0, 1, 4096, 4097, 1 << 20, (1 << 30) + 512, u64::MAX] {
            let text = String::from(Bytes(bytes));
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        assert_eq!(Bytes(1536 << 20).to_string(), "1.5 GiB");
    }
}
