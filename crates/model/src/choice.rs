//! Which disks of a VM are meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MAX_DISKS;

/// Some disks of a VM, by their numbers; as text `all`, `0,2` or `all-but:1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DiskChoice {
    /// All of them, and those that will be added.
    All,
    /// These.
    Only(Vec<u8>),
    /// All but these, and those that will be added.
    AllBut(Vec<u8>),
}

/// Text that is no [`DiskChoice`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no disks: it is `all`, numbers such as `0,2`, or `all-but:1`")]
pub struct ParseDiskChoiceError(String);

impl DiskChoice {
    /// Whether the disk `number` is meant.
    #[must_use]
    pub fn contains(&self, number: u8) -> bool {
        match self {
            Self::All => true,
            Self::Only(numbers) => numbers.contains(&number),
            Self::AllBut(numbers) => !numbers.contains(&number),
        }
    }

    /// The disks that are named one by one.
    #[must_use]
    pub fn named(&self) -> &[u8] {
        match self {
            Self::All => &[],
            Self::Only(numbers) | Self::AllBut(numbers) => numbers,
        }
    }
}

impl FromStr for DiskChoice {
    type Err = ParseDiskChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseDiskChoiceError(text.chars().take(64).collect());
        let numbers = |list: &str| {
            let mut numbers = Vec::new();
            for number in list.split(',').take(MAX_DISKS + 1) {
                let number = number.trim();
                // No sign, no leading zeroes: one text form.
                let plain = number.bytes().all(|digit| digit.is_ascii_digit());
                let number = match number.parse::<u8>() {
                    Ok(value) if plain && value.to_string() == number => value,
                    _ => return Err(wrong()),
                };
                if numbers.contains(&number) || numbers.len() == MAX_DISKS {
                    return Err(wrong());
                }
                numbers.push(number);
            }
            Ok(numbers)
        };
        match text.strip_prefix("all-but:") {
            Some(list) => numbers(list).map(Self::AllBut),
            None if text == "all" => Ok(Self::All),
            None => numbers(text).map(Self::Only),
        }
    }
}

impl TryFrom<String> for DiskChoice {
    type Error = ParseDiskChoiceError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DiskChoice> for String {
    fn from(choice: DiskChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DiskChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[u8]| {
            let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        match self {
            Self::All => f.pad("all"),
            Self::Only(numbers) => f.pad(&list(numbers)),
            Self::AllBut(numbers) => f.pad(&format!("all-but:{}", list(numbers))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_back_and_says_what_it_holds() {
        for (text, held) in [
            ("all", [true, true, true]),
            ("0,2", [true, false, true]),
            ("1", [false, true, false]),
            ("all-but:0", [false, true, true]),
            ("all-but:2,1", [true, false, false]),
        ] {
            let choice: DiskChoice = text.parse().expect(text);
            assert_eq!(choice.to_string(), text);
            let found = [0, 1, 2].map(|number| choice.contains(number));
            assert_eq!(found, held, "{text}");
        }
    }

    #[test]
    fn what_names_no_disks_is_refused_by_its_text() {
        let long = vec!["7"; 100_000].join(",");
        for text in [
            "", ",", "0,", "-1", "+1", "01", "256", "0,0", "ALL", "all-but:", "all-but", "x", &long,
        ] {
            let error = text.parse::<DiskChoice>().expect_err(text);
            assert!(error.to_string().len() < 200, "{error}");
        }
    }
}
