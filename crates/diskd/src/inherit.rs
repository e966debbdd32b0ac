//! Listening sockets and other descriptors that the supervisor passes, as systemd does (sd_listen_fds(3)).
#![allow(unsafe_code, reason = "inherited descriptors are known by number only")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first inherited descriptor.
const FIRST: RawFd = 3;
/// More than a VM has sockets; bounds what a wrong environment makes us touch.
const MOST: usize = 64;

/// What is wrong with the environment.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Not started by a supervisor.
    #[error("{0} is not set: pollux-diskd is started by pollux-vmd, which passes its sockets")]
    Missing(&'static str),
    /// Number and names disagree.
    #[error("LISTEN_FDS is `{count}` and LISTEN_FDNAMES is `{names}`: they must agree, at most 64")]
    Mismatch {
        /// As it is set.
        count: String,
        /// As it is set.
        names: String,
    },
    /// A descriptor that is not open.
    #[error("inherited descriptor {0} is not open")]
    Closed(RawFd, #[source] std::io::Error),
}

/// The inherited descriptors with their names. To be called once, before anything else is opened.
///
/// # Errors
/// [`InheritError`]
pub fn descriptors() -> Result<Vec<(String, OwnedFd)>, InheritError> {
    let get = |key| std::env::var(key).map_err(|_unset| InheritError::Missing(key));
    let (count, names) = (get("LISTEN_FDS")?, get("LISTEN_FDNAMES")?);
    let list: Vec<&str> = names.split(':').collect();
    if count.parse() != Ok(list.len()) || list.len() > MOST {
        return Err(InheritError::Mismatch { count, names });
    }
    (FIRST..)
        .zip(list)
        .map(|(number, name)| {
            // SAFETY: only asked for its flags.
            let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
            if open < 0 {
                let error = std::io::Error::last_os_error();
                return Err(InheritError::Closed(number, error));
            }
            // SAFETY: open, passed to this process for this purpose, and taken once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            fcntl_setfd(&descriptor, FdFlags::CLOEXEC)
                .map_err(|errno| InheritError::Closed(number, errno.into()))?;
            Ok((name.to_owned(), descriptor))
        })
        .collect()
}
