//! What is wrong with a run file.

use std::io;

use crate::JournalError;

/// Why a run file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The operating system refused.
    #[error("cannot {action} it")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// Made by another version.
    #[error("it has format version {0}, which this build does not read")]
    Version(u32),
    /// It is not as it was written, or was never one.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It was to hold more than the format can.
    #[error("it would hold {0}")]
    Full(&'static str),
    /// What goes into it is not in order.
    #[error("it was to hold an entry that {0}")]
    Entry(&'static str),
    /// What it is made from cannot be read.
    #[error("what it is made from cannot be read")]
    From(#[source] Box<JournalError>),
}

impl RunError {
    /// Whether the file is to blame, not the operating system.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::Version(_) => true,
            // Cut short.
            Self::Io { source, .. } => source.kind() == io::ErrorKind::UnexpectedEof,
            Self::Full(_) | Self::Entry(_) | Self::From(_) => false,
        }
    }
}

impl From<JournalError> for RunError {
    fn from(error: JournalError) -> Self {
        Self::From(Box::new(error))
    }
}
