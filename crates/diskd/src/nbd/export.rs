//! What is served, and under which names.

use std::cell::RefCell;
use std::future::Future;
use std::ops::{ControlFlow, Range};
use std::pin::Pin;
use std::rc::Rc;

use block::{Device, Done, Fault, Image, Op, Place};

use super::protocol::HOLE_AND_ZERO;

/// What the empty name stands for ("Option types", `NBD_OPT_EXPORT_NAME`: the default export).
pub const DEFAULT: &str = "disk";

/// Extents of a block status are looked up in steps of at most this many bytes, so that a large disk
/// keeps nobody else waiting.
pub(super) const LOOK: u64 = 64 << 20;

/// And of at most this many pieces: each may cost a few calls to the file system, on the owner thread.
pub(super) const PIECES: usize = 128;

/// A disk whose type is not known here.
pub(super) trait Disk {
    fn size(&self) -> u64;
    fn run(&self, op: Op) -> Pin<Box<dyn Future<Output = Done> + '_>>;
    fn translate<'a>(
        &'a self,
        range: Range<u64>,
        visit: &'a mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Pin<Box<dyn Future<Output = Result<ControlFlow<()>, Fault>> + 'a>>;
}

impl<D: Device + Image> Disk for D {
    fn size(&self) -> u64 {
        Device::size(self)
    }
    fn run(&self, op: Op) -> Pin<Box<dyn Future<Output = Done> + '_>> {
        Box::pin(Device::run(self, op))
    }
    fn translate<'a>(
        &'a self,
        range: Range<u64>,
        visit: &'a mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Pin<Box<dyn Future<Output = Result<ControlFlow<()>, Fault>> + 'a>> {
        Box::pin(Image::translate(self, range, visit))
    }
}

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) read_only: bool,
    pub(super) disk: Rc<dyn Disk>,
}

impl Export {
    /// `disk` under `name`; `description` is shown to people. Its size is asked for when a client
    /// chooses it, so that new clients see a new size.
    #[must_use]
    pub fn new<D: Device + Image + 'static>(
        name: impl Into<String>,
        description: impl Into<String>,
        read_only: bool,
        disk: Rc<D>,
    ) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            read_only,
            disk,
        }
    }

    /// Whether both are the same disk under the same name with the same rights.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.read_only == other.read_only
            && Rc::ptr_eq(&self.disk, &other.disk)
    }
}

/// Whether a place reads as zeroes and takes no space. What is below or encoded may hold anything.
pub(super) fn is_zero(place: Place) -> bool {
    match place {
        Place::Zero => true,
        Place::Stored { .. } | Place::Below | Place::Encoded { .. } => false,
    }
}

/// Consecutive extents.
#[derive(Debug)]
pub(super) struct Extents {
    /// Length in bytes and flags of `base:allocation`.
    pub(super) list: Vec<(u32, u32)>,
    /// First byte after the last one.
    pub(super) end: u64,
    most: usize,
}

impl Extents {
    /// None yet, from byte `at` on, and at most `most`.
    pub(super) fn new(at: u64, most: usize) -> Self {
        Self {
            list: Vec::new(),
            end: at,
            most,
        }
    }

    /// Adds what follows the last one; breaks, and leaves it out, if there is no room.
    pub(super) fn add(&mut self, range: &Range<u64>, zero: bool) -> ControlFlow<()> {
        let flags = if zero { HOLE_AND_ZERO } else { 0 };
        // A request is less than 4 GiB, and so is all that is said about it.
        let Ok(len) = u32::try_from(range.end - range.start) else {
            return ControlFlow::Break(());
        };
        let full = self.list.len() >= self.most;
        match self.list.last_mut() {
            Some((last, same)) if *same == flags => *last = last.saturating_add(len),
            _ if full => return ControlFlow::Break(()),
            _ => self.list.push((len, flags)),
        }
        self.end = range.end;
        ControlFlow::Continue(())
    }
}

/// The exports of a server. Clones are the same table.
#[derive(Clone, Default)]
pub(super) struct Exports(Rc<RefCell<Vec<Export>>>);

impl Exports {
    pub(super) fn new(exports: Vec<Export>) -> Self {
        Self(Rc::new(RefCell::new(exports)))
    }

    pub(super) fn replace(&self, exports: Vec<Export>) {
        // Dropped after the borrow: a disk's end is not ours to know.
        drop(self.0.replace(exports));
    }

    /// All of them, in their order.
    pub(super) fn list(&self) -> Vec<Export> {
        self.0.borrow().clone()
    }

    /// The one that a client means by `name`.
    pub(super) fn find(&self, name: &str) -> Option<Export> {
        let name = if name.is_empty() { DEFAULT } else { name };
        let exports = self.0.borrow();
        exports.iter().find(|export| export.name == name).cloned()
    }
}
