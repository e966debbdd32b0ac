//! `replication.toml`: the relationship that a VM or a twin takes part in.

use std::io;
use std::path::Path;

use model::{Code, DiskId, Problem, RelationshipId, SeedId};
use serde::{Deserialize, Serialize};

const FILE: &str = "replication.toml";
const VERSION: u32 = 1;

/// A relationship, as agreed. The same on both sides but for the partner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Relation {
    version: u32,
    /// Its identity.
    pub(crate) id: RelationshipId,
    /// Name of the peer that it is bound to.
    pub(crate) partner: String,
    /// Seconds from one point to the next.
    pub(crate) every_s: u32,
    /// The initial replication.
    pub(crate) seed: SeedId,
    /// The replicated disks, in the order of every segment's header.
    pub(crate) disks: Vec<DiskId>,
    /// Stopped by a person, on the primary.
    #[serde(default)]
    pub(crate) suspended: bool,
}

impl Relation {
    /// A relationship with `partner`.
    pub(crate) fn new(
        id: RelationshipId,
        partner: &str,
        every_s: u32,
        seed: SeedId,
        disks: Vec<DiskId>,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            partner: partner.to_owned(),
            every_s,
            seed,
            disks,
            suspended: false,
        }
    }

    /// Reads it in the folder `home`; none if there is none.
    pub(crate) fn read(home: &Path) -> Result<Option<Self>, Problem> {
        let file = home.join(FILE);
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Problem::failed(file.display().to_string(), error)
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let relation: Self = toml::from_str(&text).map_err(|error| failed(&error))?;
        if relation.version != VERSION {
            return Err(Problem::new(
                Code::Invalid,
                file.display().to_string(),
                format!(
                    "has version {}; this build reads version {VERSION}",
                    relation.version
                ),
                "Use the Pollux that wrote it, or a newer one",
            ));
        }
        Ok(Some(relation))
    }

    /// Writes it durably.
    pub(crate) fn write(&self, home: &Path) -> io::Result<()> {
        let text = toml::to_string_pretty(self).map_err(io::Error::other)?;
        durable::replace(&home.join(FILE), text.as_bytes())
    }

    /// Removes it durably.
    pub(crate) fn remove(home: &Path) -> io::Result<()> {
        durable::remove(&home.join(FILE))
    }
}
