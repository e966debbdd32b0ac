//! How a refusal is told: the thing, the reason, the way out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of refusal; decides the HTTP status and the exit code of `pollux`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request itself is wrong. HTTP 400, exit code 2.
    Invalid,
    /// The thing does not exist. HTTP 404, exit code 3.
    NotFound,
    /// The thing is in a state that does not allow this. HTTP 409, exit code 4.
    Conflict,
    /// The caller is not known or may not do this. HTTP 403, exit code 5.
    Forbidden,
    /// Another host or process cannot be reached. HTTP 502, exit code 6.
    Unreachable,
    /// No space or no memory is left for it. HTTP 507, exit code 7.
    Full,
    /// Something failed that should not have. HTTP 500, exit code 1.
    Failed,
}

impl Code {
    /// The HTTP status, RFC 9110 section 15 (507: RFC 4918).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Forbidden => 403,
            Self::Unreachable => 502,
            Self::Full => 507,
            Self::Failed => 500,
        }
    }

    /// The exit code of the command line.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Forbidden => 5,
            Self::Unreachable => 6,
            Self::Full => 7,
        }
    }
}

/// A refusal that a person can act on. Nothing was changed unless `reason` says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Problem {
    /// The kind of refusal.
    pub code: Code,
    /// The thing, as the user names it: ``VM `web` ``.
    pub thing: String,
    /// Why not, in one sentence without a full stop: `does not exist on this host`.
    pub reason: String,
    /// What to do now: `` `pollux vm list` shows the VMs of this host ``. May be empty.
    #[serde(default)]
    pub way_out: String,
}

impl Problem {
    /// A refusal of `code` about `thing` because of `reason`, with a way out.
    pub fn new(
        code: Code,
        thing: impl Into<String>,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Self {
            code,
            thing: thing.into(),
            reason: reason.into(),
            way_out: way_out.into(),
        }
    }

    /// An unexpected failure: the whole chain of `error` becomes the reason.
    pub fn failed(thing: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(Code::Failed, thing, chain(error), "")
    }
}

/// `error` and its sources, joined with colons.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// `thing: reason. Way out`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.thing, self.reason)?;
        let mut rest = self.way_out.chars();
        if let Some(first) = rest.next() {
            // It begins like a sentence, for it is one.
            write!(f, ". {}{}", first.to_uppercase(), rest.as_str())?;
        }
        Ok(())
    }
}
