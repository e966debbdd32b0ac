//! Recovery points, as the API tells them.

use jiff::Timestamp;
use journal::Consistency;
use model::{Bytes, PointId};
use serde::{Deserialize, Serialize};

/// A recovery point of a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// When it was cut, by the clock of the host that cut it.
    pub time: Timestamp,
    /// How consistent it is.
    pub consistency: Consistency,
    /// Space that its changes take; the oldest point is the base and takes none.
    pub size: Bytes,
    /// Held by a failover; it is not merged away.
    pub pinned: bool,
}
