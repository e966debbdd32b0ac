//! The primary's side of a relationship: diskd tracks, cuts and stages; what must survive is
//! recorded in the VM's folder.
//!
//! ```text
//!   replica::driver --> DiskdSource --control socket--> diskd --> outbox/*.segment
//!                            '--> progress.toml, sequence.toml
//! ```
//!
//! The outbox is a cache: a segment is named by its number, `N.delta` or `N.seed`, and appears
//! when it is whole. After a reboot what it held is suspect, or marked, so it is emptied.
//!
//! While a part of an initial replication is sent, diskd makes the next one, and it is hashed: reading,
//! compressing and hashing go on beside sending, and the outbox holds two parts at most.
//!
//! What is suspect is compared with the replica's newest point, or, while the initial replication goes
//! on, with what came of it. What was never sent of that is marked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes as Chunk;
use diskd::control::{Compared, MAX_LINE, Reply, Request, Sent, Slice, Staged as DiskdStaged};
use diskd::outbox::part_of;
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header};
use model::{Bytes, Code, DiskId, Lineage, Problem, RelationshipId, Since, VmId};
use replica::outbox;
use replica::source::{
    Changing, ChangingRegion, ComparedRegion, CutDisk, Part, Progress, SeedPart, Source, Staged,
    StagedPart, Suspects, Tracking,
};
use replica::wire::{Configuration, MAX_COMPARED, Offer, RegionHashes};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::handle::Message;
use super::progress;
use crate::lines::Lines;
use crate::measure::StagedSums;

/// How much content that takes space a part of an initial replication holds, about.
const PART: Bytes = Bytes(256 << 20);
/// Regions that are looked at between two points, at least: a point that is due waits while both hosts
/// read them.
const AT_ONCE_COMPARED: u64 = 16;
/// How long diskd may take for what it does at once.
const AT_ONCE: Duration = Duration::from_secs(30);
/// How long diskd may take for what it makes durable.
const DURABLE: Duration = Duration::from_secs(120);
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
    /// What is replicated now.
    pub(crate) configuration: watch::Receiver<Arc<Configuration>>,
    /// What is recorded in the folder; held while it is changed.
    pub(crate) record: Mutex<Record>,
    pub(crate) owner: mpsc::Sender<Message>,
    /// The longest hold-up of the guest by a cut, in microseconds.
    pub(crate) longest_pause_us: Arc<AtomicU64>,
    /// For the measures.
    pub(crate) sums: Arc<StagedSums>,
    /// What was hashed ahead; held while that goes on.
    pub(crate) hashed: Arc<Mutex<Option<Offer>>>,
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
        ask(&self.socket, &self.thing, request, limit).await
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.vm,
            disks: self.disks(),
            lineage: self.lineage.clone(),
            content,
            time: Timestamp::now(),
            consistency: Consistency::Crash,
        }
    }

    /// The replicated disks with their sizes now.
    fn disks(&self) -> Vec<DiskExtent> {
        let configuration = self.configuration.borrow();
        let size_of = |id: &DiskId| {
            let mut disks = configuration.spec.disks.iter();
            let disk = disks.find(|disk| disk.id == *id)?;
            Some(DiskExtent {
                joining: false,
                id: disk.id,
                size: disk.size,
            })
        };
        configuration.disks.iter().filter_map(size_of).collect()
    }

    async fn stage(&self, request: &Request) -> Result<DiskdStaged, Problem> {
        match self.ask(request, STAGING).await? {
            Reply::Staged(staged) => {
                let content = staged.content.0.saturating_sub(staged.zeroes.0);
                self.sums.add(content, staged.file_len.0);
                Ok(staged)
            }
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

    /// Lets diskd track: whether it is exact, and how much is suspect.
    async fn track_now(&self, progress: Progress) -> Result<(bool, Bytes), Problem> {
        let request = Request::Track {
            relationship: self.relationship,
            begin: matches!(progress, Progress::Seeding { .. }),
            sent: self.sent(progress),
            but: left_out(&self.configuration.borrow()),
        };
        match self.ask(&request, DURABLE).await? {
            Reply::Tracking { exact, suspect } => Ok((exact, suspect)),
            _ => Err(self.confused()),
        }
    }

    /// What was sent of an initial replication that goes on.
    fn sent(&self, progress: Progress) -> Vec<Sent> {
        let Some(position) = progress.sent() else {
            return Vec::new();
        };
        let disks = self.disks().into_iter().enumerate();
        let sent = disks.filter_map(|(number, disk)| {
            let to = match number.cmp(&position.disk) {
                std::cmp::Ordering::Less => u64::MAX,
                std::cmp::Ordering::Equal => position.from,
                std::cmp::Ordering::Greater => 0,
            };
            (to > 0).then_some(Sent { disk: disk.id, to })
        });
        sent.collect()
    }

    /// Whether diskd knows of a segment that was not confirmed.
    async fn knows_a_segment(&self) -> Result<bool, Problem> {
        let Reply::Status { disks, .. } = self.ask(&Request::Status, AT_ONCE).await? else {
            return Err(self.confused());
        };
        let mut tracked = disks.iter().filter_map(|disk| disk.tracking.as_ref());
        Ok(tracked.any(|tracking| tracking.unconfirmed > Bytes(0)))
    }

    /// The segment that waits in the outbox. What cannot be shipped is folded back; whether
    /// anything was, so that more may be suspect.
    async fn staged(&self) -> Result<(Option<Staged>, bool), Problem> {
        let outbox = Self::outbox(&self.home);
        let mut files = segments(&outbox).map_err(|e| self.failed(&e))?;
        let newest = files.pop();
        let (mut staged, mut folded) = (None, !files.is_empty());
        for file in &files {
            self.take_back(file).await?;
        }
        match newest {
            Some(file) => match outbox::read(&file) {
                Ok(read) => staged = Some(read),
                Err(problem) if problem.code == Code::Invalid => {
                    tracing::error!(vm = %self.vm, %problem, "what it held is suspect");
                    self.take_back(&file).await?;
                    folded = true;
                }
                Err(problem) => return Err(problem),
            },
            // Somebody removed it.
            None if self.knows_a_segment().await? => {
                self.take_back(&outbox.join("0.delta")).await?;
                folded = true;
            }
            None => {}
        }
        Ok((staged, folded))
    }

    async fn take_back(&self, file: &Path) -> Result<(), Problem> {
        let file = file.to_owned();
        let request = Request::FoldBack { file };
        self.ask(&request, STAGING).await.map(drop)
    }

    fn part_file(&self, part: u64) -> PathBuf {
        Self::outbox(&self.home).join(format!("{part}.seed"))
    }

    /// Lets diskd make `part` while the one before it is sent. If it does not, that one is made when its
    /// turn comes.
    fn prepare(&self, part: SeedPart) {
        let SeedPart { seed, part, at } = part;
        let Ok(DiskExtent { id: disk, .. }) = self.disk(at.disk) else {
            // That was the last one.
            return;
        };
        let request = Request::Prepare {
            header: self.header(Content::Seed { seed, part }),
            disk,
            from: at.from,
            limit: PART,
            file: self.part_file(part),
        };
        let draft = part_of(&self.part_file(part));
        let (vm, socket, hashed) = (self.vm, self.socket.clone(), self.hashed.clone());
        tokio::spawn(async move {
            let asked = match Lines::<Request, Reply>::connect(&socket, MAX_LINE).await {
                Ok(lines) => lines.ask_within(STAGING, &request).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(Reply::Refused { problem }) => {
                    tracing::debug!(%vm, part, %problem, "not made ahead");
                }
                Ok(_) => {
                    let mut hashed = hashed.lock().await;
                    // It may have got its name meanwhile: then it is hashed when it is offered.
                    *hashed = outbox::offer(&draft).await.ok();
                }
                Err(error) => tracing::debug!(%vm, part, %error, "not made ahead"),
            }
        });
    }

    fn disk(&self, position: usize) -> Result<DiskExtent, Problem> {
        let disk = self.disks().get(position).copied();
        disk.ok_or_else(|| self.confused())
    }

    fn disk_of(&self, id: DiskId) -> Result<DiskExtent, Problem> {
        let found = self.disks().into_iter().find(|extent| extent.id == id);
        found.ok_or_else(|| {
            let reason = format!("has disk {id} no longer");
            Problem::new(Code::Failed, &self.thing, reason, "")
        })
    }

    fn empty_outbox(&self) -> io::Result<()> {
        for entry in fs::read_dir(Self::outbox(&self.home))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

/// Asks the diskd of `thing` that listens on `socket`.
pub(super) async fn ask(
    socket: &Path,
    thing: &str,
    request: &Request,
    limit: Duration,
) -> Result<Reply, Problem> {
    let failed = |error| Problem::failed(thing, &error);
    let lines = Lines::connect(socket, MAX_LINE).await.map_err(failed)?;
    match lines.ask_within(limit, request).await.map_err(failed)? {
        Reply::Refused { problem } => Err(problem),
        reply => Ok(reply),
    }
}

/// The disks that are not replicated.
pub(super) fn left_out(configuration: &Configuration) -> Vec<DiskId> {
    let disks = configuration.spec.disks.iter().map(|disk| disk.id);
    let out = |id: &DiskId| !configuration.disks.contains(id);
    disks.filter(out).collect()
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
        let record = *self.record.lock().await;
        let answer = self.track_now(record.progress).await;
        if answer.is_err() {
            // While no guest runs nobody else notices that the supervisor died. A full mailbox
            // is no loss: this is asked again.
            let _ = self.owner.try_send(Message::DisksLost);
        }
        let (exact, mut suspect) = answer?;
        if !exact {
            self.empty_outbox().map_err(|e| self.failed(&e))?;
        }
        let (staged, folded) = self.staged().await?;
        if folded {
            (_, suspect) = self.track_now(record.progress).await?;
        }
        Ok(Tracking {
            exact,
            suspect,
            staged,
            progress: record.progress,
            reserved: record.reserved,
        })
    }

    async fn reserve_sequence(&self, above: u64) -> Result<u64, Problem> {
        let mut record = self.record.lock().await;
        // Never below the point that the term grew from.
        let parent = self.lineage.current().parent;
        let before = record
            .reserved
            .max(above)
            .max(parent.map_or(0, |point| point.sequence));
        let next = before + 1;
        tokio::task::block_in_place(|| progress::reserve(&self.home, next))?;
        record.reserved = next;
        Ok(next)
    }

    async fn seed(&self, part: SeedPart) -> Result<StagedPart, Problem> {
        let SeedPart { seed, part, at } = part;
        let file = self.part_file(part);
        let request = Request::Seed {
            header: self.header(Content::Seed { seed, part }),
            disk: self.disk(at.disk)?.id,
            from: at.from,
            limit: PART,
            file: file.clone(),
        };
        let staged = self.stage(&request).await?;
        let segment = outbox::read(&file)?;
        self.prepare(SeedPart {
            seed,
            part: part.saturating_add(1),
            at: at.after(staged.next),
        });
        Ok(StagedPart {
            segment,
            next: staged.next,
        })
    }

    async fn cut(
        &self,
        since: Since,
        sequence: u64,
        disks: Vec<CutDisk>,
    ) -> Result<StagedPart, Problem> {
        let mut header = self.header(Content::Delta { sequence, since });
        let (mut whole, mut slice) = (Vec::new(), None);
        header.disks.retain_mut(|extent| {
            let Some(disk) = disks.iter().find(|disk| disk.id == extent.id) else {
                return false;
            };
            match disk.part {
                Part::Member => {}
                Part::Joined => whole.push(disk.id),
                Part::Joining => extent.joining = true,
                Part::Slice { from, limit } => {
                    extent.joining = true;
                    let disk = disk.id;
                    slice = Some(Slice { disk, from, limit });
                }
            }
            true
        });
        let file = Self::outbox(&self.home).join(format!("{sequence}.delta"));
        let request = Request::Cut {
            header,
            whole,
            slice,
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
        Ok(StagedPart {
            segment: outbox::read(&file)?,
            next: staged.next,
        })
    }

    async fn offer(&self, staged: &Staged) -> Result<Offer, Problem> {
        let ahead = self.hashed.lock().await.take();
        match ahead {
            // The root is that of every byte.
            Some(offer) if offer.root == staged.root => Ok(offer),
            _ => outbox::offer(&staged.file).await,
        }
    }

    async fn chunk(&self, staged: &Staged, n: u64) -> Result<Chunk, Problem> {
        outbox::chunk(staged, n).await
    }

    async fn confirm(&self, staged: &Staged) -> Result<(), Problem> {
        let file = staged.file.clone();
        // It may flush the disks.
        let request = Request::Confirm { file };
        self.ask(&request, STAGING).await.map(drop)
    }

    async fn fold_back(&self, staged: &Staged) -> Result<(), Problem> {
        self.take_back(&staged.file).await
    }

    async fn hashes(&self, disk: DiskId, from: u64) -> Result<Suspects, Problem> {
        let DiskExtent { id, size, .. } = self.disk_of(disk)?;
        let request = Request::Hashes {
            disk: id,
            from,
            limit: MAX_COMPARED as u64,
        };
        let Reply::Hashes { regions, next } = self.ask(&request, STAGING).await? else {
            return Err(self.confused());
        };
        let regions = regions.into_iter().map(|found| RegionHashes {
            region: found.region,
            hashes: found.hashes,
        });
        Ok(Suspects {
            size,
            regions: regions.collect(),
            next,
        })
    }

    async fn compared(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        let regions = regions.into_iter().map(|compared| Compared {
            region: compared.region,
            differ: compared.differ,
        });
        let request = Request::Compared {
            disk,
            regions: regions.collect(),
        };
        self.ask(&request, DURABLE).await.map(drop)
    }

    async fn changing(&self, disk: DiskId, from: u64) -> Result<Changing, Problem> {
        let DiskExtent { id, size, .. } = self.disk_of(disk)?;
        let request = Request::Regions {
            disk: id,
            from,
            limit: AT_ONCE_COMPARED,
        };
        let Reply::Regions { regions, next } = self.ask(&request, STAGING).await? else {
            return Err(self.confused());
        };
        let regions = regions.into_iter().map(|found| ChangingRegion {
            region: found.region,
            hashes: found.hashes,
            changed: found.changed,
        });
        Ok(Changing {
            size,
            regions: regions.collect(),
            next,
        })
    }

    async fn mark(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        let regions = regions.into_iter().map(|compared| Compared {
            region: compared.region,
            differ: compared.differ,
        });
        let request = Request::Mark {
            disk,
            regions: regions.collect(),
        };
        self.ask(&request, DURABLE).await.map(drop)
    }

    async fn suspect(&self, issued: u64) -> Result<Bytes, Problem> {
        self.ask(&Request::Suspect, DURABLE).await?;
        // Not before: with the number alone the replica's point would pass for one of this host's.
        let mut record = self.record.lock().await;
        if issued > record.reserved {
            tokio::task::block_in_place(|| progress::reserve(&self.home, issued))?;
            record.reserved = issued;
        }
        let (_, suspect) = self.track_now(record.progress).await?;
        Ok(suspect)
    }

    async fn persist(&self, progress: Progress) -> Result<(), Problem> {
        let mut record = self.record.lock().await;
        tokio::task::block_in_place(|| progress::write(&self.home, progress))?;
        let was_seeding = matches!(record.progress, Progress::Seeding { .. });
        record.progress = progress;
        if was_seeding && matches!(progress, Progress::Live { .. }) {
            // Disks that were added meanwhile can join now. A full mailbox is of an owner that comes to
            // that by itself.
            let _ = self.owner.try_send(Message::GoOn);
        }
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

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

#[cfg(test)]
mod tests {
    use diskd::control::{EpochStatus, StoreKind};
    use model::{Bus, DiskSpec, Generation, SeedId, VmSpec};
    use replica::source::Position;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Two disks, of which the first one is replicated.
    fn configuration() -> watch::Receiver<Arc<Configuration>> {
        let disk = |slot: u8| {
            let file = format!("disk{slot}.raw").into();
            DiskSpec::new(file, Bytes(1 << 20), Bus::Virtio, slot)
        };
        let disks = vec![disk(0), disk(1)];
        let (name, memory) = ("web".parse().expect("a name"), Bytes(64 << 20));
        let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, disks);
        let spec = spec.expect("a VM");
        let disks = vec![spec.disks[0].id];
        let (_, seen) = watch::channel(Arc::new(Configuration {
            spec,
            disks,
            frequency_s: 5,
            keep: None,
        }));
        seen
    }

    fn source(home: &Path) -> DiskdSource {
        fs::create_dir(DiskdSource::outbox(home)).expect("made");
        DiskdSource {
            vm: VmId::random(),
            thing: "VM `web`".to_owned(),
            socket: home.join("diskd.sock"),
            home: home.to_owned(),
            relationship: RelationshipId::random(),
            lineage: Lineage::begin("host-a"),
            configuration: configuration(),
            record: Mutex::new(Record {
                progress: Progress::begin(SeedId::random()),
                reserved: 0,
            }),
            owner: mpsc::channel(1).0,
            longest_pause_us: Arc::default(),
            sums: Arc::default(),
            hashed: Arc::default(),
        }
    }

    /// Answers as a diskd does that tracks already, and to which what it cannot read any more is
    /// suspect; gives what it was asked.
    fn diskd(socket: &Path) -> mpsc::UnboundedReceiver<Request> {
        let listener = UnixListener::bind(socket).expect("bound");
        let (asked, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (exact, mut suspect) = (true, Bytes(0));
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a request");
                let request: Request = serde_json::from_str(&line).expect("one that it knows");
                let reply = match &request {
                    Request::Track { .. } => Reply::Tracking { exact, suspect },
                    Request::FoldBack { file } => {
                        suspect = Bytes(1 << 20);
                        fs::remove_file(file).expect("there");
                        Reply::Done
                    }
                    Request::Suspect => {
                        suspect = Bytes(1 << 30);
                        Reply::Done
                    }
                    Request::Status => Reply::Status {
                        pid: 1,
                        version: String::new(),
                        generation: 1,
                        store: StoreKind::IoUring,
                        lacking: Vec::new(),
                        disks: Vec::new(),
                        epochs: EpochStatus::default(),
                    },
                    _ => Reply::Done,
                };
                asked.send(request).expect("the test listens");
                let mut reply = serde_json::to_string(&reply).expect("made");
                reply.push('\n');
                let written = stream.get_mut().write_all(reply.as_bytes()).await;
                written.expect("answered");
            }
        });
        requests
    }

    fn live(sequence: u64) -> Progress {
        Progress::Live {
            acknowledged: model::PointId {
                term: model::TermId::random(),
                sequence,
            },
            compared: false,
        }
    }

    #[tokio::test]
    async fn what_nobody_can_tell_is_compared_with_the_point_or_with_what_was_sent() {
        for begin in [false, true] {
            let scratch = tempfile::tempdir().expect("scratch");
            let source = source(scratch.path());
            let disk = source.configuration.borrow().disks[0];
            let at = Position {
                disk: 0,
                from: 8192,
            };
            let mut record = source.record.lock().await;
            record.progress = match record.progress {
                Progress::Seeding { seed, .. } if begin => Progress::Seeding {
                    seed,
                    part: 1,
                    at,
                    end: None,
                    sent: Position::BEGIN,
                    round: 0,
                },
                _ => live(2),
            };
            drop(record);
            let mut requests = diskd(&source.socket);
            let file = DiskdSource::outbox(scratch.path()).join("3.delta");
            let track = Request::Track {
                relationship: source.relationship,
                begin,
                sent: if begin {
                    vec![Sent { disk, to: 8192 }]
                } else {
                    Vec::new()
                },
                but: left_out(&source.configuration.borrow()),
            };
            fs::write(&file, b"torn").expect("written");
            let tracking = source.track().await.expect("it goes on");
            assert_eq!(tracking.staged, None);
            assert!(!file.exists());
            let suspect = Bytes(1 << 20);
            assert_eq!((tracking.exact, tracking.suspect), (true, suspect));
            let fold = Request::FoldBack { file };
            for expected in [&track, &fold, &track] {
                assert_eq!(requests.recv().await.as_ref(), Some(expected));
            }
            assert!(requests.is_empty());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn when_all_is_suspect_the_numbers_that_may_have_been_used_are_never_given_again() {
        let scratch = tempfile::tempdir().expect("scratch");
        let source = source(scratch.path());
        let mut requests = diskd(&source.socket);
        let suspect = source.suspect(1000).await.expect("it goes on");
        assert_eq!(suspect, Bytes(1 << 30));
        assert_eq!(requests.recv().await, Some(Request::Suspect));
        assert_eq!(progress::reserved(scratch.path()), Ok(1000));
        assert_eq!(source.reserve_sequence(0).await, Ok(1001));
        assert_eq!(source.reserve_sequence(2000).await, Ok(2001));
        assert_eq!(progress::reserved(scratch.path()), Ok(2001));
        source.suspect(7).await.expect("it goes on");
        assert_eq!(source.reserve_sequence(7).await, Ok(2002));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_part_that_comes_next_is_hashed_ahead_and_offered_as_it_is() {
        let scratch = tempfile::tempdir().expect("scratch");
        let source = source(scratch.path());
        let _requests = diskd(&source.socket);
        let write = |file: &Path, part: SeedPart, block: u8| {
            let (seed, part) = (part.seed, part.part);
            let header = source.header(Content::Seed { seed, part });
            let made = fs::File::create(file).expect("made");
            let mut writer = journal::SegmentWriter::create(made, &header).expect("begun");
            writer.push_frame(0, 0, &[block; 4096]).expect("fits");
            writer.finish().expect("whole");
        };
        let part = SeedPart {
            seed: SeedId::random(),
            part: 3,
            at: Position::BEGIN,
        };
        let file = source.part_file(3);
        let hash_ahead = async |block| {
            write(&part_of(&file), part, block);
            source.prepare(part);
            while source.hashed.lock().await.is_none() {
                tokio::task::yield_now().await;
            }
        };
        hash_ahead(1).await;
        fs::rename(part_of(&file), &file).expect("named");
        let staged = outbox::read(&file).expect("a segment");
        let hashed = source.hashed.lock().await.clone();
        assert_eq!(source.offer(&staged).await.ok(), hashed);
        let again = source.offer(&staged).await.expect("offered");
        assert_eq!(Some(&again), hashed.as_ref(), "hashed when it is offered");
        // Another one was made instead.
        hash_ahead(2).await;
        assert_ne!(*source.hashed.lock().await, hashed);
        assert_eq!(source.offer(&staged).await.ok(), Some(again));
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
