//! UEFI firmware of generation 2, and a VM's own copy of its variables.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/usr/share/OVMF";
/// With Secure Boot enforced and Microsoft's keys enrolled. `OVMF_CODE_4M.ms.fd` is a link to
/// `OVMF_CODE_4M.secboot.fd` in Debian; the variables are what differs.
const SECURE: (&str, &str) = ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd");
const PLAIN: (&str, &str) = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd");
/// Longest template that is copied; the 4M variables have 528 KiB.
const MAX_VARIABLES: u64 = 8 << 20;

/// The firmware files of a generation 2 VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The code, shared and read-only.
    pub code: PathBuf,
    /// Template of the variables.
    pub variables: PathBuf,
    /// Whether the code needs SMM and the variables enforce Secure Boot.
    pub secure_boot: bool,
}

/// What is wrong with the firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// Not installed.
    #[error("UEFI firmware {} is missing (Debian: install ovmf)", .0.display())]
    Absent(PathBuf),
    /// A VM's copy of the variables could not be made.
    #[error("cannot copy UEFI variables {} to {}", template.display(), copy.display())]
    Copy {
        /// The template.
        template: PathBuf,
        /// The VM's own file.
        copy: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Firmware {
    /// The installed firmware, with or without Secure Boot.
    ///
    /// # Errors
    /// [`FirmwareError::Absent`] names the package.
    pub fn find(secure_boot: bool) -> Result<Self, FirmwareError> {
        Self::find_in(Path::new(FOLDER), secure_boot)
    }

    fn find_in(folder: &Path, secure_boot: bool) -> Result<Self, FirmwareError> {
        let (code, variables) = if secure_boot { SECURE } else { PLAIN };
        let [code, variables] = [code, variables].map(|name| folder.join(name));
        for file in [&code, &variables] {
            if !file.is_file() {
                return Err(FirmwareError::Absent(file.clone()));
            }
        }
        Ok(Self {
            code,
            variables,
            secure_boot,
        })
    }

    /// Makes the VM's own variables at `copy` unless they are there. Returns whether they were
    /// made. After a crash the file is there whole or not at all.
    ///
    /// # Errors
    /// [`FirmwareError::Copy`].
    pub fn prepare_variables(&self, copy: &Path) -> Result<bool, FirmwareError> {
        if copy.exists() {
            return Ok(false);
        }
        let made = fs::metadata(&self.variables).and_then(|found| {
            if found.len() > MAX_VARIABLES {
                return Err(io::Error::other("the template is too long"));
            }
            durable::replace(copy, &fs::read(&self.variables)?)
        });
        match made {
            Ok(()) => Ok(true),
            Err(source) => Err(FirmwareError::Copy {
                template: self.variables.clone(),
                copy: copy.to_owned(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_firmware_names_the_package() {
        let folder = tempfile::tempdir().expect("scratch folder");
        let error = Firmware::find_in(folder.path(), true).expect_err("nothing there");
        assert!(error.to_string().contains("install ovmf"), "{error}");
    }

    #[test]
    fn variables_that_a_guest_changed_are_kept() {
        let folder = tempfile::tempdir().expect("scratch folder");
        for name in [SECURE.0, SECURE.1] {
            fs::write(folder.path().join(name), name).expect("write");
        }
        let firmware = Firmware::find_in(folder.path(), true).expect("both are there");
        let copy = folder.path().join("vars.fd");
        assert!(firmware.prepare_variables(&copy).expect("copied"));
        assert_eq!(fs::read(&copy).expect("read"), SECURE.1.as_bytes());
        fs::write(&copy, "changed").expect("write");
        assert!(!firmware.prepare_variables(&copy).expect("kept"));
        assert_eq!(fs::read(&copy).expect("read"), b"changed");
    }
}
