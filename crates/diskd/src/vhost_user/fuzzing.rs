//! What fuzz targets call: hostile bytes in, no panic and no broken promise out.
//!
//! - [`request`]: descriptors and what they say, down to a device that checks what it is asked.
//! - [`inflight`]: an in-flight area that was written by somebody else.
//! - [`messages`]: the messages of a connection, to a server that goes on from one to the next.

use std::fs::File;
use std::future::pending;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use block::{Device, Done, Fault, Op};
use futures_util::FutureExt;
use model::{DiskId, SECTOR_SIZE};
use ring::Ring;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::chain::{self, DESCRIPTOR};
use super::inflight::{InflightArea, Recovered};
use super::log::DirtyLog;
use super::memory::{Memory, RegionSpec};
use super::request::{Request, Status};
use super::room::Patience;
use super::{DiskInfo, DiskShape, serve};

/// Size of the disk that is asked, in bytes.
const DISK: u64 = 1 << 20;
const PAGE: usize = 4096;
/// Most messages of one connection: the answers fit the socket's buffer, nobody reads them.
const MESSAGES: usize = 64;

/// A disk of zeroes that checks the promises which a front end makes to a device.
struct Zeroes {
    fault: Option<Fault>,
}

impl Device for Zeroes {
    fn size(&self) -> u64 {
        DISK
    }

    async fn run(&self, op: Op) -> Done {
        let (at, len) = op.range();
        assert!(at.checked_add(len).is_some_and(|end| end <= DISK), "{op:?}");
        assert!((at | len) % SECTOR_SIZE == 0, "{op:?}");
        if let Some(fault) = self.fault {
            return op.refuse(fault);
        }
        let buffer = match op {
            Op::Read { mut into, .. } => {
                let len = into.len();
                into.fill_zero(0, len);
                Some(into)
            }
            Op::Write { from, .. } => {
                from.copy_to_slice(0, &mut vec![0; from.len()]);
                Some(from)
            }
            Op::Discard { .. } | Op::WriteZeroes { .. } | Op::Flush => None,
        };
        Done {
            outcome: Ok(()),
            buffer,
        }
    }
}

/// Waits for nothing.
struct Never;

impl Patience for Never {
    async fn wait(&mut self) -> bool {
        false
    }
}

fn info(read_only: bool) -> DiskInfo {
    DiskInfo {
        id: DiskId(uuid::Uuid::nil()),
        read_only,
    }
}

/// A file with `bytes`, and zeroes up to `len`.
fn file(bytes: &[u8], len: usize) -> File {
    let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory for a test");
    ftruncate(&file, len.max(bytes.len()) as u64).expect("memory for a test");
    let mut file = File::from(file);
    file.write_all(bytes).expect("memory for a test");
    file
}

/// The request at a descriptor. The first byte holds switches (indirect descriptors, read-only, no room),
/// the second is the head; the others are the guest's memory from address 0 on, which begins
/// with the descriptor table and is cut into two regions.
pub fn request(bytes: &[u8]) {
    let &[switches, head, ref content @ ..] = bytes else {
        return;
    };
    let len = content.len().next_multiple_of(PAGE).max(PAGE);
    let backing = file(content, 2 * len);
    let cut = (len / 2) as u64;
    let mut memory = Memory::default();
    for (from, to) in [(0, cut), (cut, 2 * len as u64)] {
        let spec = RegionSpec {
            guest: from,
            user: from,
            len: to - from,
            offset: from,
        };
        memory = memory.with(spec, &backing).expect("it is well formed");
    }
    let memory = Arc::new(memory);
    let table = memory.area(0, 64 * DESCRIPTOR).expect("it is there");
    let Ok(chain) = chain::walk(&table, head.into(), &memory, switches & 1 != 0) else {
        return;
    };
    let disk = DiskShape::new(info(switches & 2 != 0), DISK);
    let Some(request) = Request::new(chain, &disk) else {
        return;
    };
    let lacking = Fault::Os(libc::ENOSPC);
    let device = Zeroes {
        fault: (switches & 4 != 0).then_some(lacking),
    };
    let outcome = request.run(&device, &mut Never).now_or_never();
    let status = outcome.expect("nothing waits");
    request.answer(status.unwrap_or(Status::IoError));
    let log = DirtyLog::open(&file(&[], PAGE), 0, 8).expect("it is well formed");
    request.mark(&log);
}

/// Recovery from an in-flight area. The first two bytes are the index of the used ring, the others
/// are the area of a queue of 16.
pub fn inflight(bytes: &[u8]) {
    let &[low, high, ref content @ ..] = bytes else {
        return;
    };
    let mut used = u16::from_le_bytes([low, high]);
    let size = 16;
    let area = InflightArea::open(&file(content, PAGE), 0, PAGE as u64, 1, size);
    let area = area.expect("it is well formed");
    let queue = || area.queue(0, size).expect("it is there");
    let mut first = queue();
    let Ok(recovered) = first.recover(used) else {
        return;
    };
    let heads = match recovered {
        Recovered::Fresh => Vec::new(),
        Recovered::Heads(heads) => heads,
    };
    let mut sorted = heads.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert!(sorted.len() == heads.len() && sorted.iter().all(|head| *head < size));
    // Answer half of them, take one more, and be killed.
    let (answered, left) = heads.split_at(heads.len() / 2);
    for head in answered {
        first.link(*head);
        used = used.wrapping_add(1);
    }
    let mut expected = left.to_vec();
    if let Some(free) = (0..size).find(|head| !heads.contains(head)) {
        first.take(free);
        expected.push(free);
    }
    let again = queue().recover(used).expect("we wrote it ourselves");
    let Recovered::Heads(mut again) = again else {
        panic!("it is not fresh any more")
    };
    // Counters of the area's writer may be at their end, so the order is not compared.
    again.sort_unstable();
    expected.sort_unstable();
    assert_eq!(again, expected);
}

/// A connection. The first byte says whether everything that is offered is accepted first. Then, for each
/// message: its code, the flags of its header, how many descriptors of which kind come with it,
/// the length of its body, the body. All bytes are also the memory that messages bring.
pub fn messages(bytes: &[u8]) {
    let Some((switches, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut stream = UnixStream::connect_addr(server()).expect("the server goes on");
    let memory = file(bytes, 16 * PAGE);
    if switches & 1 != 0 {
        let features = DiskShape::new(info(false), DISK).features();
        // GET_FEATURES, SET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES.
        for (code, value) in [
            (1, None),
            (2, Some(features)),
            (15, None),
            (16, Some(0x922b)),
        ] {
            let body = value.map(u64::to_ne_bytes);
            let body = body.as_ref().map_or(&[][..], |body| &body[..]);
            send(&stream, code, 1, &[], body);
        }
    }
    for _ in 0..MESSAGES {
        let &[code, flags, kind, len, ref body @ ..] = rest else {
            break;
        };
        let (body, after) = body.split_at(body.len().min(len.into()));
        rest = after;
        let brought = match kind & 3 {
            0 => Some(OwnedFd::from(memory.try_clone().expect("a descriptor"))),
            1 => eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
            2 => UnixStream::pair().ok().map(|(ours, _)| ours.into()),
            _ => None,
        };
        let count = usize::from(kind >> 2 & 7);
        let files: Vec<_> = brought
            .iter()
            .flat_map(|fd| vec![fd.as_fd(); count])
            .collect();
        if !send(&stream, code.into(), flags.into(), &files, body) {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    // Until the server has done with it; a reset is as good.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Whether the message was sent.
fn send(stream: &UnixStream, code: u32, flags: u32, fds: &[BorrowedFd<'_>], body: &[u8]) -> bool {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let header = [code, flags, len].map(u32::to_ne_bytes).concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let message = [IoSlice::new(&header), IoSlice::new(body)];
    sendmsg(stream, &message, &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// The address of a server that runs until the process ends.
fn server() -> &'static SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    ADDRESS.get_or_init(|| {
        let name = format!("pollux-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a new name");
        std::thread::spawn(move || {
            let ring = Ring::new(64).expect("a ring");
            let device = Rc::new(Zeroes { fault: None });
            let _handle = serve(&ring, device, listener, info(false)).expect("a thread");
            ring.block_on(pending::<()>());
        });
        address
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator without a seed of its own: the tests of this file need any bytes at all.
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        testkit::Rng::new(seed).bytes(len)
    }

    #[test]
    fn every_target_takes_random_bytes() {
        for seed in 0..200 {
            request(&bytes(seed, 2000));
            inflight(&bytes(seed, 300));
            let mut area = bytes(seed, 300);
            // The version and the length of an area that is believed, a used ring that fits.
            area[10..14].copy_from_slice(&[1, 0, 16, 0]);
            area[0..2].copy_from_slice(&[0, 0]);
            area[16..18].copy_from_slice(&[0, 0]);
            inflight(&area);
            let mut connection = bytes(seed, 400);
            connection[0] = 1;
            messages(&connection);
        }
    }
}
