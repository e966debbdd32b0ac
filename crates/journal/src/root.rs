//! The identity of a segment's content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Merkle root over a segment's header, frames and index (docs/formats/segment.md). Two segments
/// with one root are the same segment. Text form: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root(pub [u8; 32]);

/// Text that should have been a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the root of a segment (expected 64 hexadecimal digits)")]
pub struct ParseRootError(String);

impl FromStr for Root {
    type Err = ParseRootError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(Self(hash.into())),
            Err(_) => Err(ParseRootError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Root {
    type Error = ParseRootError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        root.to_string()
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_reads_back_from_its_text_and_nothing_else_does() {
        let root = Root(*blake3::hash(b"content").as_bytes());
        assert_eq!(root.to_string().parse(), Ok(root));
        assert!("00".parse::<Root>().is_err());
        assert!("é".repeat(32).parse::<Root>().is_err());
    }
}
