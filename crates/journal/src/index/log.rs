//! The file of the index: a snapshot, and records that are appended.
//!
//! ```text
//!   | header | snapshot: records | record | record | record | zeroes, or the rest of one that was torn
//!                                ^ log_at          ^ flushed ^ end
//! ```
//!
//! Each record has the hash of the one before it and its own, and says up to which byte the file was
//! known to be durable when it was appended. So at opening:
//! - what does not verify before `log_at` is damage, as the file was put there durably;
//! - the first record after it that does not verify ends the log: it was torn, unless an
//!   intact one further on says that the file was durable beyond it;
//! - records past what the last one says to be durable are in doubt.
//!
//! On a disk that is full to the last block records go on being appended, or nothing would ever be given
//! up: a file that is written anew ends with zeroes, in which the next records have room, and the
//! space for writing it anew is taken beforehand ([`reserve`]): by the file of zeroes that it is written
//! into. (Where a file system writes elsewhere what is written over, that space is given back first.)

use std::collections::VecDeque;
use std::sync::Arc;

use durable::{File, Folder, Group, Need};
use uuid::Uuid;

use super::code::{Reading, Tables, snapshot, write};
use super::{Change, Entry, INDEX, Index, first};
use crate::JournalError;
use crate::packs::Memory;

/// What it is called while it is written, and before: then it keeps the space.
pub(crate) const NEW_INDEX: &str = ".index.new";

const MAGIC: &[u8; 8] = b"POLLUXJN";
const VERSION: u32 = 2;
/// Magic, version, zero, where the log begins, random id, hash of these.
const HEADER: usize = 72;
const RECORD_MAGIC: [u8; 4] = *b"PXJR";
/// Magic, length of the payload, how far the file was durable, hash of the record before.
const HEAD: usize = 32;
/// Where in it that hash is.
const BEFORE: usize = 16;
/// The hash after the payload.
const HASH: usize = 16;
/// Longest payload: a lineage of the most terms fits.
const MAX_PAYLOAD: usize = 4 << 20;
/// Longest index in bytes.
const MAX_INDEX: u64 = 1 << 30;
/// A log shorter than this is not worth a new snapshot.
const MIN_LOG: u64 = 64 << 10;
/// Zeroes at the end of a file that is written anew.
const ROOM: usize = 16 << 10;
/// Bytes read at once.
const WINDOW: usize = 256 << 10;
/// How often a file that seems damaged is read by who does not write it.
const ATTEMPTS: u32 = 16;
/// Most places after a torn record that are looked at.
const MAX_TRIED: u32 = 4096;

type Chain = [u8; HASH];

/// The hash of a record.
fn chain(head: &[u8], payload: &[u8]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(payload);
    let mut hash = [0; HASH];
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..HASH]);
    hash
}

/// A record that nobody knows to be durable.
#[derive(Debug)]
pub(crate) struct Doubt {
    /// Its first byte.
    pub(crate) at: u64,
    /// The segments that came with it.
    pub(crate) entries: Vec<Entry>,
}

/// What was found in a file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) index: Index,
    /// None: it has an older format.
    pub(crate) log: Option<Log>,
    /// The oldest first; they are part of `index`.
    pub(crate) doubts: Vec<Doubt>,
    /// Something follows the last record.
    pub(crate) is_torn: bool,
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Log {
    file: Arc<dyn File>,
    tables: Tables,
    end: u64,
    /// Everything before is durable.
    flushed: u64,
    /// Hash of the last record.
    last: Chain,
    /// Writing it anew is tried when it gets this long.
    limit: u64,
}

fn record(payload: &[u8], flushed: u64, last: &mut Chain, out: &mut Vec<u8>) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("at most MAX_PAYLOAD");
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&flushed.to_le_bytes());
    out.extend_from_slice(last);
    out.extend_from_slice(payload);
    *last = chain(&out[start..start + HEAD], payload);
    out.extend_from_slice(last);
}

/// A file with a snapshot of `index` and nothing else.
fn fresh(index: &Index) -> Result<(Vec<u8>, Tables, Chain), JournalError> {
    let (payloads, tables) = snapshot(index)?;
    let len: usize = payloads.iter().map(|it| it.len() + HEAD + HASH).sum();
    let mut bytes = Vec::with_capacity(HEADER + len);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&((HEADER + len) as u64).to_le_bytes());
    // Records of the file that was here before do not fit this one.
    bytes.extend_from_slice(Uuid::new_v4().as_bytes());
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    let mut last = first_link(hash.as_bytes());
    for payload in payloads {
        if payload.len() > MAX_PAYLOAD {
            return Err(JournalError::IndexDamaged("gets too long a record"));
        }
        record(&payload, 0, &mut last, &mut bytes);
    }
    Ok((bytes, tables, last))
}

fn first_link(hash: &[u8; 32]) -> Chain {
    let mut link = [0; HASH];
    link.copy_from_slice(&hash[..HASH]);
    link
}

/// A file that is ready to take the place of the one that is there.
#[derive(Debug)]
pub(crate) struct Prepared(Log);

impl Prepared {
    /// Writes the state anew, durably, beside the file that is there.
    pub(crate) fn write(
        folder: &dyn Folder,
        index: &Index,
        group: &Group,
    ) -> Result<Self, JournalError> {
        let (mut bytes, tables, last) = fresh(index)?;
        let end = bytes.len() as u64;
        bytes.resize(bytes.len() + ROOM, 0);
        let made = into_reserve(folder, &bytes).and_then(|file| {
            group.flush(vec![Need::Content(file.clone())])?;
            Ok(file)
        });
        let file = made.map_err(|source| {
            // Only tidiness: the error that matters is the first one.
            let _ = folder.remove(NEW_INDEX);
            JournalError::io("write", NEW_INDEX, source)
        })?;
        Ok(Self(Log {
            file,
            tables,
            end,
            flushed: end,
            last,
            limit: end.saturating_mul(2).max(end + MIN_LOG),
        }))
    }

    /// Puts it there, durably.
    ///
    /// # Errors
    /// Which of the two is there is not known then.
    pub(crate) fn publish(
        self,
        folder: &Arc<dyn Folder>,
        group: &Group,
    ) -> Result<Log, JournalError> {
        folder
            .rename(NEW_INDEX, INDEX)
            .and_then(|()| group.flush(vec![Need::Names(folder.clone(), "")]))
            .map_err(|source| JournalError::io("replace", INDEX, source))?;
        Ok(self.0)
    }
}

/// A file that holds `bytes`: the one that keeps the space for it, if that is there.
fn into_reserve(folder: &dyn Folder, bytes: &[u8]) -> std::io::Result<Arc<dyn File>> {
    let kept = folder.open(NEW_INDEX).and_then(|file| {
        file.write_at(0, bytes)?;
        if file.size()? > bytes.len() as u64 {
            file.set_len(bytes.len() as u64)?;
        }
        Ok(file)
    });
    kept.or_else(|_absent_or_too_short| {
        let _ = folder.remove(NEW_INDEX);
        let file = folder.create(NEW_INDEX)?;
        file.write_at(0, bytes)?;
        Ok(file)
    })
}

/// Takes the space for writing the file anew once more, if it is not taken. Not durably: a crash may
/// cost it, and opening takes it again.
///
/// # Errors
/// What the operating system says; then nothing is taken.
pub(crate) fn reserve(folder: &dyn Folder, log: &Log) -> std::io::Result<()> {
    let len = log.limit.max(log.end).saturating_add(ROOM as u64);
    let take = || {
        let file = match folder.open(NEW_INDEX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => folder.create(NEW_INDEX),
            other => other,
        }?;
        let zeroes = vec![0; WINDOW];
        let mut at = file.size()?;
        while at < len {
            let part = usize::try_from(len - at).map_or(WINDOW, |left| left.min(WINDOW));
            file.write_at(at, &zeroes[..part])?;
            at += part as u64;
        }
        Ok(())
    };
    take().inspect_err(|_: &std::io::Error| {
        let _ = folder.remove(NEW_INDEX);
    })
}

impl Log {
    /// Writes the file anew, durably.
    ///
    /// # Errors
    /// Which of the two is there is not known then.
    pub(crate) fn replace(
        folder: &Arc<dyn Folder>,
        index: &Index,
        group: &Group,
    ) -> Result<Self, JournalError> {
        Prepared::write(&**folder, index, group)?.publish(folder, group)
    }

    /// Appends a record with `changes`. It is not durable before its file is synced.
    pub(crate) fn append(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        let mark = self.tables.mark();
        let appended = self.try_append(changes);
        if appended.is_err() {
            self.tables.back_to(mark);
        }
        appended
    }

    fn try_append(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        let mut payload = Vec::new();
        write(changes, &mut self.tables, &mut payload)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(JournalError::IndexDamaged("gets too long a change"));
        }
        let (mut bytes, mut last) = (Vec::new(), self.last);
        record(&payload, self.flushed, &mut last, &mut bytes);
        self.file
            .write_at(self.end, &bytes)
            .map_err(|source| JournalError::io("append to", INDEX, source))?;
        self.end += bytes.len() as u64;
        self.last = last;
        Ok(())
    }

    /// What has to be synced.
    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Everything that was appended is durable. Notes that in the file too, for whoever opens it after
    /// a crash; nothing depends on whether that gets there.
    pub(crate) fn is_flushed(&mut self) {
        self.flushed = self.end;
        if let Err(error) = self.append(&[]) {
            tracing::debug!(%error, "cannot note that the index is durable");
        }
    }

    /// Whether the records outgrew the snapshot.
    pub(crate) fn is_long(&self) -> bool {
        self.end > self.limit || self.tables.are_full()
    }

    #[cfg(test)]
    pub(crate) fn shorten_soon(&mut self) {
        self.limit = 0;
    }

    /// Writing it anew failed and is not tried again for a while.
    pub(crate) fn put_off(&mut self) {
        self.limit = self.end.saturating_add((self.end / 4).max(MIN_LOG));
    }
}

/// Opens the file for appending, with its records up to byte `cut` only if there is one.
pub(crate) fn open(folder: &dyn Folder, cut: Option<u64>) -> Result<Opened, JournalError> {
    read(folder.open(INDEX), cut)
}

/// Reads the file, to which another process may be appending.
pub(super) fn load(folder: &dyn Folder) -> Result<Opened, JournalError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match read(folder.open_read(INDEX), None) {
            // Or records came while it was read, where there were zeroes or half of one before.
            Err(JournalError::IndexDamaged(_)) if attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn failed(source: std::io::Error) -> JournalError {
    JournalError::io("read", INDEX, source)
}

fn damaged(fault: &'static str) -> JournalError {
    JournalError::IndexDamaged(fault)
}

pub(super) fn read(
    file: std::io::Result<Arc<dyn File>>,
    cut: Option<u64>,
) -> Result<Opened, JournalError> {
    let file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(JournalError::NoIndex);
        }
        other => other.map_err(failed)?,
    };
    let len = file.size().map_err(failed)?;
    if len > MAX_INDEX {
        return Err(damaged("is too long"));
    }
    let mut window = Window::new(&*file, len);
    if first::is_first(window.get(0, first::MAGIC.len())?) {
        let whole = usize::try_from(len).map_err(|_long| damaged("is too long"))?;
        return Ok(Opened {
            index: first::read(window.get(0, whole)?.unwrap_or_default())?,
            log: None,
            doubts: Vec::new(),
            is_torn: false,
        });
    }
    let (log_at, mut last) = header(window.get(0, HEADER)?, len)?;
    let mut reading = Reading::new(log_at, len);
    let mut at = HEADER as u64;
    while at < log_at {
        let (_, payload) = window
            .record(at, log_at, &mut last)?
            .ok_or(damaged("does not verify"))?;
        reading.record(payload, None)?;
        at += (HEAD + payload.len() + HASH) as u64;
    }
    let (mut flushed, mut doubts) = (log_at, VecDeque::<(u64, Doubt)>::new());
    let end = cut.unwrap_or(len).min(len);
    while let Some((durable, payload)) = window.record(at, end, &mut last)? {
        if durable < flushed || durable > at {
            return Err(damaged("has a record that cannot know what it says"));
        }
        flushed = durable;
        while doubts.front().is_some_and(|(end, _)| *end <= durable) {
            doubts.pop_front();
        }
        let mut entries = Vec::new();
        reading.record(payload, Some(&mut entries))?;
        let next = at + (HEAD + payload.len() + HASH) as u64;
        if !payload.is_empty() {
            doubts.push_back((next, Doubt { at, entries }));
        }
        at = next;
    }
    let is_torn = at < len && (cut.is_some() || check_torn(&*file, at, len)?);
    let (index, tables) = reading.finish()?;
    let log = Log {
        file,
        tables,
        end: at,
        flushed,
        last,
        limit: log_at.saturating_mul(2).max(log_at + MIN_LOG),
    };
    Ok(Opened {
        index,
        log: Some(log),
        doubts: doubts.into_iter().map(|(_, doubt)| doubt).collect(),
        is_torn,
    })
}

/// Where the log begins, and the hash that its first record follows.
fn header(bytes: Option<&[u8]>, len: u64) -> Result<(u64, Chain), JournalError> {
    let no_index = damaged("does not begin as one");
    let Some(bytes) = bytes.and_then(|bytes| bytes.first_chunk::<HEADER>()) else {
        return Err(no_index);
    };
    let (body, hash) = bytes.split_at(HEADER - 32);
    if !body.starts_with(MAGIC) {
        return Err(no_index);
    }
    match u32_at(body, 8) {
        VERSION => {}
        other => return Err(JournalError::Version(other)),
    }
    let hash: [u8; 32] = part(hash, 0);
    let log_at = u64::from_le_bytes(part(body, 16));
    if blake3::hash(body) != hash || u32_at(body, 12) != 0 {
        return Err(damaged("does not verify"));
    }
    if log_at > len || log_at < HEADER as u64 {
        return Err(damaged("is cut short"));
    }
    Ok((log_at, first_link(&hash)))
}

/// Whether what follows the last record at `at` is the rest of one that was torn, unless a record
/// further on knows better; zeroes are nothing.
fn check_torn(file: &dyn File, at: u64, len: u64) -> Result<bool, JournalError> {
    let tail = usize::try_from(len - at).map_err(|_long| damaged("is too long"))?;
    let mut bytes = vec![0; tail];
    file.read_at(at, &mut bytes).map_err(failed)?;
    let mut tried = 0;
    for start in 0..tail {
        let bytes = &bytes[start..];
        if !bytes.starts_with(&RECORD_MAGIC) {
            continue;
        }
        let intact = bytes.get(BEFORE..HEAD).and_then(|before| {
            let mut last = part(before, 0);
            parse(bytes, &mut last)
        });
        if intact.is_some_and(|(durable, _)| durable > at) {
            return Err(damaged("is damaged in its middle"));
        }
        tried += 1;
        if tried == MAX_TRIED {
            break;
        }
    }
    Ok(bytes.iter().any(|byte| *byte != 0))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(bytes, at))
}

/// Length of the payload of the record whose first bytes these are.
fn payload_len(head: &[u8]) -> Option<usize> {
    let len = u32_at(head, 4) as usize;
    (head.starts_with(&RECORD_MAGIC) && len <= MAX_PAYLOAD).then_some(len)
}

/// The record at the beginning of `bytes`, if it follows `last`, which is moved on then: how far
/// the file was durable, and the payload.
fn parse<'a>(bytes: &'a [u8], last: &mut Chain) -> Option<(u64, &'a [u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (payload, rest) = rest.split_at_checked(payload_len(head)?)?;
    let hash: Chain = *rest.first_chunk()?;
    if head[BEFORE..] != *last || chain(head, payload) != hash {
        return None;
    }
    *last = hash;
    Some((u64::from_le_bytes(part(head, 8)), payload))
}

/// The file, read in large pieces.
struct Window<'a> {
    file: &'a dyn File,
    len: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File, len: u64) -> Self {
        Self {
            file,
            len,
            at: 0,
            bytes: Vec::new(),
        }
    }

    /// `count` bytes at `at`; none if the file ends before.
    fn get(&mut self, at: u64, count: usize) -> Result<Option<&[u8]>, JournalError> {
        let Some(end) = at.checked_add(count as u64).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            let left = usize::try_from(self.len - at).unwrap_or(usize::MAX);
            self.bytes.resize(left.min(WINDOW.max(count)), 0);
            self.at = at;
            self.file.read_at(at, &mut self.bytes).map_err(failed)?;
        }
        let start = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        Ok(self.bytes.get(start..start + count))
    }

    /// The record at `at`, which ends at `end` or before and follows `last`.
    fn record(
        &mut self,
        at: u64,
        end: u64,
        last: &mut Chain,
    ) -> Result<Option<(u64, &[u8])>, JournalError> {
        let head = self.get(at, HEAD)?;
        let Some(payload) = head.and_then(payload_len) else {
            return Ok(None);
        };
        let whole = HEAD + payload + HASH;
        if at + whole as u64 > end {
            return Ok(None);
        }
        Ok(self.get(at, whole)?.and_then(|bytes| parse(bytes, last)))
    }
}

/// Puts the hashes of an index right, as somebody who forges one would.
pub(crate) fn forge(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    let hash = blake3::hash(&bytes[..HEADER - 32]);
    bytes[HEADER - 32..HEADER].copy_from_slice(hash.as_bytes());
    let (mut at, mut last) = (HEADER, first_link(hash.as_bytes()));
    while let Some(head) = bytes.get(at..at + HEAD) {
        let len = u32_at(head, 4) as usize;
        let hash_at = at + HEAD + len;
        if len > MAX_PAYLOAD || hash_at + HASH > bytes.len() {
            return;
        }
        bytes[at + BEFORE..at + HEAD].copy_from_slice(&last);
        let (head, payload) = bytes[at..hash_at].split_at(HEAD);
        last = chain(head, payload);
        bytes[hash_at..hash_at + HASH].copy_from_slice(&last);
        at = hash_at + HASH;
    }
}

/// Reads the bytes of a file.
pub(crate) fn read_bytes(bytes: Vec<u8>) -> Result<Index, JournalError> {
    read(Ok(Arc::new(Memory(bytes))), None).map(|opened| opened.index)
}

/// The bytes of a file with a snapshot of `index`.
pub(crate) fn bytes_of(index: &Index) -> Result<Vec<u8>, JournalError> {
    fresh(index).map(|(bytes, _, _)| bytes)
}
