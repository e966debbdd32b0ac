//! `replication.toml`: the relationship that a VM or a twin takes part in.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use model::{
    Code, DiskChoice, DiskId, DiskSpec, Keep, PointId, Problem, RelationshipId, SeedId, VmName,
    VmSpec,
};
use replica::wire::{Configuration, Digest};
use serde::{Deserialize, Serialize};

use super::change::Change;

const FILE: &str = "replication.toml";
const VERSION: u32 = 1;
/// Most [earlier](Relation::earlier) ones that are kept.
const MAX_EARLIER: usize = 8;

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
    /// Whether the twin began with the disks that its host had: it was the primary before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reversed: bool,
    /// Earlier ones, at a host that was the primary before: as long as its partner was not told of this one,
    /// it knows one of those, and calls it by that should this host have its disks back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<RelationshipId>,
    /// The one that follows when the former primary becomes the replica; where the VM was failed over to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) back: Option<Back>,
    /// Disks that the VM has no longer, and points have still; at the replica.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former: Vec<DiskSpec>,
}

/// A relationship that is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Back {
    pub(crate) relationship: RelationshipId,
    pub(crate) seed: SeedId,
    /// The newest point that was received before.
    pub(crate) newest: PointId,
    /// When it was cut, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) newest_cut: Option<Timestamp>,
    /// Whether diskd tracks for it since the takeover.
    pub(crate) tracked: bool,
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
    /// The VM of the replica host from which the twin is filled first.
    pub(crate) seed_from: Option<VmName>,
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
            reversed: false,
            earlier: Vec::new(),
            back: None,
            former: Vec::new(),
        }
    }

    /// All by which the partner may know it, the likeliest first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = RelationshipId> + '_ {
        std::iter::once(self.id).chain(self.earlier.iter().copied())
    }

    /// What is [earlier](Self::earlier) when `next` follows.
    pub(crate) fn before(&self, next: RelationshipId) -> Vec<RelationshipId> {
        let known = self.ids().filter(|id| *id != next);
        known.take(MAX_EARLIER).collect()
    }

    /// That of a host which became the replica in it, and has its disks back.
    pub(crate) fn given_back(&self) -> Self {
        Self {
            suspended: false,
            revision: None,
            former: Vec::new(),
            ..self.clone()
        }
    }

    /// Why the twin cannot follow such a change of the VM's disks yet, and the way out. It can, but for
    /// the disks of an initial replication that goes on (`seeding`), and for the last one.
    pub(crate) fn refuses(
        &self,
        change: &Change,
        seeding: bool,
    ) -> Option<(&'static str, &'static str)> {
        match change {
            Change::Remove(id) if !self.disks.contains(id) => None,
            Change::Remove(_) if seeding => Some((
                "has its disks copied to its twin for the first time",
                "Wait until that is done, or give it up with `pollux replica cancel`",
            )),
            Change::Remove(_) if self.disks.len() == 1 => Some((
                "would have no disk left that is replicated",
                "End that first with `pollux replica remove`, or have another disk replicated with \
                 `pollux replica set --disks`",
            )),
            _ => None,
        }
    }

    /// The disks of a VM of this specification that a person wants to be replicated; as they were if
    /// that is none.
    pub(crate) fn wanted(&self, spec: &VmSpec) -> Vec<DiskId> {
        let wanted = spec
            .disks
            .iter()
            .filter(|disk| self.choice.contains(disk.slot));
        let wanted: Vec<DiskId> = wanted.map(|disk| disk.id).collect();
        match wanted.is_empty() {
            true => self.disks.clone(),
            false => wanted,
        }
    }

    /// The disks that the VM had before and `spec` has not, of which points may be left.
    pub(crate) fn former(&self, before: &VmSpec, spec: &VmSpec, held: &[DiskId]) -> Vec<DiskSpec> {
        let mut former: Vec<DiskSpec> = Vec::new();
        for disk in before.disks.iter().chain(&self.former) {
            let known = |disks: &[DiskSpec]| disks.iter().any(|other| other.id == disk.id);
            if held.contains(&disk.id) && !known(&spec.disks) && !known(&former) {
                former.push(disk.clone());
            }
        }
        former
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
    fn what_was_before_is_known_by_its_id_once_and_not_without_end() {
        let seed = SeedId::random();
        let relation = |id, earlier| Relation {
            earlier,
            ..Relation::new(id, "pollux", 30, seed, Vec::new())
        };
        let [first, second] = [(); 2].map(|()| RelationshipId::random());
        let alone = relation(first, Vec::new());
        assert_eq!(alone.before(second), [first]);
        let next = relation(second, alone.before(second));
        assert_eq!(next.before(second), [first], "the same once more");
        assert_eq!(next.before(first), [second]);
        let mut last = next;
        for _ in 0..2 * MAX_EARLIER {
            let id = RelationshipId::random();
            last = relation(id, last.before(id));
        }
        assert_eq!(last.earlier.len(), MAX_EARLIER);
        let home = tempfile::tempdir().expect("scratch");
        last.write(home.path()).expect("written");
        assert_eq!(Relation::read(home.path()), Ok(Some(last)));
    }

    #[test]
    fn disks_come_and_go_but_for_the_first_copy_and_the_last_disk() {
        let disk = |slot: u8| {
            let file = format!("disk{slot}.raw").into();
            DiskSpec::new(file, Bytes(1 << 20), Bus::Virtio, slot)
        };
        let (sent, other, out, new) = (disk(0), disk(3), disk(1), disk(2));
        let mut relation = Relation {
            choice: "all-but:1".parse().expect("a choice"),
            ..Relation::new(
                RelationshipId::random(),
                "host-b",
                30,
                SeedId::random(),
                vec![sent.id, other.id],
            )
        };
        let refused = |relation: &Relation, change: Change, seeding| {
            let refused = relation.refuses(&change, seeding);
            refused.map(|(reason, _)| reason)
        };
        for seeding in [true, false] {
            let refused = |change| refused(&relation, change, seeding);
            assert_eq!(refused(Change::Add(new.clone())), None);
            assert_eq!(refused(Change::Resize(sent.id, Bytes(2 << 20))), None);
            assert_eq!(refused(Change::Drop(CheckpointId::random())), None);
            assert_eq!(refused(Change::Remove(out.id)), None);
            assert_eq!(refused(Change::Remove(sent.id)).is_some(), seeding);
        }
        relation.disks.pop();
        let last = refused(&relation, Change::Remove(sent.id), false);
        assert!(last.is_some_and(|reason| reason.contains("no disk left")));

        let name = "web".parse().expect("a name");
        let spec = |disks: Vec<DiskSpec>| {
            let (name, memory) = (Clone::clone(&name), Bytes(64 << 20));
            VmSpec::new(name, model::Generation::Two, 1, memory, false, None, disks).expect("a VM")
        };
        let all = spec(vec![sent.clone(), out.clone(), new.clone()]);
        assert_eq!(relation.wanted(&all), [sent.id, new.id]);
        assert_eq!(
            relation.wanted(&spec(vec![out.clone()])),
            [sent.id],
            "as it was"
        );
        // At the replica: what points have is known until none has it.
        let left = spec(vec![sent.clone()]);
        relation.former = relation.former(&all, &left, &[sent.id, new.id]);
        assert_eq!(
            relation.former(&left, &left, &[sent.id, new.id]),
            relation.former
        );
        assert_eq!(relation.former, [new]);
        assert_eq!(relation.former(&left, &all, &[sent.id]), []);
        assert_eq!(relation.former(&left, &left, &[sent.id]), []);
    }
}
