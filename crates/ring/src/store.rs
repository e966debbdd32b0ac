//! A file behind a ring.
#![allow(unsafe_code, reason = "iovecs are handed to the kernel")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

use block::{Buffer, Done, Fault, Store};
use rustix::fs::{AtFlags, SeekFrom, StatxFlags, fstatfs, seek, statx};
use rustix::io::Errno;

use crate::Ring;
use crate::call::{Call, Pieces};
use crate::operation::{Cancel, Payload};

/// Most pieces that one call takes (IOV_MAX of Linux).
const MAX_PIECES: usize = 1024;
/// Most bytes of one call; below the kernel's own limit of 2 GiB less a page.
const MAX_CALL: usize = 1 << 30;
/// Taken when the kernel (before 6.1) does not tell what O_DIRECT needs.
const SAFE_ALIGNMENT: u64 = 4096;
/// Up to this it takes less time to copy memory than to have another thread do it. Past it the owner
/// would keep others waiting, and one processor alone copies slower than two.
const CALL_HERE: usize = 128 << 10;
/// Largest write of zeroes where the file system cannot punch holes.
const ZEROES: u64 = 1 << 20;
/// f_type of tmpfs and ramfs (statfs(2)): they take O_DIRECT and ignore it.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A [`Store`] over one file. O_DIRECT where the file system takes it.
///
/// On an unclean end nothing is repaired here: what was synced is there, the rest may be torn.
#[derive(Clone)]
pub struct RingStore {
    ring: Ring,
    file: Rc<OwnedFd>,
    alignment: u64,
    /// On tmpfs every operation of the ring would be handed to a thread; a call here costs less,
    /// and waits for no device.
    in_memory: bool,
}

impl RingStore {
    /// Opens `path`; with `create` an absent file is made (empty, mode 0600).
    ///
    /// # Errors
    /// What the operating system says; the path is not in it.
    pub fn open(ring: &Ring, path: &Path, read_only: bool, create: bool) -> io::Result<Self> {
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(!read_only)
                .create(create && !read_only)
                .truncate(false)
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let direct = match open(libc::O_DIRECT) {
            Ok(file) => direct_alignment(&file)?.map(|alignment| (file, alignment)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => return Err(error),
        };
        let (file, alignment) = match direct {
            Some(direct) => direct,
            None => (open(0)?, 1),
        };
        Ok(Self {
            ring: ring.clone(),
            in_memory: is_in_memory(&file)?,
            file: Rc::new(file.into()),
            alignment,
        })
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn len(&self) -> io::Result<u64> {
        let len = rustix::fs::fstat(&*self.file)?.st_size;
        Ok(u64::try_from(len).expect("a length is not negative"))
    }

    /// Whether the file has no content.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Moves the bytes of `buffer` from `done` on; true in the result when all were moved, false
    /// when the file ended before.
    async fn transfer(
        &self,
        at: u64,
        mut buffer: Buffer,
        write: bool,
    ) -> (Result<usize, Fault>, Buffer) {
        let mut done = 0;
        while done < buffer.len() {
            let Some(offset) = at.checked_add(done as u64) else {
                return (Err(Fault::Range), buffer);
            };
            let (call, pieces) = self.call(offset, &buffer, done, write);
            let result = if self.in_memory && buffer.len() <= CALL_HERE {
                call.perform()
            } else {
                let payload = Payload::Bytes {
                    buffer,
                    _pieces: pieces,
                    _file: Rc::clone(&self.file),
                };
                let (result, payload) = self.ring.start(call, payload, Cancel::Never).await;
                let Payload::Bytes { buffer: back, .. } = payload else {
                    unreachable!("an operation gives back the payload it was started with")
                };
                buffer = back;
                result
            };
            match result {
                // A write that moves nothing and says nothing would be retried for ever.
                0 if write => return (Err(Fault::Os(libc::EIO)), buffer),
                0 => break,
                1.. => {
                    done += usize::try_from(result).expect("positive");
                    // Only the end of the file makes O_DIRECT stop inside a sector.
                    if !write && (done as u64) % self.alignment != 0 {
                        break;
                    }
                }
                error if -error == libc::EINTR || -error == libc::EAGAIN => {}
                error => return (Err(Fault::Os(-error)), buffer),
            }
        }
        (Ok(done), buffer)
    }

    /// A call for what is left of `buffer` after `done` bytes. It is good for as long as the
    /// buffer and the pieces are.
    fn call(
        &self,
        at: u64,
        buffer: &Buffer,
        done: usize,
        write: bool,
    ) -> (Call, Option<Box<[libc::iovec]>>) {
        let fd = self.file.as_raw_fd();
        let (memory, pieces) = if let [piece] = buffer.pieces() {
            let piece = libc::iovec {
                // SAFETY: `done` is less than the piece's length.
                iov_base: unsafe { piece.iov_base.cast::<u8>().add(done) }.cast(),
                iov_len: (piece.iov_len - done).min(MAX_CALL),
            };
            (Pieces::One(piece), None)
        } else {
            let pieces = rest(buffer.pieces(), done);
            let many = Pieces::Many {
                first: pieces.as_ptr(),
                count: u32::try_from(pieces.len()).expect("1024 at most"),
            };
            (many, Some(pieces))
        };
        let call = if write {
            let from = memory;
            Call::Write { fd, at, from }
        } else {
            let into = memory;
            Call::Read { fd, at, into }
        };
        (call, pieces)
    }

    async fn allocate(&self, at: u64, len: u64, mode: i32) -> Result<(), Fault> {
        if len == 0 {
            return Ok(());
        }
        loop {
            let fd = self.file.as_raw_fd();
            let call = Call::Allocate { fd, mode, at, len };
            let payload = Payload::File {
                _file: Rc::clone(&self.file),
            };
            match self.ring.start(call, payload, Cancel::Never).await.0 {
                0.. => return Ok(()),
                error if -error == libc::EINTR || -error == libc::EAGAIN => {}
                error if -error == libc::EOPNOTSUPP => return self.write_zeroes(at, len).await,
                error => return Err(Fault::Os(-error)),
            }
        }
    }

    /// For file systems without holes: the range must be aligned there.
    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Fault> {
        let mut buffer = Buffer::zeroed(usize::try_from(len.min(ZEROES)).expect("1 MiB at most"));
        let mut done = 0;
        while done < len {
            if len - done < buffer.len() as u64 {
                buffer = Buffer::zeroed(usize::try_from(len - done).expect("1 MiB at most"));
            }
            let step = buffer.len() as u64;
            let (moved, back) = self.transfer(at + done, buffer, true).await;
            moved?;
            buffer = back;
            done += step;
        }
        Ok(())
    }
}

/// What is left of `pieces` after `done` bytes, at most what one call takes.
fn rest(pieces: &[libc::iovec], mut done: usize) -> Box<[libc::iovec]> {
    let mut left = MAX_CALL;
    let mut taken = Vec::with_capacity(pieces.len().min(MAX_PIECES));
    for piece in pieces {
        if done >= piece.iov_len {
            done -= piece.iov_len;
            continue;
        }
        let len = (piece.iov_len - done).min(left);
        taken.push(libc::iovec {
            // SAFETY: `done` is less than the piece's length.
            iov_base: unsafe { piece.iov_base.cast::<u8>().add(done) }.cast(),
            iov_len: len,
        });
        left -= len;
        done = 0;
        if taken.len() == MAX_PIECES || left == 0 {
            break;
        }
    }
    taken.into_boxed_slice()
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    #[allow(
        clippy::unnecessary_cast,
        reason = "f_type differs between architectures"
    )]
    let kind = fstatfs(file)?.f_type as i64;
    Ok(IN_MEMORY.contains(&kind))
}

/// What O_DIRECT needs of offsets, lengths and addresses; none where it is of no use.
fn direct_alignment(file: &File) -> io::Result<Option<u64>> {
    if is_in_memory(file)? {
        return Ok(None);
    }
    let Ok(told) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(Some(SAFE_ALIGNMENT));
    };
    if told.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(Some(SAFE_ALIGNMENT));
    }
    let needed = told.stx_dio_mem_align.max(told.stx_dio_offset_align);
    let usable = told.stx_dio_offset_align != 0 && needed.is_power_of_two();
    Ok(usable.then_some(u64::from(needed)))
}

impl Store for RingStore {
    fn alignment(&self) -> u64 {
        self.alignment
    }

    async fn read(&self, at: u64, into: Buffer) -> Done {
        let (moved, mut buffer) = self.transfer(at, into, false).await;
        let outcome = moved.map(|moved| buffer.fill_zero(moved, buffer.len() - moved));
        Done {
            outcome,
            buffer: Some(buffer),
        }
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let (moved, buffer) = self.transfer(at, from, true).await;
        Done {
            outcome: moved.map(drop),
            buffer: Some(buffer),
        }
    }

    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.allocate(at, len, mode).await
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.allocate(at, len, libc::FALLOC_FL_ZERO_RANGE).await
    }

    async fn sync(&self) -> Result<(), Fault> {
        loop {
            let fd = self.file.as_raw_fd();
            let call = Call::Sync { fd };
            let payload = Payload::File {
                _file: Rc::clone(&self.file),
            };
            match self.ring.start(call, payload, Cancel::Never).await.0 {
                0.. => return Ok(()),
                error if -error == libc::EINTR || -error == libc::EAGAIN => {}
                error => return Err(Fault::Os(-error)),
            }
        }
    }

    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault> {
        // Two blocking calls on the owner thread: looks at the file system's map of the file, which is
        // in memory as a rule; the ring has no operation for them. Fine on a local file system, not on
        // one across a network. Whoever asks many times gives way to others between.
        let start = match self.seek(range.start, true) {
            Ok(Some(start)) if start < range.end => start,
            Ok(_) => return Ok(None),
            // A file system that cannot tell.
            Err(Fault::Os(libc::EINVAL | libc::EOPNOTSUPP)) => return Ok(Some(range)),
            Err(fault) => return Err(fault),
        };
        // Behind the last data is a hole, if only the one at the end of the file.
        let end = self.seek(start, false)?.unwrap_or(range.end);
        Ok(Some(start..end.min(range.end)))
    }
}

impl RingStore {
    /// The next byte from `at` on that takes space (`data`), or that does not. None past the last.
    fn seek(&self, at: u64, data: bool) -> Result<Option<u64>, Fault> {
        let to = if data {
            SeekFrom::Data(at)
        } else {
            SeekFrom::Hole(at)
        };
        // Nobody uses the position of the file.
        match seek(&*self.file, to) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(Fault::Os(error.raw_os_error())),
        }
    }
}

impl AsFd for RingStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
