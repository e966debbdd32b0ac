//! Receiving into and sending from memory that operations own; all unsafe code of the server.
#![allow(unsafe_code, reason = "iovecs are handed to the kernel")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::Buffer;

/// Most pieces that one call takes (IOV_MAX of Linux).
const MAX_PIECES: usize = 1024;

/// Memory to send, in order.
#[derive(Default)]
pub(super) struct Gather<'a> {
    pieces: Vec<libc::iovec>,
    _of: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub(super) fn is_full(&self) -> bool {
        self.pieces.len() >= MAX_PIECES
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.iov_len).sum()
    }

    /// Adds what is left of `bytes` after `skip`.
    pub(super) fn bytes(&mut self, bytes: &'a [u8], skip: usize) {
        let bytes = bytes.get(skip..).unwrap_or_default();
        self.piece(bytes.as_ptr().cast_mut().cast(), bytes.len());
    }

    /// Adds what is left of `buffer` after `skip`.
    pub(super) fn buffer(&mut self, buffer: &'a Buffer, mut skip: usize) {
        for piece in buffer.pieces() {
            let over = skip.min(piece.iov_len);
            skip -= over;
            // SAFETY: `over` is at most the piece's length.
            let start = unsafe { piece.iov_base.cast::<u8>().add(over) };
            self.piece(start.cast(), piece.iov_len - over);
        }
    }

    fn piece(&mut self, iov_base: *mut libc::c_void, iov_len: usize) {
        if iov_len > 0 && !self.is_full() {
            self.pieces.push(libc::iovec { iov_base, iov_len });
        }
    }
}

/// Sends as much as there is room for; None when there is none.
pub(super) fn send(socket: BorrowedFd<'_>, gather: &mut Gather<'_>) -> io::Result<Option<usize>> {
    let message = message(&mut gather.pieces);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pieces are borrowed by `gather` and only read.
    outcome(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Receives into what is left of `first` after `skip` bytes, then into `second`. None when there
/// is nothing yet, 0 at the end.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    first: Option<(&mut Buffer, usize)>,
    second: &mut [u8],
) -> io::Result<Option<usize>> {
    let mut gather = Gather::default();
    if let Some((buffer, skip)) = &first {
        gather.buffer(buffer, *skip);
    }
    gather.piece(second.as_mut_ptr().cast(), second.len());
    let mut message = message(&mut gather.pieces);
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: both are borrowed mutably through the call, and bytes of any value may be in them.
    outcome(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a message without address, control data and pieces.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len() as _;
    message
}

fn outcome(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(Some(moved));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}
