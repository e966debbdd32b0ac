//! Whether a VM that is replicated runs under a lease, as people say it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether a primary runs only as long as its replica answers: `none`, `lease` or `lease=SECONDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FenceChoice {
    /// It runs on without its replica, which takes over on a person's word only.
    None,
    /// It is held still once its replica has not answered for so many seconds.
    Lease(u32),
}

/// Text that is no [`FenceChoice`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fence: it is `none`, `lease`, or with its seconds such as `lease=30`")]
pub struct ParseFenceChoiceError(String);

impl FenceChoice {
    /// Seconds of a lease of which nobody says how long it is.
    pub const SECONDS: u32 = 10;
}

impl FromStr for FenceChoice {
    type Err = ParseFenceChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseFenceChoiceError(text.to_owned());
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "lease" => Ok(Self::Lease(Self::SECONDS)),
            Some(("lease", seconds)) if seconds.bytes().all(|byte| byte.is_ascii_digit()) => {
                seconds.parse().map(Self::Lease).map_err(|_large| wrong())
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for FenceChoice {
    type Error = ParseFenceChoiceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FenceChoice> for String {
    fn from(choice: FenceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for FenceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lease(seconds) => write!(f, "lease={seconds}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_read_as_it_is_written_and_nothing_else_is_one() {
        for choice in [FenceChoice::None, FenceChoice::Lease(2)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("lease".parse(), Ok(FenceChoice::Lease(10)));
        for wrong in [
            "",
            "lease=",
            "lease=-1",
            "lease=+3",
            "lease=x",
            "lease=9999999999",
            "none=3",
        ] {
            let error = wrong.parse::<FenceChoice>().expect_err(wrong);
            assert!(error.to_string().contains("lease=30"), "{error}");
        }
    }
}
