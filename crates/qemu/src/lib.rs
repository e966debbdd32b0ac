//! QEMU: which binary, which accelerator, which arguments, and QMP.
//!
//! ```text
//!   Qemu::find ----> Accelerator::probe ---.
//!   Firmware::find --------------------------> Machine::arguments ---> pollux-vmd starts it
//!   model::VmSpec + RunPaths --------------'                                 |
//!                                                                 Qmp::connect(run.qmp)
//! ```
//!
//! Nothing here starts a guest: [`Machine`] is a pure function from a specification to an
//! argument vector, and `pollux-vmd` runs it. The only processes that this crate starts are
//! `--version` and the probe, both with a limit and reaped before the call returns.

mod accelerator;
mod binary;
mod disk;
mod firmware;
mod machine;
mod plug;
mod qmp;

pub use accelerator::{Accelerator, ProbeError};
pub use binary::{FindError, MINIMUM_VERSION, Qemu, Version};
pub use disk::Disk;
pub use firmware::{Firmware, FirmwareError};
pub use machine::{Machine, MachineError, RunPaths};
pub use plug::Unplugged;
pub use qmp::{Event, Qmp, QmpError, RunStatus};
