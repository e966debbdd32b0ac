//! The history of events in a SQLite file, bounded by count and by age.
//!
//! A file that is damaged, or of another version, is put aside and begun anew: it is there to be
//! looked at, and nothing rests on it. What cannot be kept for want of space is told to who follows
//! all the same.
//!
//! A committed event survives a power cut (WAL, synchronous).

use std::path::{Path, PathBuf};

use api::{Event, EventKind, Severity};
use jiff::Timestamp;
use model::{Problem, VmId};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{Bounds, Draft};

/// `user_version` of the file.
const VERSION: i64 = 1;
/// So many new events are let in before it is looked whether old ones have to go.
const SLACK: u64 = 256;
/// Most events of one answer.
pub(crate) const MAX_ANSWER: u32 = 10_000;

const SCHEMA: &str = "
    CREATE TABLE event (
        id INTEGER PRIMARY KEY,
        time INTEGER NOT NULL, -- microseconds since 1970
        vm TEXT,
        body TEXT NOT NULL     -- JSON, as the API tells it
    ) STRICT;
    CREATE INDEX event_of_vm ON event (vm, id);
    CREATE INDEX event_at ON event (time);
";

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) vm: Option<VmId>,
    pub(crate) since: Option<Timestamp>,
    /// Only those after this number, the oldest of them; without it the newest.
    pub(crate) after: Option<u64>,
    pub(crate) limit: Option<u32>,
}

/// The file, and the next number.
pub(crate) struct History {
    path: PathBuf,
    bounds: Bounds,
    /// None: it cannot be opened now.
    file: Option<Connection>,
    next: u64,
    unpruned: u64,
    /// Whether the last attempt to keep something failed, and that was said.
    failing: bool,
    /// What is to be told of the file itself.
    news: Vec<Draft>,
}

impl History {
    /// Opens the file, or begins a new one.
    pub(crate) fn open(path: &Path, bounds: Bounds, now: Timestamp) -> Self {
        let mut history = Self {
            path: path.to_owned(),
            bounds,
            file: None,
            next: 1,
            unpruned: 0,
            failing: false,
            news: Vec::new(),
        };
        if let Err(error) = history.reopen(now) {
            history.failed(&error);
        }
        history
    }

    fn reopen(&mut self, now: Timestamp) -> rusqlite::Result<()> {
        let opened = connect(&self.path).or_else(|error| {
            if !is_damaged(&error) {
                return Err(error);
            }
            self.put_aside(&error.to_string());
            connect(&self.path)
        });
        let file = opened?;
        let last: Option<i64> =
            file.query_row("SELECT max(id) FROM event", [], |row| row.get(0))?;
        let last = u64::try_from(last.unwrap_or(0)).unwrap_or(0);
        self.next = self.next.max(last.saturating_add(1));
        prune(&file, self.bounds, self.next, now)?;
        self.file = Some(file);
        Ok(())
    }

    /// Moves the file away, so that a new one can begin.
    fn put_aside(&mut self, reason: &str) {
        self.file = None;
        let number = (1..1000).find(|n| !aside(&self.path, *n).exists());
        let to = aside(&self.path, number.unwrap_or(1));
        for suffix in ["", "-wal", "-shm"] {
            // Those beside it may not be there; if the file itself cannot go, opening fails again.
            let _ = std::fs::rename(with(&self.path, suffix), with(&to, suffix));
        }
        tracing::error!(
            file = %self.path.display(), aside = %to.display(), reason,
            "the history of events cannot be used: put aside, and begun anew"
        );
        let what = format!(
            "the history of events could not be used and was begun anew; the old file is {}: {reason}",
            to.display()
        );
        let kind = EventKind::HistoryLost;
        self.news
            .push(Draft::new(kind, Severity::Warning, "polluxd", what));
    }

    fn failed(&mut self, error: &rusqlite::Error) {
        if !self.failing {
            tracing::error!(file = %self.path.display(), %error, "events are not kept");
        }
        self.failing = true;
    }

    /// Gives each a number and keeps it. All are given back, kept or not.
    pub(crate) fn keep(&mut self, drafts: Vec<(Draft, Timestamp)>) -> Vec<Event> {
        let Some(now) = drafts.last().map(|(_, time)| *time) else {
            return Vec::new();
        };
        let mut events: Vec<Event> = Vec::new();
        for (draft, time) in drafts {
            self.number(draft, time, &mut events);
        }
        let mut kept = self.try_keep(&events, now);
        if kept.as_ref().is_err_and(is_damaged) {
            if let Err(error) = &kept {
                self.put_aside(&error.to_string());
            }
            kept = self.try_keep(&events, now);
        }
        match kept {
            Ok(()) if self.failing => {
                tracing::info!(file = %self.path.display(), "events are kept again");
                self.failing = false;
            }
            Ok(()) => {}
            Err(error) => self.failed(&error),
        }
        let told = events.len();
        for draft in std::mem::take(&mut self.news) {
            self.number(draft, now, &mut events);
        }
        if let Err(error) = self.try_keep(&events[told..], now) {
            self.failed(&error);
        }
        events
    }

    fn number(&mut self, draft: Draft, time: Timestamp, events: &mut Vec<Event>) {
        events.push(draft.numbered(self.next, time));
        self.next = self.next.saturating_add(1);
    }

    fn try_keep(&mut self, events: &[Event], now: Timestamp) -> rusqlite::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.reopen(now)?;
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let change = file.transaction()?;
        {
            let mut insert = change.prepare_cached(
                "INSERT OR REPLACE INTO event (id, time, vm, body) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for event in events {
                let body = serde_json::to_string(event)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                let id = i64::try_from(event.id).unwrap_or(i64::MAX);
                let vm = event.vm.map(|vm| vm.to_string());
                insert.execute(params![id, event.time.as_microsecond(), vm, body])?;
            }
        }
        self.unpruned = self.unpruned.saturating_add(events.len() as u64);
        if self.unpruned >= SLACK {
            prune(&change, self.bounds, self.next, now)?;
            self.unpruned = 0;
        }
        change.commit()
    }

    /// Events of the history, the oldest first.
    pub(crate) fn list(&mut self, wanted: &Wanted) -> Result<Vec<Event>, Problem> {
        let mut listed = self.try_list(wanted);
        if listed.as_ref().is_err_and(is_damaged) {
            if let Err(error) = &listed {
                self.put_aside(&error.to_string());
            }
            listed = self.try_list(wanted);
        }
        listed.map_err(|error| Problem::failed(self.path.display().to_string(), &error))
    }

    fn try_list(&mut self, wanted: &Wanted) -> rusqlite::Result<Vec<Event>> {
        if self.file.is_none() {
            self.reopen(Timestamp::now())?;
        }
        let Some(file) = &self.file else {
            return Ok(Vec::new());
        };
        // A number that is not given yet is of a history before this one.
        let after = wanted
            .after
            .map(|after| if after >= self.next { 0 } else { after });
        let order = if after.is_some() { "ASC" } else { "DESC" };
        let mut query = file.prepare_cached(&format!(
            "SELECT id, body FROM event WHERE (?1 IS NULL OR vm = ?1) AND time >= ?2 AND id > ?3 \
             ORDER BY id {order} LIMIT ?4"
        ))?;
        let vm = wanted.vm.map(|vm| vm.to_string());
        let since = wanted
            .since
            .map_or(i64::MIN, |since| since.as_microsecond());
        let after_id = i64::try_from(after.unwrap_or(0)).unwrap_or(i64::MAX);
        let limit = wanted.limit.unwrap_or(MAX_ANSWER).min(MAX_ANSWER);
        let rows = query.query_map(params![vm, since, after_id, limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut events = Vec::new();
        for row in rows {
            let (id, body) = row?;
            match serde_json::from_str(&body) {
                Ok(event) => events.push(event),
                // A newer Pollux knows more kinds.
                Err(error) => tracing::debug!(id, %error, "an event is passed over"),
            }
        }
        if after.is_none() {
            events.reverse();
        }
        Ok(events)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let file = Connection::open(path)?;
    file.pragma_update(None, "journal_mode", "wal")?;
    file.pragma_update(None, "synchronous", "full")?;
    file.pragma_update(None, "trusted_schema", false)?;
    let version: i64 = file.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = file.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if version == 0 && tables == 0 {
        file.execute_batch(&format!(
            "BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
        ))?;
        return Ok(file);
    }
    if version != VERSION {
        return Err(damaged(format!(
            "it has version {version}; this build reads version {VERSION}"
        )));
    }
    let found: Option<String> = file
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()?;
    match found {
        Some(found) if found != "ok" => Err(damaged(found)),
        _ => Ok(file),
    }
}

fn damaged(reason: String) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(reason))
}

/// Whether another file is needed. A schema that was changed by hand shows as an unknown column.
fn is_damaged(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => matches!(
            code.code,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
        ),
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

fn prune(file: &Connection, bounds: Bounds, next: u64, now: Timestamp) -> rusqlite::Result<()> {
    let oldest = next.saturating_sub(bounds.count);
    let oldest = i64::try_from(oldest).unwrap_or(i64::MAX);
    let since = now.checked_sub(bounds.age).unwrap_or(Timestamp::MIN);
    file.prepare_cached("DELETE FROM event WHERE id < ?1 OR time < ?2")?
        .execute(params![oldest, since.as_microsecond()])
        .map(drop)
}

fn aside(path: &Path, number: u32) -> PathBuf {
    with(path, &format!(".damaged-{number}"))
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
