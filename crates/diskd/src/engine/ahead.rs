//! The part of an initial replication that comes next, staged while the one before is sent.
//!
//! ```text
//!   Seed 7 --> outbox/7.seed --------- sent, Confirm --> outbox/spent --> Prepare 9
//!   Prepare 8 --> outbox/8.seed.part --> made ...................> Seed 8 --> outbox/8.seed
//!                 its marks are sealed                              they are unconfirmed
//! ```
//!
//! Until it is asked for it is an epoch that is being staged, whatever else is said of one: after a kill
//! its marks are back, and its file is no segment. At most one is made, and the outbox holds two parts at
//! most. Every other request that works on marks, but a confirmation, gives it up first.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use model::{DiskId, SeedId};

use crate::control::Staged;
use crate::outbox::Draft;

/// What a part is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) seed: SeedId,
    pub(super) number: u64,
    pub(super) disk: DiskId,
    /// Its first byte.
    pub(super) from: u64,
    pub(super) file: PathBuf,
}

/// A part that is whole, and has no name yet. Its epoch is to be ended.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) part: Part,
    pub(super) draft: Draft,
    pub(super) staged: Staged,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Nothing,
    Making {
        part: Part,
        /// Its marks have moved.
        sealed: bool,
        /// Nobody wants it any more.
        given_up: bool,
    },
    Made(Box<Made>),
}

impl State {
    fn is_moving(&self) -> bool {
        matches!(self, Self::Making { sealed: false, .. })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

impl Ahead {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    /// Begins to make `part`; false if another one is made, or was.
    pub(super) fn begin(&self, part: Part) -> bool {
        let mut state = self.state();
        let free = matches!(*state, State::Nothing);
        if free {
            *state = State::Making {
                part,
                sealed: false,
                given_up: false,
            };
        }
        free
    }

    /// Its marks have moved. Whether somebody wants it still.
    pub(super) fn sealed(&self) -> bool {
        let mut state = self.state();
        self.changed.notify_all();
        match &mut *state {
            State::Making {
                sealed, given_up, ..
            } => {
                *sealed = true;
                !*given_up
            }
            _ => false,
        }
    }

    /// It is whole; given back if nobody wants it any more: then its epoch is folded back, and
    /// [`Ahead::ended`] comes.
    pub(super) fn made(&self, made: Box<Made>) -> Result<(), Box<Made>> {
        let mut state = self.state();
        if !matches!(
            *state,
            State::Making {
                given_up: false,
                ..
            }
        ) {
            return Err(made);
        }
        *state = State::Made(made);
        self.changed.notify_all();
        Ok(())
    }

    /// It will not be made, and nothing of it is left.
    pub(super) fn ended(&self) {
        self.set(State::Nothing);
    }

    /// Whether no part is being made, or waits to be asked for.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(*self.state(), State::Nothing)
    }

    /// Whether marks move for one that is made.
    pub(super) fn is_moving(&self) -> bool {
        self.state().is_moving()
    }

    /// Waits until no marks move for one that is made.
    pub(super) fn settle(&self) {
        let waited = self
            .changed
            .wait_while(self.state(), |state| state.is_moving());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes what was made, if it is `wanted`; waits for it if it is being made. Whatever else is made is
    /// given up: `abandon` is called with its disk once its marks have moved, and has to return at once; it
    /// is waited until that has ended, and if it was whole already it is given.
    pub(super) fn take(
        &self,
        wanted: Option<&Part>,
        abandon: impl FnOnce(DiskId),
    ) -> Option<Box<Made>> {
        self.settle();
        let mut state = self.state();
        if let State::Making { part, given_up, .. } = &mut *state {
            if Some(&*part) != wanted {
                *given_up = true;
                // Before it can end, and anything else begin.
                abandon(part.disk);
            }
        }
        let making = |state: &mut State| matches!(state, State::Making { .. });
        let waited = self.changed.wait_while(state, making);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *state) {
            State::Made(made) => Some(made),
            _ => None,
        }
    }
}
