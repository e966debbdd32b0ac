//! What a descriptor chain asks for (VIRTIO 1.2, section 5.2.6), checked and run.
//!
//! ```text
//!   readable: type u32 | reserved u32 | sector u64 | data of a write, ranges of a discard
//!   writable: data of a read, serial number        | status u8 (the very last byte)
//! ```

use block::{Device, Fault, Op};
use model::SECTOR_SIZE;
use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::DiskShape;
use super::chain::Chain;
use super::log::DirtyLog;
use super::memory::Span;
use super::room::{Patience, is_lacking};

/// Length of the serial number in bytes.
pub(super) const SERIAL: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 64;

/// Longest range of a discard or a write-zeroes request in sectors (1 GiB).
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// Most bytes that one request reads or writes. UEFI firmware asks for up to 1 GiB at once.
const MAX_DATA: u64 = 1 << 30;

/// Most bytes of one operation on the device; a longer request is run in parts, so that what is
/// below may hold a copy of an operation.
const MAX_OP: u64 = 4 << 20;

/// Most pieces of memory that the kernel takes at once (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Bytes of the header.
const HEADER: u64 = 16;
/// Bytes of a range.
const RANGE: u64 = 16;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    #[allow(clippy::cast_possible_truncation, reason = "0, 1 and 2")]
    fn byte(self) -> u8 {
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// A range of a discard or a write-zeroes request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    at: u64,
    len: u64,
    unmap: bool,
}

#[derive(Debug)]
enum Action {
    Read { at: u64 },
    Write { at: u64 },
    Flush,
    Identify,
    Discard(SmallVec<[Range; 1]>),
    WriteZeroes(SmallVec<[Range; 1]>),
}

/// A request with the guest memory that it names.
#[derive(Debug)]
pub(super) struct Request {
    action: Result<Action, Status>,
    readable: Span,
    writable: Span,
    serial: [u8; SERIAL],
}

impl Request {
    /// What `chain` asks for. None if there is no byte to write the answer to.
    pub(super) fn new(chain: Chain, disk: &DiskShape) -> Option<Self> {
        if !chain.answerable {
            return None;
        }
        let action = if chain.outside {
            Err(Status::IoError)
        } else {
            parse(&chain, disk)
        };
        Some(Self {
            action,
            readable: chain.readable,
            writable: chain.writable,
            serial: disk.serial,
        })
    }

    /// Bytes of guest memory before the status byte that may have been written.
    fn data_in(&self) -> u64 {
        self.writable.len() - 1
    }

    /// Runs it on `device`. None if there was no room and no more patience.
    pub(super) async fn run(
        &self,
        device: &impl Device,
        patience: &mut impl Patience,
    ) -> Option<Status> {
        let outcome = match &self.action {
            Err(status) => Err(Failure::Answer(*status)),
            Ok(Action::Read { at }) => {
                let len = self.data_in();
                parts(device, patience, *at, len, |at, skip, len| Op::Read {
                    at,
                    into: self.writable.buffer(skip, len),
                })
                .await
            }
            Ok(Action::Write { at }) => {
                let len = self.readable.len() - HEADER;
                parts(device, patience, *at, len, |at, skip, len| Op::Write {
                    at,
                    from: self.readable.buffer(HEADER + skip, len),
                })
                .await
            }
            Ok(Action::Flush) => run_one(device, patience, || Op::Flush).await,
            Ok(Action::Identify) => {
                // Cut to what there is room for.
                let len = usize::try_from(self.data_in()).map_or(SERIAL, |len| len.min(SERIAL));
                self.writable.write(0, &self.serial[..len]);
                Ok(())
            }
            Ok(Action::Discard(ranges)) => {
                each(device, patience, ranges, |range| Op::Discard {
                    at: range.at,
                    len: range.len,
                })
                .await
            }
            Ok(Action::WriteZeroes(ranges)) => {
                each(device, patience, ranges, |range| Op::WriteZeroes {
                    at: range.at,
                    len: range.len,
                    unmap: range.unmap,
                })
                .await
            }
        };
        match outcome {
            Ok(()) => Some(Status::Ok),
            Err(Failure::Answer(status)) => Some(status),
            Err(Failure::NoRoom) => None,
        }
    }

    /// Writes the status byte, and returns the length for the used ring in bytes.
    pub(super) fn answer(&self, status: Status) -> u32 {
        self.writable.write(self.data_in(), &[status.byte()]);
        u32::try_from(self.writable.len()).unwrap_or(u32::MAX)
    }

    /// Marks everything that may have been written for it.
    pub(super) fn mark(&self, log: &DirtyLog) {
        self.writable.mark(log);
    }
}

/// Why a request did not do what it should.
enum Failure {
    /// The guest is told.
    Answer(Status),
    /// There was no room and no more patience.
    NoRoom,
}

/// Runs what `make` makes, again and again as long as there is no room for it.
async fn run_one(
    device: &impl Device,
    patience: &mut impl Patience,
    make: impl Fn() -> Op,
) -> Result<(), Failure> {
    loop {
        let op = make();
        let mutates = op.mutates();
        match device.run(op).await.outcome {
            Ok(()) => return Ok(()),
            Err(fault) if mutates && is_lacking(fault) => {
                if !patience.wait().await {
                    return Err(Failure::NoRoom);
                }
            }
            Err(
                Fault::Range | Fault::ReadOnly | Fault::FlushFailed | Fault::Corrupt | Fault::Os(_),
            ) => return Err(Failure::Answer(Status::IoError)),
        }
    }
}

/// Runs `make(at, bytes before, length)` for consecutive parts of `len` bytes at `at`.
async fn parts(
    device: &impl Device,
    patience: &mut impl Patience,
    at: u64,
    len: u64,
    make: impl Fn(u64, u64, u64) -> Op,
) -> Result<(), Failure> {
    let mut done = 0;
    while done < len {
        let part = MAX_OP.min(len - done);
        run_one(device, patience, || make(at + done, done, part)).await?;
        done += part;
    }
    Ok(())
}

async fn each(
    device: &impl Device,
    patience: &mut impl Patience,
    ranges: &[Range],
    make: impl Fn(&Range) -> Op,
) -> Result<(), Failure> {
    for range in ranges {
        run_one(device, patience, || make(range)).await?;
    }
    Ok(())
}

/// The bytes of `len` bytes at `sector`, if they are on the disk.
fn place(sector: u64, len: u64, disk: &DiskShape) -> Result<u64, Status> {
    let at = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = at.checked_add(len).ok_or(Status::IoError)?;
    if len == 0 || len % SECTOR_SIZE != 0 || end > disk.size() {
        return Err(Status::IoError);
    }
    Ok(at)
}

fn data(span: &Span, before: u64, after: u64) -> Result<u64, Status> {
    let len = span.len().checked_sub(before + after);
    let len = len.filter(|len| *len <= MAX_DATA && span.pieces() <= MAX_PIECES);
    len.ok_or(Status::IoError)
}

fn parse(chain: &Chain, disk: &DiskShape) -> Result<Action, Status> {
    let mut header = [0; 16];
    if !chain.readable.read(0, &mut header) {
        return Err(Status::IoError);
    }
    let [t0, t1, t2, t3, _, _, _, _, s @ ..] = header;
    let sector = u64::from_le_bytes(s);
    let writable_disk = if disk.read_only {
        Err(Status::IoError)
    } else {
        Ok(())
    };
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let len = data(&chain.writable, 0, 1)?;
            let at = place(sector, len, disk)?;
            Ok(Action::Read { at })
        }
        VIRTIO_BLK_T_OUT => {
            writable_disk?;
            let len = data(&chain.readable, HEADER, 0)?;
            let at = place(sector, len, disk)?;
            Ok(Action::Write { at })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Action::Identify),
        VIRTIO_BLK_T_DISCARD => {
            writable_disk?;
            let ranges = ranges(&chain.readable, disk)?;
            // VIRTIO 1.2, section 5.2.6.2: a discard has no unmap flag.
            if ranges.iter().any(|range| range.unmap) {
                return Err(Status::Unsupported);
            }
            Ok(Action::Discard(ranges))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            writable_disk?;
            Ok(Action::WriteZeroes(ranges(&chain.readable, disk)?))
        }
        _ => Err(Status::Unsupported),
    }
}

/// The ranges after the header.
fn ranges(readable: &Span, disk: &DiskShape) -> Result<SmallVec<[Range; 1]>, Status> {
    let len = readable.len() - HEADER;
    let count = usize::try_from(len / RANGE).unwrap_or(usize::MAX);
    if len == 0 || len % RANGE != 0 || count > MAX_RANGES {
        return Err(Status::IoError);
    }
    let mut ranges = SmallVec::with_capacity(count);
    for number in 0..len / RANGE {
        let mut bytes = [0; 16];
        if !readable.read(HEADER + number * RANGE, &mut bytes) {
            return Err(Status::IoError);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(f);
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoError);
        }
        let len = u64::from(sectors) * SECTOR_SIZE;
        ranges.push(Range {
            at: place(sector, len, disk)?,
            len,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        });
    }
    Ok(ranges)
}
