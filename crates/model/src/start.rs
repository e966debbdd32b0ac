//! Whether a VM starts when nobody knows where else it runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether a VM that is replicated starts on its own host when the other one gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartUnasked {
    /// Not without a person's word: the other host may have taken over.
    #[default]
    Deny,
    /// It starts. If the other host took over, two run until they are in contact.
    Allow,
}

/// Text that is no [`StartUnasked`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither `deny` nor `allow`")]
pub struct ParseStartUnaskedError(String);

impl StartUnasked {
    /// Whether it is the default.
    #[must_use]
    pub fn is_deny(&self) -> bool {
        *self == Self::Deny
    }
}

impl FromStr for StartUnasked {
    type Err = ParseStartUnaskedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "deny" => Ok(Self::Deny),
            "allow" => Ok(Self::Allow),
            other => Err(ParseStartUnaskedError(other.to_owned())),
        }
    }
}

impl fmt::Display for StartUnasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}
