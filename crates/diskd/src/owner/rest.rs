//! The files of a disk while no guest is there.
//!
//! The disks of a VM that is off are served on for its replication, and whoever looks at the VM sees
//! files that nobody seems to use: they are mounted and mended, or a backup is put in their place. So
//! before each order of a time without a guest the files are looked at. If they look other than before,
//! and nothing was written here in between, somebody else wrote: everything is suspect. If one is another
//! file, the disk has to be opened anew besides, for what is open is not what the VM has now; polluxd is
//! told, and does that before it starts the guest.
//!
//! What works on the files itself ([`Hold`]) is no reason to suspect anything.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block::Fault;

use crate::intent::Looks;
use crate::stack::{FileTracker, Stack};

/// What was seen last.
#[derive(Default)]
pub(super) struct Rest {
    seen: RefCell<Option<(Looks, u64)>>,
    held: Cell<usize>,
}

impl Rest {
    /// Until it is dropped, the files are changed by their server.
    pub(super) fn hold(self: &Rc<Self>) -> Hold {
        self.held.set(self.held.get() + 1);
        Hold(Rc::clone(self))
    }

    /// Looks at the files while there is no `guest`.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub(super) async fn look(
        &self,
        guest: bool,
        stack: &Stack,
        tracker: &FileTracker,
    ) -> Result<(), Fault> {
        if guest || self.held.get() > 0 || tracker.is_writing() {
            self.seen.take();
            return Ok(());
        }
        // One that is being put back is not there for a moment.
        let Some(now) = stack.looks_now() else {
            return Ok(());
        };
        let writes = tracker.writes();
        let changed = self.seen.borrow().is_some_and(|(looks, so_far)| {
            // Nothing is known of a time in which a guest came and went.
            so_far == writes && now.is_changed_since(&looks)
        });
        if changed {
            if tracker.state().relationship().is_some() {
                tracing::warn!(
                    "a file of the disk was changed while no guest ran: the whole disk has to be compared \
                     with its replica"
                );
            }
            tracker.suspect_all().await?;
        }
        self.seen.replace(Some((now, writes)));
        Ok(())
    }
}

/// See [`Rest::hold`].
pub(super) struct Hold(Rc<Rest>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
        self.0.seen.take();
    }
}
