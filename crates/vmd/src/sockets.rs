//! Listening sockets: made under the lock, held for as long as they are wanted.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use rustix::io::fcntl_dupfd_cloexec;

use crate::config::Socket;

/// The first descriptor that diskd inherits, sd_listen_fds(3).
pub(crate) const FIRST_INHERITED: i32 = 3;
/// vmd's own descriptors lie from here on, out of the way of what diskd will see from 3 on.
const HELD_FROM: i32 = 128;
/// Most sockets: one place is for what diskd tells that it is ready by.
const MOST: usize = (HELD_FROM - FIRST_INHERITED - 1) as usize;

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

/// The numbers that diskd's descriptors get, occupied, so that no descriptor that must survive until
/// exec (the pipe by which std reports that exec failed) lies in their way.
pub(crate) struct Places {
    _occupied: Vec<OwnedFd>,
}

impl Places {
    /// Occupies them all; to be done before other descriptors exist.
    pub(crate) fn occupy() -> io::Result<Self> {
        let null = OwnedFd::from(File::open("/dev/null")?);
        let mut occupied = Vec::new();
        loop {
            let place = fcntl_dupfd_cloexec(&null, FIRST_INHERITED)?;
            if place.as_raw_fd() >= HELD_FROM {
                break;
            }
            occupied.push(place);
        }
        if null.as_raw_fd() < HELD_FROM {
            occupied.push(null);
        }
        Ok(Self {
            _occupied: occupied,
        })
    }
}

/// A socket that is held; its file is removed by whoever wants it gone.
struct Held {
    socket: Socket,
    listener: OwnedFd,
}

impl Held {
    fn new(socket: &Socket) -> io::Result<Self> {
        let sayable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if socket.name.is_empty() || !socket.name.bytes().all(sayable) {
            return Err(io::Error::other("its name cannot stand in LISTEN_FDNAMES"));
        }
        let listener = listen(&socket.path)?;
        if let Some(user) = socket.user {
            lchown(&socket.path, Some(user), Some(user))?;
        }
        Ok(Self {
            socket: socket.clone(),
            listener: fcntl_dupfd_cloexec(&listener, HELD_FROM)?,
        })
    }
}

/// The sockets that a diskd inherits, in order.
#[derive(Default, Clone)]
pub(crate) struct Inherited {
    held: Vec<Rc<Held>>,
}

impl Inherited {
    /// The sockets `wanted`: those of `self` that are among them, the others made.
    ///
    /// # Errors
    /// The socket that could not be made, and why; what was made is gone again.
    pub(crate) fn change(&self, wanted: &[Socket]) -> Result<Self, (Socket, io::Error)> {
        let mut next = Self::default();
        for socket in wanted {
            let made = if wanted.len() > MOST {
                Err(io::Error::other("there are too many sockets"))
            } else {
                self.find(socket)
                    .map_or_else(|| Held::new(socket).map(Rc::new), Ok)
            };
            match made {
                Ok(held) => next.held.push(held),
                Err(error) => {
                    next.remove_files_but_of(self);
                    return Err((socket.clone(), error));
                }
            }
        }
        Ok(next)
    }

    fn find(&self, socket: &Socket) -> Option<Rc<Held>> {
        self.held
            .iter()
            .find(|held| held.socket == *socket)
            .cloned()
    }

    /// Removes the files of the sockets that `kept` has not.
    pub(crate) fn remove_files_but_of(&self, kept: &Self) {
        for held in &self.held {
            let path = &held.socket.path;
            let still = kept.held.iter().any(|held| held.socket.path == *path);
            if still {
                continue;
            }
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a socket");
            }
        }
    }

    /// Their names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.held.iter().map(|held| held.socket.name.as_str())
    }

    /// Their descriptors, in order.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.held.iter().map(|held| held.listener.as_raw_fd())
    }
}
