//! Looks all the time whether the VM runs on both hosts.
//!
//! The processors of a guest take time while it runs, and none while it is held still, whoever holds it. So a
//! guest that took some ran from one look to the next:
//!
//! ```text
//!   look        |    |    |    |    |    |    |    |    |
//!   castor        x    x         x    .    .    .    .       it ran from a to b
//!                    a         b
//! ```
//!
//! Where two ran at one instant a person had given a word for it, which is in a standing, and they did not for
//! longer than [`CONTACT`] once the hosts could meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use pollux_tests::{Host, processes_that_name};

/// From one look to the next.
const PACE: Duration = Duration::from_millis(100);
/// A guest of ours that runs takes time of a processor more often than this.
const GAP: Duration = Duration::from_millis(600);
/// Two may run for so long once the hosts can meet. The promise is two seconds, on a machine that has time.
const CONTACT: Duration = Duration::from_secs(15);

/// Looks until it is dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    word: Option<Word>,
    wrong: Option<String>,
    twice: Twice,
    /// The last instant that was judged: it stays known until a guest is started again.
    judged: Option<Instant>,
    ends: bool,
}

/// How two ran because of a word.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Twice {
    pub(super) times: u32,
    /// The longest once the hosts could meet.
    pub(super) longest: Duration,
}

/// Of a person, that the VM runs on one host only: until that is true again two may run.
#[derive(Debug)]
struct Word {
    given: Instant,
    at: Timestamp,
    /// Since when the hosts can meet.
    met: Option<Instant>,
    /// Since when there is one again.
    over: Option<Instant>,
    recorded: bool,
}

impl Watch {
    /// Watches the VM with the id `vm`.
    pub(super) fn of(vm: &str, hosts: &[Host; 2]) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut guests = [0, 1].map(|n| Guest::new(hosts[n].run_of(vm)));
        let standings = ["vms", "replicas"].map(|kind| {
            hosts
                .each_ref()
                .map(|host| host.state().join(kind).join(vm).join("standing.toml"))
        });
        let shared = Arc::clone(&seen);
        let thread = spawn(move || {
            while !lock(&shared).ends {
                guests.iter_mut().for_each(Guest::look);
                if let Some(instant) = both_ran(&guests) {
                    lock(&shared).judge(instant, standings.as_flattened());
                }
                sleep(PACE);
            }
        });
        Self {
            seen,
            thread: Some(thread),
        }
    }

    /// A person is about to give a word.
    pub(super) fn word(&self) {
        let mut seen = lock(&self.seen);
        if seen.word.as_ref().is_none_or(|word| word.over.is_some()) {
            seen.word = Some(Word {
                given: Instant::now(),
                at: Timestamp::now(),
                met: None,
                over: None,
                recorded: false,
            });
        }
    }

    /// The hosts are about to meet.
    pub(super) fn meet(&self) {
        if let Some(word) = &mut lock(&self.seen).word {
            word.met.get_or_insert(Instant::now());
        }
    }

    /// The VM runs on one host only from now on.
    pub(super) fn alone(&self) {
        if let Some(word) = &mut lock(&self.seen).word {
            word.over.get_or_insert(Instant::now());
        }
    }

    /// Whether a word was given, and two may run since.
    pub(super) fn is_overridden(&self) -> bool {
        let seen = lock(&self.seen);
        seen.word.as_ref().is_some_and(|word| word.over.is_none())
    }

    /// # Errors
    /// Two ran that must not.
    pub(super) fn check(&self) -> Result<()> {
        match &lock(&self.seen).wrong {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    pub(super) fn twice(&self) -> Twice {
        lock(&self.seen).twice
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.seen).ends = true;
        if let Some(thread) = self.thread.take() {
            // What it panicked about it said itself.
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    /// Both ran at this instant.
    fn judge(&mut self, instant: Instant, standings: &[PathBuf]) {
        if self.judged >= Some(instant) {
            return;
        }
        self.judged = Some(instant);
        let Some(word) = self.word.as_mut().filter(|word| word.given <= instant) else {
            return self.say("without a person's word");
        };
        // A guest that is ended takes time once more.
        if word.over.is_some_and(|over| instant > over + GAP) {
            return self.say("after it ran on one only");
        }
        if !word.recorded {
            word.recorded = standings.iter().any(|file| tells(file, word.at));
            if !word.recorded {
                return self.say("with a person's word that is in no standing");
            }
            self.twice.times += 1;
        }
        let since = word
            .met
            .map_or(Duration::ZERO, |met| instant.saturating_duration_since(met));
        self.twice.longest = self.twice.longest.max(since);
        if since > CONTACT {
            self.say("though the hosts could meet for long");
        }
    }

    /// What is wrong first.
    fn say(&mut self, what: &str) {
        let Self { word, wrong, .. } = self;
        wrong.get_or_insert_with(|| {
            let at = Timestamp::now();
            format!("the VM ran on both hosts {what}, noticed at {at}: {word:?}")
        });
    }
}

/// Whether a standing tells of a word that was given then or later.
fn tells(standing: &Path, since: Timestamp) -> bool {
    // A file has less digits of a second.
    let since = since.saturating_sub(SignedDuration::from_secs(1));
    let since = since.unwrap_or(Timestamp::MIN);
    let text = fs::read_to_string(standing).unwrap_or_default();
    let words = text.lines().filter_map(|line| line.strip_prefix("at = "));
    let mut times = words.filter_map(|time| time.trim_matches('"').parse::<Timestamp>().ok());
    times.any(|at| at >= since)
}

/// The last instant at which both are known to have run, if there is one.
fn both_ran([one, other]: &[Guest; 2]) -> Option<Instant> {
    let (one, other) = (one.ran?, other.ran?);
    let until = one.until.min(other.until);
    (one.since.max(other.since) <= until).then_some(until)
}

/// The VM on one host.
struct Guest {
    /// Of its sockets, which QEMU's arguments name.
    folder: PathBuf,
    processors: Vec<PathBuf>,
    /// What they had taken at the last look, which began then.
    taken: Option<(Instant, u64)>,
    ran: Option<Ran>,
}

/// A guest ran from the one instant to the other, if that is not before it.
#[derive(Debug, Clone, Copy)]
struct Ran {
    since: Instant,
    until: Instant,
}

impl Guest {
    fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            processors: Vec::new(),
            taken: None,
            ran: None,
        }
    }

    fn look(&mut self) {
        let began = Instant::now();
        let Some(taken) = time_of(&self.processors) else {
            // Another QEMU, or none.
            self.processors = processors(&self.folder);
            self.taken = time_of(&self.processors).map(|taken| (began, taken));
            return;
        };
        if let Some((before, had)) = self.taken {
            if taken > had {
                self.took(before, Instant::now());
            }
        }
        self.taken = Some((began, taken));
    }

    /// It took time between the one instant and the other.
    fn took(&mut self, after: Instant, before: Instant) {
        match &mut self.ran {
            Some(ran) if before.saturating_duration_since(ran.until) < GAP => ran.until = after,
            ran => {
                *ran = Some(Ran {
                    since: before,
                    until: after,
                });
            }
        }
    }
}

/// Nanoseconds that the threads have taken; none if one is gone, or there is none.
fn time_of(threads: &[PathBuf]) -> Option<u64> {
    let mut sum = 0;
    for thread in threads {
        let text = fs::read_to_string(thread).ok()?;
        sum += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    (!threads.is_empty()).then_some(sum)
}

/// What is known in `/proc` about the time of the guest's processors.
fn processors(folder: &Path) -> Vec<PathBuf> {
    let is_one = |thread: &Path| {
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        name.starts_with("CPU ")
    };
    // A process that ended meanwhile has none.
    let processes = processes_that_name(folder).unwrap_or_default();
    let folders = processes
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    let threads = folders.flatten().flatten().map(|thread| thread.path());
    threads
        .filter(|thread| is_one(thread))
        .map(|thread| thread.join("schedstat"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGIN.get_or_init(Instant::now) + Duration::from_millis(ms)
    }

    /// One that took time just before each of these looks.
    fn guest(looks: &[u64]) -> Guest {
        let mut guest = Guest::new(PathBuf::new());
        for look in looks {
            guest.took(at(look - 100), at(*look));
        }
        guest
    }

    #[test]
    fn two_run_only_where_both_certainly_did_at_one_instant() {
        let former = [100, 200, 300, 400];
        let both = |looks: &[u64]| both_ran(&[guest(&former), guest(looks)]);
        assert_eq!(both(&[]), None);
        assert_eq!(both(&[500, 600, 700]), None, "after it");
        assert_eq!(both(&[400, 500]), None, "nobody can tell");
        assert_eq!(both(&[300, 400, 500]), Some(at(300)));
        // One that was held and is ended takes time once more.
        let mut ended = guest(&former);
        ended.took(at(1900), at(2000));
        assert_eq!(both_ran(&[ended, guest(&[1500, 1900, 2000, 2100])]), None);
    }

    #[test]
    fn a_word_allows_it_until_the_hosts_met() {
        let folder = tempfile::tempdir().expect("scratch");
        let standing = folder.path().join("standing.toml");
        let given = Timestamp::now();
        let judged = |met: Option<u64>, over: Option<u64>, instant| {
            let mut seen = Seen {
                word: Some(Word {
                    given: at(1000),
                    at: given,
                    met: met.map(at),
                    over: over.map(at),
                    recorded: false,
                }),
                ..Seen::default()
            };
            seen.judge(at(instant), std::slice::from_ref(&standing));
            seen.wrong
        };
        assert!(judged(None, None, 2000).is_some(), "it is not recorded");
        fs::write(&standing, format!("[[overrides]]\nat = \"{given}\"\n")).expect("written");
        assert_eq!(judged(None, None, 60_000), None);
        assert!(judged(None, None, 500).is_some(), "before it");
        assert_eq!(judged(Some(2000), None, 4000), None);
        assert!(judged(Some(2000), None, 60_000).is_some(), "they met");
        assert_eq!(judged(None, Some(4000), 4000), None);
        assert!(judged(None, Some(4000), 5000).is_some(), "it was over");
        let mut seen = Seen::default();
        seen.judge(at(0), &[]);
        assert!(seen.wrong.is_some(), "nobody gave one");
        // What a word allowed is not judged by the next one.
        let word = |given| Word {
            given: at(given),
            at: Timestamp::now(),
            met: None,
            over: None,
            recorded: true,
        };
        let mut seen = Seen::default();
        for given in [1000, 5000] {
            seen.word = Some(word(given));
            seen.judge(at(2000), &[]);
            assert_eq!(seen.wrong, None);
        }
        seen.judge(at(2100), &[]);
        assert!(seen.wrong.is_some(), "before it");
    }
}
