//! `vm.toml`: the whole specification of a virtual machine, read strictly.
//!
//! The folder of a VM is the truth and this file its root. An unknown key is an
//! error that names it; so is a version that this build does not know.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{self, CheckpointSpec, DiskSpec};
use crate::{Bytes, VmId};

/// Most disks a VM may have.
pub const MAX_DISKS: usize = 16;

const VERSION: u32 = 1;
const MAX_PROCESSORS: u32 = 240;
const MAX_TOML: usize = 256 * 1024;
const MIN_MEMORY: Bytes = Bytes(32 << 20);
const MAX_MEMORY: Bytes = Bytes(12 << 40);

/// What is wrong with a specification.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not the TOML that is expected; the message names line and key.
    #[error("vm.toml cannot be read: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Longer than any honest one.
    #[error("vm.toml has {0} bytes, more than {MAX_TOML}")]
    TooLong(usize),
    /// Written by a newer Pollux.
    #[error("vm.toml has version {0}; this build reads version {VERSION}")]
    Version(u32),
    /// A value outside its limits.
    #[error("`{key}` is {value}: {rule}")]
    Value {
        /// The key as it stands in the file.
        key: String,
        /// The value as it stands there.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
}

pub(crate) fn value(key: &str, value: impl fmt::Display, rule: &'static str) -> SpecError {
    SpecError::Value {
        key: key.to_owned(),
        value: format!("`{value}`"),
        rule,
    }
}

/// A name that is safe in tables, paths and URLs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    const RULE: &'static str = "1 to 64 letters, digits, spaces, `.`, `_` or `-`, \
        the first and the last a letter or a digit, and not a UUID";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let edge = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let good = (1..=64).contains(&text.chars().count())
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text.chars().all(|c| c.is_alphanumeric() || " ._-".contains(c))
            // A name that reads as an id could not be told from one on the command line.
            && Uuid::parse_str(text).is_err();
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(value("name", text, Self::RULE))
        }
    }
}

impl TryFrom<String> for VmName {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The virtual hardware's generation, as in Hyper-V. It cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Generation {
    /// i440fx and BIOS.
    One,
    /// q35 and UEFI with Secure Boot.
    Two,
}

impl TryFrom<u8> for Generation {
    type Error = SpecError;
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            other => Err(value(
                "generation",
                other,
                "it must be 1 (BIOS) or 2 (UEFI)",
            )),
        }
    }
}

impl From<Generation> for u8 {
    fn from(generation: Generation) -> Self {
        match generation {
            Generation::One => 1,
            Generation::Two => 2,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&u8::from(*self), f)
    }
}

/// VM-Generation ID: changes exactly when the guest may have gone back in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationId(pub Uuid);

impl GenerationId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Boot a kernel without firmware's boot loader; for quick guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectBoot {
    /// Kernel image, an absolute path on this host.
    pub kernel: PathBuf,
    /// Initial RAM disk, an absolute path on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
}

/// The whole specification of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Version of this format.
    pub version: u32,
    /// Identity; the twin has the same.
    pub id: VmId,
    /// Name, unique on its host.
    pub name: VmName,
    /// Generation of the virtual hardware.
    pub generation: Generation,
    /// VM-Generation ID that the guest sees at its next start.
    pub generation_id: GenerationId,
    /// Virtual processors.
    pub processors: u32,
    /// Memory; a multiple of 2 MiB.
    pub memory: Bytes,
    /// UEFI Secure Boot; generation 2 only, on unless set otherwise.
    #[serde(default = "yes")]
    pub secure_boot: bool,
    /// Direct kernel boot instead of the firmware's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_boot: Option<DirectBoot>,
    /// Disks in boot order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Checkpoints, the oldest first.
    #[serde(default, rename = "checkpoint", skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointSpec>,
}

fn yes() -> bool {
    true
}

impl VmSpec {
    /// A checked specification of a new VM.
    ///
    /// # Errors
    /// [`SpecError::Value`] when a value is outside its limits.
    #[allow(clippy::too_many_arguments, reason = "what a new VM is made of")]
    pub fn new(
        name: VmName,
        generation: Generation,
        processors: u32,
        memory: Bytes,
        secure_boot: bool,
        direct_boot: Option<DirectBoot>,
        disks: Vec<DiskSpec>,
    ) -> Result<Self, SpecError> {
        let spec = Self {
            version: VERSION,
            id: VmId::random(),
            name,
            generation,
            generation_id: GenerationId::random(),
            processors,
            memory,
            secure_boot,
            direct_boot,
            disks,
            checkpoints: Vec::new(),
        };
        spec.check()?;
        Ok(spec)
    }

    /// Reads `vm.toml` strictly.
    ///
    /// # Errors
    /// [`SpecError`] names the key and the rule.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        if text.len() > MAX_TOML {
            return Err(SpecError::TooLong(text.len()));
        }
        let mut spec: Self = toml::from_str(text)?;
        if spec.version != VERSION {
            return Err(SpecError::Version(spec.version));
        }
        disk::say_slots(&mut spec.disks);
        spec.check()?;
        Ok(spec)
    }

    /// Without its checkpoints: the disks alone, as another host receives them.
    #[must_use]
    pub fn without_checkpoints(&self) -> Self {
        let mut spec = self.clone();
        spec.checkpoints.clear();
        for disk in &mut spec.disks {
            disk.overlays.clear();
        }
        spec
    }

    /// The text of `vm.toml`.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field has a TOML form")
    }

    /// Checks every value and the rules between them; whoever changes a specification does so
    /// before it counts.
    ///
    /// # Errors
    /// [`SpecError::Value`] names the key and the rule.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(1..=MAX_PROCESSORS).contains(&self.processors) {
            return Err(value("processors", self.processors, "it must be 1 to 240"));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || self.memory.0 % (2 << 20) != 0 {
            let rule = "it must be 32 MiB to 12 TiB and a multiple of 2 MiB";
            return Err(value("memory", self.memory, rule));
        }
        disk::check(self.generation, &self.disks, &self.checkpoints)?;
        if let Some(boot) = &self.direct_boot {
            for (key, path) in [
                ("kernel", Some(&boot.kernel)),
                ("initrd", boot.initrd.as_ref()),
            ] {
                if let Some(path) = path.filter(|path| !path.is_absolute()) {
                    let key = format!("direct_boot.{key}");
                    return Err(value(&key, path.display(), "it must be an absolute path"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bus, CheckpointId, DiskId, OverlaySpec};

    fn spec() -> VmSpec {
        VmSpec::new(
            "web".parse().expect("good name"),
            Generation::Two,
            2,
            Bytes(512 << 20),
            true,
            None,
            vec![DiskSpec::new(
                "disk0.raw".into(),
                Bytes(1 << 30),
                Bus::Virtio,
                0,
            )],
        )
        .expect("a good specification")
    }

    #[test]
    fn what_was_written_reads_back() {
        let spec = spec();
        assert_eq!(
            VmSpec::from_toml(&spec.to_toml()).expect("reads back"),
            spec
        );
    }

    #[test]
    fn checkpoints_read_back_and_can_be_left_out() {
        let mut spec = spec();
        let plain = spec.clone();
        for name in ["before the update", "2026-11-22 19:05:26"] {
            let id = CheckpointId::random();
            spec.checkpoints.push(CheckpointSpec {
                id,
                name: name.parse().expect("a good name"),
                time: "2026-11-22T19:05:26Z".parse().expect("a time"),
                merging: name.starts_with('b'),
            });
            spec.disks[0].overlays.push(OverlaySpec {
                checkpoint: id,
                file: format!("checkpoints/{id}").into(),
            });
        }
        let text = spec.to_toml();
        assert_eq!(VmSpec::from_toml(&text).expect(&text), spec);
        assert_eq!(spec.without_checkpoints(), plain);
    }

    #[test]
    fn a_file_of_before_there_were_buses_has_virtio_disks_in_its_order() {
        let mut old = spec();
        old.generation = Generation::One;
        let mut second = old.disks[0].clone();
        (second.id, second.file, second.slot) = (DiskId::random(), "disk1.raw".into(), 1);
        old.disks.push(second);
        let text: String = old
            .to_toml()
            .lines()
            .filter(|line| !line.starts_with("bus") && !line.starts_with("slot"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(!text.contains("slot"), "{text}");
        assert_eq!(VmSpec::from_toml(&text).expect("reads"), old);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = format!("colour = \"red\"\n{}", spec().to_toml());
        let error = VmSpec::from_toml(&text)
            .expect_err("unknown key")
            .to_string();
        assert!(error.contains("colour"), "{error}");
        let text = format!("{}\nspeed = 3\n", spec().to_toml());
        let error = VmSpec::from_toml(&text)
            .expect_err("unknown key of a disk")
            .to_string();
        assert!(error.contains("speed"), "{error}");
    }

    #[test]
    fn a_value_outside_its_limits_is_an_error_that_names_the_key() {
        for (from, to, key) in [
            ("generation = 2", "generation = 3", "generation"),
            ("processors = 2", "processors = 0", "processors"),
            ("\"512 MiB\"", "\"513 B\"", "memory"),
            ("\"1 GiB\"", "\"1 B\"", "disk.size"),
            ("disk0.raw", "../disk0.raw", "disk.file"),
            ("\"web\"", "\"../web\"", "name"),
            ("version = 1", "version = 9", "version"),
        ] {
            let text = spec().to_toml().replace(from, to);
            assert!(text.contains(to), "{from} is in the file");
            let error = VmSpec::from_toml(&text).expect_err(to).to_string();
            assert!(error.contains(key), "{to}: {error}");
        }
    }
}
