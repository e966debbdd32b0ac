//! What polluxd does for a VM that is replicated, without the replica: it has changes tracked, cut,
//! staged, read and confirmed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use diskd::control::{Reply, Request, Staged, TrackingStatus};
use diskd::intent::{Armed, IntentLog, Tag};
use diskd::state::{DiskState, Marks};
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header, SegmentReader};
use model::{Bytes, Lineage, PointId, RelationshipId, SeedId, Since, VmId};
use ring::{Ring, RingStore};

use crate::servers::{Control, Diskd};

/// Content of a part of an initial replication.
const PART: Bytes = Bytes(64 << 20);

/// A replicated VM of one disk, as the one sees it who asks its diskd for epochs.
pub(crate) struct Primary {
    relationship: RelationshipId,
    vm: VmId,
    disk: DiskExtent,
    lineage: Lineage,
    seed: SeedId,
    parts: u64,
    /// Of the last segment.
    sequence: u64,
    outbox: PathBuf,
}

impl Primary {
    /// That of the disk of `diskd`, whose segments are staged in the folder `outbox`.
    pub(crate) fn new(diskd: &Diskd, outbox: &Path) -> Self {
        Self {
            relationship: RelationshipId::random(),
            vm: diskd.vm(),
            disk: DiskExtent {
                joining: false,
                id: diskd.disk().id,
                size: diskd.disk().size,
            },
            lineage: Lineage::begin("bench"),
            seed: SeedId::random(),
            parts: 0,
            sequence: 0,
            outbox: outbox.to_owned(),
        }
    }

    /// Leaves what a diskd leaves whose replica has everything: nothing is marked, no region is armed. In
    /// place of an initial replication, and before the diskd is started.
    pub(crate) fn prepare(&self, diskd: &Diskd) -> Result<()> {
        // It notes what the disk is made of.
        drop(diskd.start()?);
        let disk = diskd.disk();
        let boot = durable::boot_id()?;
        let state = DiskState::open(&disk.state, boot, disk.id, disk.size.0, 1)?;
        state.track(self.relationship, Marks::None);
        let ring = Ring::new(8)?;
        let log = disk.tracking.join(format!("{}.intent", disk.id));
        let log = RingStore::open(&ring, &log, false, true)?;
        let tag = Tag {
            disk: disk.id,
            relationship: self.relationship,
        };
        ring.block_on(IntentLog::create(log, tag, disk.size.0, Armed::None))?;
        Ok(())
    }

    /// Begins to track, with every block marked.
    pub(crate) fn begin(&self, control: &mut Control) -> Result<()> {
        self.track(control, true).map(drop)
    }

    /// Goes on where a diskd ended: what it left must be exact.
    pub(crate) fn go_on(&self, control: &mut Control) -> Result<()> {
        ensure!(self.track(control, false)?, "what is marked is not exact");
        Ok(())
    }

    fn track(&self, control: &mut Control, begin: bool) -> Result<bool> {
        let request = Request::Track {
            relationship: self.relationship,
            begin,
            sent: Vec::new(),
            but: Vec::new(),
        };
        match control.ask(&request)? {
            Reply::Tracking { exact, .. } => Ok(exact),
            other => bail!("diskd answered {other:?}"),
        }
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.vm,
            disks: vec![self.disk],
            lineage: self.lineage.clone(),
            content,
            time: Timestamp::now(),
            consistency: Consistency::Crash,
        }
    }

    /// The initial replication of the whole disk.
    pub(crate) fn seed(&mut self, control: &mut Control) -> Result<()> {
        let mut next = Some(0);
        while let Some(from) = next {
            let file = self.outbox.join(format!("{}.seed", self.parts));
            let request = Request::Seed {
                header: self.header(Content::Seed {
                    seed: self.seed,
                    part: self.parts,
                }),
                disk: self.disk.id,
                from,
                limit: PART,
                file: file.clone(),
            };
            next = staged(control.ask(&request)?)?.next;
            self.parts += 1;
            self.confirm(control, &file)?;
        }
        Ok(())
    }

    /// Cuts an epoch and has it staged.
    pub(crate) fn cut(&mut self, control: &mut Control) -> Result<(Staged, PathBuf)> {
        let since = match self.sequence {
            0 => Since::Seed {
                seed: self.seed,
                parts: self.parts,
            },
            sequence => Since::Point(PointId {
                term: self.lineage.current().id,
                sequence,
            }),
        };
        let sequence = self.sequence + 1;
        let file = self.outbox.join(format!("{sequence}.seg"));
        let request = Request::Cut {
            header: self.header(Content::Delta { sequence, since }),
            whole: Vec::new(),
            slice: None,
            file: file.clone(),
        };
        let staged = staged(control.ask(&request)?)?;
        self.sequence = sequence;
        Ok((staged, file))
    }

    /// In place of sending a segment: all of it is read and hashed. Then it is confirmed.
    pub(crate) fn ship(&self, control: &mut Control, file: &Path) -> Result<()> {
        SegmentReader::open(file)?.verify_all()?;
        self.confirm(control, file)
    }

    /// The replica has all of `file`.
    pub(crate) fn confirm(&self, control: &mut Control, file: &Path) -> Result<()> {
        let file = file.to_owned();
        control.ask(&Request::Confirm { file }).map(drop)
    }

    /// How the disk is tracked.
    pub(crate) fn status(control: &mut Control) -> Result<TrackingStatus> {
        match control.ask(&Request::Status)? {
            Reply::Status { mut disks, .. } => {
                let tracking = disks.pop().and_then(|disk| disk.tracking);
                tracking.context("the disk is not tracked")
            }
            other => bail!("diskd answered {other:?}"),
        }
    }
}

fn staged(reply: Reply) -> Result<Staged> {
    match reply {
        Reply::Staged(staged) => Ok(staged),
        other => bail!("diskd answered {other:?}"),
    }
}
