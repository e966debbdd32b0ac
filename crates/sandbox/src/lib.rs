//! What a process of a VM may do, and no more.
//!
//! ```text
//!   polluxd ── Rights ──▶ vmd: prepare ── fork ──▶ child: enter ── exec ──▶ diskd, QEMU
//!                              │                     │ what was refused, one byte each
//!                              └──── lacking ◀───────┘
//! ```
//!
//! [`Rights`] are data. [`Confinement::prepare`] opens and compiles all that they take, so that
//! [`Confinement::enter`], between fork and exec, makes system calls only. It takes away, in this order:
//!
//! 1. the network: a network namespace of its own, when the starter has `CAP_SYS_ADMIN`;
//! 2. every capability, and the user: [`user_of`] a VM, when the starter is root;
//! 3. what a set-uid program could give: `no_new_privs`; and others' access to what it makes: umask 077;
//! 4. files, TCP, signals to others and abstract sockets: Landlock, as much of it as the kernel knows;
//! 5. system calls that no program of a VM needs, and sockets that are not Unix sockets: seccomp.
//!
//! Besides what its rights name, every program may read the system's libraries and data (`/usr`,
//! `/lib*`, a few files of `/etc`), its own `/proc`, and the devices that hold nothing (`/dev/null`,
//! `/dev/urandom`...). It may execute itself and the dynamic loader.
//!
//! A feature that the kernel or a container does not give is not fatal: [`Confinement::lacking`] says
//! what is missing. Only the user is: files were given to it, so nobody else could do its work.
//!
//! A program may take away more from itself: [`allow_only`].

mod confinement;
mod filter;
mod paths;
mod rights;
mod users;

pub use confinement::{Confinement, Error};
pub use filter::{Allowed, allow_only};
pub use rights::Rights;
pub use users::{can_become, user_of};
