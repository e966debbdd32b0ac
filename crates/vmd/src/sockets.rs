//! Listening sockets: made under the lock, held for as long as vmd lives.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::io::fcntl_dupfd_cloexec;

use crate::config::Socket;

/// The first descriptor that diskd inherits, sd_listen_fds(3).
pub(crate) const FIRST_INHERITED: i32 = 3;
/// vmd's own copies lie here, out of the way of what diskd will see from 3 on.
const HELD_FROM: i32 = 128;

/// A listening socket at `path`, mode 0600, in the place of a stale one.
///
/// # Errors
/// A file that is no socket is left alone.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            let fault = "there is a file that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, fault));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The caller's umask keeps others out until the mode is set.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The sockets that every diskd inherits.
pub(crate) struct Inherited {
    /// Their names in order, for `LISTEN_FDNAMES`.
    pub(crate) names: String,
    /// vmd's copies, in order.
    pub(crate) listeners: Vec<OwnedFd>,
    /// Occupy the numbers that diskd's sockets get, so that no descriptor that must survive
    /// until exec (the pipe by which std reports that exec failed) lies in their way.
    _places: Vec<OwnedFd>,
}

impl Inherited {
    /// Occupies the places; the sockets come later, under the lock.
    pub(crate) fn reserve(count: usize) -> io::Result<Self> {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        if count > HELD_FROM - FIRST_INHERITED {
            return Err(io::Error::other("too many sockets"));
        }
        let null = File::open("/dev/null")?;
        let mut places = vec![OwnedFd::from(null)];
        loop {
            let place = fcntl_dupfd_cloexec(&places[0], FIRST_INHERITED)?;
            let past = std::os::fd::AsRawFd::as_raw_fd(&place) >= FIRST_INHERITED + count;
            if past {
                break;
            }
            places.push(place);
        }
        Ok(Self {
            names: String::new(),
            listeners: Vec::new(),
            _places: places,
        })
    }

    /// Makes and holds `socket`.
    pub(crate) fn hold(&mut self, socket: &Socket) -> io::Result<()> {
        if socket.name.is_empty()
            || !socket
                .name
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b':')
        {
            return Err(io::Error::other("its name cannot stand in LISTEN_FDNAMES"));
        }
        let listener = listen(&socket.path)?;
        if let Some(user) = socket.user {
            lchown(&socket.path, Some(user), Some(user))?;
        }
        self.listeners
            .push(fcntl_dupfd_cloexec(&listener, HELD_FROM)?);
        if !self.names.is_empty() {
            self.names.push(':');
        }
        self.names.push_str(&socket.name);
        Ok(())
    }
}
