//! The primary's side of a relationship: diskd tracks, cuts and stages; what must survive is
//! recorded in the VM's folder.
//!
//! ```text
//!   replica::driver --> DiskdSource --control socket--> diskd --> outbox/*.segment
//!                            '--> progress.toml, sequence.toml
//! ```
//!
//! The outbox is a cache: a segment is named by its number, `N.delta` or `N.seed`, and appears
//! when it is whole. After a reboot everything is marked, so it is emptied.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes as Chunk;
use diskd::control::{MAX_LINE, Reply, Request, Staged as DiskdStaged};
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header};
use model::{Bytes, Code, Lineage, Problem, RelationshipId, Since, VmId};
use replica::outbox;
use replica::source::{Position, Progress, SeedPart, Source, Staged, StagedPart, Tracking};
use replica::wire::Offer;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::handle::Message;
use super::progress;
use crate::lines::Lines;

/// How much content a part of an initial replication holds.
const PART: Bytes = Bytes(64 << 20);
/// How long diskd may take for what it does at once.
const AT_ONCE: Duration = Duration::from_secs(30);
/// How long diskd may take to stage: a full disk's worth of reads at some 20 MB/s.
const STAGING: Duration = Duration::from_secs(3600);

/// diskd, seen by the driver of a relationship.
#[derive(Debug)]
pub(crate) struct DiskdSource {
    pub(crate) vm: VmId,
    pub(crate) thing: String,
    /// diskd's control socket.
    pub(crate) socket: PathBuf,
    /// The VM's folder.
    pub(crate) home: PathBuf,
    pub(crate) relationship: RelationshipId,
    pub(crate) lineage: Lineage,
    pub(crate) disks: Vec<DiskExtent>,
    /// What is recorded in the folder; held while it is changed.
    pub(crate) record: Mutex<Record>,
    pub(crate) owner: mpsc::Sender<Message>,
    /// The longest hold-up of the guest by a cut, in microseconds.
    pub(crate) longest_pause_us: Arc<AtomicU64>,
}

/// What is recorded in the folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) progress: Progress,
    pub(crate) reserved: u64,
}

impl DiskdSource {
    pub(crate) fn outbox(home: &Path) -> PathBuf {
        home.join("outbox")
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, Problem> {
        let failed = |error| Problem::failed(&self.thing, &error);
        let lines = Lines::connect(&self.socket, MAX_LINE)
            .await
            .map_err(failed)?;
        match lines.ask_within(limit, request).await.map_err(failed)? {
            Reply::Refused { problem } => Err(problem),
            reply => Ok(reply),
        }
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.vm,
            disks: self.disks.clone(),
            lineage: self.lineage.clone(),
            content,
            time: Timestamp::now(),
            consistency: Consistency::Crash,
        }
    }

    async fn stage(&self, request: &Request) -> Result<DiskdStaged, Problem> {
        match self.ask(request, STAGING).await? {
            Reply::Staged(staged) => Ok(staged),
            _ => Err(self.confused()),
        }
    }

    fn confused(&self) -> Problem {
        let reason = "its diskd gave an answer to another question";
        Problem::new(Code::Failed, &self.thing, reason, "")
    }

    fn failed(&self, error: &io::Error) -> Problem {
        super::create::no_space_or(&self.thing, error)
    }

    /// Marks every block of every disk and empties the outbox: nobody can tell which blocks a
    /// segment there holds.
    async fn mark_all(&self, why: &Problem) -> Result<(), Problem> {
        tracing::error!(vm = %self.vm, %why, "every block is marked");
        // A kill in between: the next `Track` finds nothing tracked, and marks every block too.
        self.ask(&Request::Untrack, AT_ONCE).await?;
        let request = Request::Track {
            relationship: self.relationship,
            begin: true,
        };
        match self.ask(&request, AT_ONCE).await? {
            Reply::Tracking { exact: false, .. } => {
                self.empty_outbox().map_err(|e| self.failed(&e))
            }
            _ => Err(self.confused()),
        }
    }

    fn empty_outbox(&self) -> io::Result<()> {
        for entry in fs::read_dir(Self::outbox(&self.home))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

/// Lets the diskd that listens on `socket` track no longer; no error if there is none.
pub(crate) async fn untrack(socket: &Path) -> Result<(), Problem> {
    let Ok(lines) = Lines::<Request, Reply>::connect(socket, MAX_LINE).await else {
        return Ok(());
    };
    match lines.ask_within(AT_ONCE, &Request::Untrack).await {
        Ok(Reply::Refused { problem }) => Err(problem),
        Ok(_) => Ok(()),
        Err(error) => Err(Problem::failed("diskd", &error)),
    }
}

/// Whole segments in the folder `outbox`, the oldest first.
pub(super) fn segments(outbox: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(outbox)? {
        let path = entry?.path();
        if let Some(number) = number_of(&path) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Parts of an initial replication come before all points.
fn number_of(path: &Path) -> Option<(bool, u64)> {
    let number = path.file_stem()?.to_str()?.parse().ok()?;
    match path.extension()?.to_str()? {
        "seed" => Some((false, number)),
        "delta" => Some((true, number)),
        _ => None,
    }
}

impl Source for DiskdSource {
    async fn track(&self) -> Result<Tracking, Problem> {
        durable::create_folder(&Self::outbox(&self.home)).map_err(|e| self.failed(&e))?;
        let request = Request::Track {
            relationship: self.relationship,
            begin: true,
        };
        let answer = self.ask(&request, AT_ONCE).await;
        if answer.is_err() {
            // While no guest runs nobody else notices that the supervisor died. A full mailbox
            // is no loss: this is asked again.
            let _ = self.owner.try_send(Message::DisksLost);
        }
        let mut exact = match answer? {
            Reply::Tracking { exact, .. } => exact,
            _ => return Err(self.confused()),
        };
        if !exact {
            self.empty_outbox().map_err(|e| self.failed(&e))?;
        }
        let mut files = segments(&Self::outbox(&self.home)).map_err(|e| self.failed(&e))?;
        let newest = files.pop();
        let mut staged = None;
        for file in files.iter().chain(&newest) {
            match outbox::read(file) {
                Ok(read) if newest.as_ref() == Some(file) => staged = Some(read),
                Ok(read) => self.fold_back(&read).await?,
                Err(problem) if problem.code == Code::Invalid => {
                    self.mark_all(&problem).await?;
                    (exact, staged) = (false, None);
                    break;
                }
                Err(problem) => return Err(problem),
            }
        }
        let record = *self.record.lock().await;
        Ok(Tracking {
            exact,
            staged,
            progress: record.progress,
            reserved: record.reserved,
        })
    }

    async fn reserve_sequence(&self) -> Result<u64, Problem> {
        let mut record = self.record.lock().await;
        // Never below the point that the term grew from.
        let parent = self.lineage.current().parent;
        let before = record
            .reserved
            .max(parent.map_or(0, |point| point.sequence));
        let next = before + 1;
        tokio::task::block_in_place(|| progress::reserve(&self.home, next))?;
        record.reserved = next;
        Ok(next)
    }

    async fn seed(&self, part: SeedPart) -> Result<StagedPart, Problem> {
        let SeedPart { seed, part, at } = part;
        let Position { disk, from } = at;
        let disk = self.disks.get(disk).ok_or_else(|| self.confused())?.id;
        let header = self.header(Content::Seed { seed, part });
        let file = Self::outbox(&self.home).join(format!("{part}.seed"));
        let request = Request::Seed {
            header: header.clone(),
            disk,
            from,
            limit: PART,
            file: file.clone(),
        };
        let staged = self.stage(&request).await?;
        Ok(StagedPart {
            segment: outbox::read(&file)?,
            next: staged.next,
        })
    }

    async fn cut(&self, since: Since, sequence: u64) -> Result<Staged, Problem> {
        let header = self.header(Content::Delta { sequence, since });
        let file = Self::outbox(&self.home).join(format!("{sequence}.delta"));
        let request = Request::Cut {
            header,
            file: file.clone(),
        };
        let staged = self.stage(&request).await?;
        self.longest_pause_us
            .fetch_max(staged.pause_us, Ordering::Relaxed);
        tracing::debug!(
            vm = %self.vm,
            sequence,
            content = %staged.content,
            file = %staged.file_len,
            pause_us = staged.pause_us,
            saved = %staged.copied_before_write,
            "cut"
        );
        outbox::read(&file)
    }

    async fn offer(&self, staged: &Staged) -> Result<Offer, Problem> {
        outbox::offer(staged).await
    }

    async fn chunk(&self, staged: &Staged, n: u64) -> Result<Chunk, Problem> {
        outbox::chunk(staged, n).await
    }

    async fn confirm(&self, staged: &Staged) -> Result<(), Problem> {
        match fs::remove_file(&staged.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(&error)),
            _ => Ok(()),
        }
    }

    async fn fold_back(&self, staged: &Staged) -> Result<(), Problem> {
        if !staged.file.exists() {
            return Ok(());
        }
        match outbox::read(&staged.file) {
            Ok(_) => {}
            Err(problem) if problem.code == Code::Invalid => return self.mark_all(&problem).await,
            Err(problem) => return Err(problem),
        }
        let request = Request::FoldBack {
            file: staged.file.clone(),
        };
        self.ask(&request, STAGING).await.map(drop)
    }

    async fn persist(&self, progress: Progress) -> Result<(), Problem> {
        let mut record = self.record.lock().await;
        tokio::task::block_in_place(|| progress::write(&self.home, progress))?;
        record.progress = progress;
        Ok(())
    }

    async fn gate(&self, lineage: &Lineage) -> Result<(), Problem> {
        let (answer, answered) = oneshot::channel();
        let lineage = lineage.clone();
        let message = Message::Superseded { lineage, answer };
        let gone = || Problem::new(Code::Failed, &self.thing, "was deleted meanwhile", "");
        self.owner.send(message).await.map_err(|_closed| gone())?;
        answered.await.map_err(|_closed| gone())?
    }
}

#[cfg(test)]
mod tests {
    use model::SeedId;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    fn source(home: &Path) -> DiskdSource {
        fs::create_dir(DiskdSource::outbox(home)).expect("made");
        DiskdSource {
            vm: VmId::random(),
            thing: "VM `web`".to_owned(),
            socket: home.join("diskd.sock"),
            home: home.to_owned(),
            relationship: RelationshipId::random(),
            lineage: Lineage::begin("host-a"),
            disks: Vec::new(),
            record: Mutex::new(Record {
                progress: Progress::begin(SeedId::random()),
                reserved: 0,
            }),
            owner: mpsc::channel(1).0,
            longest_pause_us: Arc::default(),
        }
    }

    /// Answers as a diskd does that tracks already; gives what it was asked.
    fn diskd(socket: &Path) -> mpsc::UnboundedReceiver<Request> {
        let listener = UnixListener::bind(socket).expect("bound");
        let (asked, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut exact = true;
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a request");
                let request: Request = serde_json::from_str(&line).expect("one that it knows");
                let reply = match request {
                    Request::Track { .. } => Reply::Tracking {
                        exact,
                        suspect: Bytes(0),
                    },
                    _ => Reply::Done,
                };
                exact = request != Request::Untrack;
                asked.send(request).expect("the test listens");
                let mut reply = serde_json::to_string(&reply).expect("made");
                reply.push('\n');
                let written = stream.get_mut().write_all(reply.as_bytes()).await;
                written.expect("answered");
            }
        });
        requests
    }

    #[tokio::test]
    async fn when_nobody_can_tell_what_a_staged_segment_holds_every_block_is_marked() {
        let scratch = tempfile::tempdir().expect("scratch");
        let source = source(scratch.path());
        let mut requests = diskd(&source.socket);
        let file = DiskdSource::outbox(scratch.path()).join("3.delta");
        let track = Request::Track {
            relationship: source.relationship,
            begin: true,
        };
        fs::write(&file, b"torn").expect("written");
        let tracking = source.track().await.expect("it goes on");
        assert_eq!((tracking.exact, tracking.staged), (false, None));
        assert!(!file.exists());
        for expected in [&track, &Request::Untrack, &track] {
            assert_eq!(requests.recv().await.as_ref(), Some(expected));
        }

        fs::write(&file, b"torn").expect("written");
        let staged = Staged {
            file: file.clone(),
            header: source.header(Content::Delta {
                sequence: 3,
                since: Since::Seed {
                    seed: SeedId::random(),
                    parts: 1,
                },
            }),
        };
        source.fold_back(&staged).await.expect("it goes on");
        assert!(!file.exists());
        for expected in [&Request::Untrack, &track] {
            assert_eq!(requests.recv().await.as_ref(), Some(expected));
        }
        source.fold_back(&staged).await.expect("gone already");
        assert!(requests.is_empty());
    }

    #[test]
    fn segments_are_ordered_by_kind_and_number_and_others_are_passed_over() {
        let numbers = |names: [&str; 2]| names.map(|name| number_of(Path::new(name)));
        let [seed, delta] = numbers(["outbox/900.seed", "outbox/3.delta"]);
        assert!(seed.is_some() && seed < delta);
        let [nine, ten] = numbers(["9.delta", "10.delta"]);
        assert!(nine < ten);
        assert_eq!(numbers(["3.delta.new", ".3.delta.17-0.new"]), [None, None]);
        assert_eq!(numbers(["x.delta", "7"]), [None, None]);
    }
}
