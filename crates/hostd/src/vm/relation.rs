//! `replication.toml`: the relationship that a VM or a twin takes part in.

use std::io;
use std::path::Path;

use model::{Code, DiskChoice, DiskId, Keep, Problem, RelationshipId, SeedId, VmSpec};
use replica::wire::{Configuration, Digest};
use serde::{Deserialize, Serialize};

use super::change::Change;

const FILE: &str = "replication.toml";
const VERSION: u32 = 1;

/// A relationship, as agreed. The primary's is followed by the replica's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Relation {
    /// Of this format.
    pub(crate) version: u32,
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
    /// Stopped by a person on this host.
    #[serde(default)]
    pub(crate) suspended: bool,
    /// Which disks a person wants to be replicated; at the primary.
    #[serde(default = "all")]
    pub(crate) choice: DiskChoice,
    /// Which points are to be kept; none: as the replica host keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<Keep>,
    /// The primary's configuration that is followed; at the replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<Digest>,
}

fn all() -> DiskChoice {
    DiskChoice::All
}

/// How a person wants a VM to be replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Seconds from one point to the next.
    pub(crate) every_s: u32,
    /// Which disks.
    pub(crate) choice: DiskChoice,
    /// Which points are kept; none: as the replica host keeps them.
    pub(crate) keep: Option<Keep>,
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
            choice: DiskChoice::All,
            keep: None,
            revision: None,
        }
    }

    /// Whether the twin follows such a change of the VM's disks: it grows with its disk, and has
    /// nothing to do with one that is left out.
    pub(crate) fn follows(&self, change: &Change) -> bool {
        match change {
            Change::Add(disk) => !self.choice.contains(disk.slot),
            Change::Remove(id) => !self.disks.contains(id),
            _ => true,
        }
    }

    /// What the replica of a VM of this specification is to follow.
    pub(crate) fn configuration(&self, spec: &VmSpec) -> Configuration {
        Configuration {
            // Its checkpoints stay here: what is sent is what the guest sees.
            spec: spec.without_checkpoints(),
            disks: self.disks.clone(),
            frequency_s: self.every_s,
            keep: self.keep.clone(),
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

#[cfg(test)]
mod tests {
    use model::{Bus, Bytes, CheckpointId, DiskSpec};

    use super::*;

    #[test]
    fn a_disk_grows_while_it_is_replicated_and_only_one_that_is_left_out_comes_and_goes() {
        let disk = |slot: u8| {
            let file = format!("disk{slot}.raw").into();
            DiskSpec::new(file, Bytes(1 << 20), Bus::Virtio, slot)
        };
        let (sent, out, new) = (disk(0), disk(1), disk(2));
        let relation = |choice: &str| Relation {
            choice: choice.parse().expect("a choice"),
            ..Relation::new(
                RelationshipId::random(),
                "host-b",
                30,
                SeedId::random(),
                vec![sent.id],
            )
        };
        for (choice, follows_new) in [("0", true), ("all-but:1", false), ("all", false)] {
            let relation = relation(choice);
            let new = Change::Add(new.clone());
            assert_eq!(relation.follows(&new), follows_new, "{choice}");
            assert!(relation.follows(&Change::Resize(sent.id, Bytes(2 << 20))));
            assert!(relation.follows(&Change::Drop(CheckpointId::random())));
            assert!(!relation.follows(&Change::Remove(sent.id)), "{choice}");
            assert!(relation.follows(&Change::Remove(out.id)), "{choice}");
        }
    }
}
