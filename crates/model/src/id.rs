//! Identities. Each kind is its own type, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that should have been a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a {kind} id (expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8)"
)]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random identity.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} {}", $kind, self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match Uuid::parse_str(text) {
                    Ok(id) => Ok(Self(id)),
                    Err(_) => Err(ParseIdError { kind: $kind, text: text.to_owned() }),
                }
            }
        }
    };
}

identity!(
    /// A virtual machine. A twin has the id of its primary.
    VmId, "vm"
);
identity!(
    /// A virtual disk; the tracker belongs to it, whatever file holds its content.
    DiskId, "disk"
);
identity!(
    /// All disks of a VM as they were at one instant.
    CheckpointId, "checkpoint"
);
identity!(
    /// One uninterrupted stretch of running as the primary; see [`crate::Term`].
    TermId, "term"
);
identity!(
    /// A replication relationship between two hosts for one VM.
    RelationshipId, "relationship"
);
identity!(
    /// One initial replication; the first delta builds on it.
    SeedId, "seed"
);
identity!(
    /// A folder that journals of twins lie in, wherever it is mounted.
    StoreId, "store"
);
identity!(
    /// One storing of how a VM stands on a host.
    StampId, "stamp"
);
identity!(
    /// `/proc/sys/kernel/random/boot_id`: state tagged with another one did not survive.
    BootId, "boot"
);
