//! Work that takes its time answers with lines of JSON.

use model::{Bytes, Problem};
use serde::{Deserialize, Serialize};

/// Longest line of a job's answer in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// One line of a job's answer. The last one is `Done` or `Failed`; an answer that ends without
/// either was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobLine<T> {
    /// How far it is.
    Progress(Progress),
    /// It is done; this is what came of it.
    Done(T),
    /// It failed; nothing was changed.
    Failed(Problem),
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Of `total`.
    pub done: Bytes,
    /// Of the whole.
    pub total: Bytes,
}
