//! One replica host with a thousand twins: each gets a point of 2 MB every few minutes, and what its
//! policy does not keep goes into its base. The primaries are played by this program.
//!
//! First every twin gets two points, as fast as it goes; then one more in its turn, spread over the time
//! from one to the next, and behind each of these is a merge. Only that is measured, with the contact that
//! each primary makes every second beside it.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header, SegmentWriter};
use model::{
    BLOCK_SIZE, Bus, Bytes, DiskSpec, Generation, Lineage, PointId, RelationshipId, SeedId, Since,
    VmSpec,
};
use pollux_tests::{Host, until};
use replica::client::{PeerClient, PeerLink};
use replica::identity::Identity;
use replica::link::{Link, LinkError};
use replica::outbox;
use replica::sender::CONTACT;
use replica::source::Staged;
use replica::trust::{Peer, Trust};
use replica::wire::{CommitAnswer, Configuration, Contact, Enrol, OfferAnswer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::content::noise;
use crate::figures::{Goal, Rows, number};
use crate::servers::cpu_time;

const TWINS: u64 = 1000;
/// Bytes that change from one point to the next, half of which can be compressed.
const CHANGED: u64 = 2_000_000 / BLOCK_SIZE * BLOCK_SIZE;
const DISK: Bytes = Bytes(64 << 20);
/// From one point of a twin to its next.
const FREQUENCY: Duration = Duration::from_secs(300);
/// Points of each twin before it is measured. The policy keeps two, so that each later commit has a merge
/// behind it.
const BEFORE: u64 = 2;
/// Points of each twin that are measured.
const CYCLES: u64 = 1;
const KEPT: &str = "2:all";
/// Twins that get their first points at one time.
const AT_ONCE: usize = 4;
/// Longest time that a segment may take to come, measured or not.
const LIMIT: Duration = Duration::from_secs(120);
/// Segments that are written at once: the primaries are other hosts, and take no more of this one's cores.
const WRITERS: usize = 1;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("relationships") {
        return Ok(());
    }
    let scratch = pollux_tests::Scratch::new("bench/fleet")?;
    let pollux = Host::start("pollux", &scratch)?;
    pollux.pollux(&["replica", "server", "enable"])?;
    let fleet = Fleet::new(scratch.state(), &pollux)?;
    let runtime = tokio::runtime::Runtime::new()?;
    eprintln!("enrolling {TWINS} twins");
    let members = runtime.block_on(fleet.enrol())?;
    eprintln!("{BEFORE} points of each");
    let members = runtime.block_on(fleet.fill(members))?;
    let daemon = pollux.daemon_id().context("polluxd runs")?;
    let (cpu, begin) = (cpu_time(daemon)?, Instant::now());
    eprintln!(
        "{CYCLES} more of each within {} s",
        FREQUENCY.as_secs() * CYCLES
    );
    let run = runtime.block_on(fleet.replicate(members))?;
    let spent = cpu_time(daemon)?.saturating_sub(cpu);
    let missed = number(run.missed.load(Ordering::Relaxed));
    rows.add(
        "relationships_missed_cycles",
        "",
        Goal::AtMost(0.0),
        &[missed],
    );
    let cores = spent.as_secs_f64() / begin.elapsed().as_secs_f64();
    rows.add("relationships_cpu", "cores", Goal::Reported, &[cores]);
    let mib = number(resident(daemon)?) / f64::from(1 << 20);
    rows.add("relationships_rss", "MiB", Goal::Reported, &[mib]);
    let longest = number(run.longest_ms.load(Ordering::Relaxed)) / 1e3;
    rows.add(
        "relationships_longest_commit",
        "s",
        Goal::Reported,
        &[longest],
    );
    let contacts = number(run.contacts.load(Ordering::Relaxed)) / begin.elapsed().as_secs_f64();
    rows.add("relationships_contacts", "1/s", Goal::Reported, &[contacts]);
    // What was merged behind the commits is no debt that is left.
    for twin in (0..TWINS).step_by(20) {
        let vm = format!("fleet-{twin}");
        until(LIMIT, "the twins hold what they are to keep", || {
            let points = pollux.json(&["point", "list", &vm])?;
            Ok((points.as_array().map(Vec::len) == Some(2)).then_some(()))
        })?;
    }
    Ok(())
}

/// What became of all points.
#[derive(Default)]
struct Outcome {
    /// Not committed when the next one was due.
    missed: AtomicU64,
    longest_ms: AtomicU64,
    /// Answers to the contact that each primary makes every second.
    contacts: AtomicU64,
}

struct Fleet {
    client: Arc<PeerClient>,
    folder: std::path::PathBuf,
}

/// One VM of the fleet.
struct Member {
    number: u64,
    link: PeerLink,
    vm: model::VmId,
    disk: DiskExtent,
    lineage: Lineage,
    seed: SeedId,
    file: std::path::PathBuf,
}

impl Fleet {
    fn new(folder: &Path, pollux: &Host) -> Result<Self> {
        let own = folder.join("fleet");
        fs::create_dir_all(&own)?;
        let identity = Identity::open(&own.join("identity"), "fleet", Timestamp::now())?;
        let trust = Trust::open(&own.join("peers"))?;
        let theirs = fs::read_to_string(pollux.state().join("identity/authority.pem"))?;
        let address = format!("127.0.0.1:{}", pollux.port());
        trust.trust(Peer::new("pollux", &address, &theirs, None)?)?;
        let authority = own.join("authority.pem");
        fs::write(&authority, identity.authority_pem())?;
        let authority = authority.to_str().context("the path is not UTF-8")?;
        // Nobody listens there: the fleet is never asked.
        pollux.pollux(&[
            "host",
            "trust",
            "fleet",
            "127.0.0.1:9",
            "--authority",
            authority,
        ])?;
        let client = PeerClient::new(Arc::new(identity), Arc::new(trust), "pollux");
        Ok(Self {
            client: Arc::new(client),
            folder: own,
        })
    }

    async fn enrol(&self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for number in 0..TWINS {
            let disk = DiskSpec::new("disk0.raw".into(), DISK, Bus::Virtio, 0);
            let name = format!("fleet-{number}").parse()?;
            let (generation, memory) = (Generation::Two, Bytes(64 << 20));
            let extent = DiskExtent {
                id: disk.id,
                size: disk.size,
                joining: false,
            };
            let spec = VmSpec::new(name, generation, 1, memory, true, None, vec![disk])?;
            let configuration = Configuration {
                spec: spec.clone(),
                disks: vec![extent.id],
                frequency_s: u32::try_from(FREQUENCY.as_secs())?,
                keep: Some(KEPT.parse()?),
            };
            let (relationship, seed) = (RelationshipId::random(), SeedId::random());
            let lineage = Lineage::begin("fleet");
            let enrol = Enrol {
                relationship,
                spec,
                revision: configuration.revision(),
                disks: configuration.disks,
                frequency_s: configuration.frequency_s,
                keep: configuration.keep,
                seed,
                seed_from: None,
                lineage: lineage.clone(),
            };
            let vm = enrol.spec.id;
            let agreed = self.client.enrol(vm, &enrol).await;
            agreed.map_err(|error| anyhow::anyhow!("twin {number} is refused: {error}"))?;
            members.push(Member {
                number,
                link: PeerLink::new(self.client.clone(), vm, relationship),
                vm,
                disk: extent,
                lineage,
                seed,
                file: self.folder.join(format!("{number}.seg")),
            });
        }
        Ok(members)
    }

    /// Sends the points before those that are measured.
    async fn fill(&self, members: Vec<Member>) -> Result<Vec<Member>> {
        let filled = stream::iter(members).map(|member| async move {
            for sequence in 1..=BEFORE {
                let staged = member.stage(sequence)?;
                member.ship(&staged).await?;
            }
            if (member.number + 1) % (TWINS / 10) == 0 {
                eprintln!("  {} twins have theirs", member.number + 1);
            }
            Ok(member)
        });
        filled.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn replicate(&self, members: Vec<Member>) -> Result<Arc<Outcome>> {
        let outcome = Arc::new(Outcome::default());
        let writers = Arc::new(Semaphore::new(WRITERS));
        let begin = Instant::now();
        let mut all = JoinSet::new();
        // They end when this one does.
        let mut contacts = JoinSet::new();
        for member in &members {
            contacts.spawn(member.keeps_contact(outcome.clone()));
        }
        for member in members {
            let (outcome, writers) = (outcome.clone(), writers.clone());
            all.spawn(async move { member.replicate(begin, &writers, &outcome).await });
        }
        let mut ended = 0;
        while let Some(member) = all.join_next().await {
            member??;
            ended += 1;
            if ended % (TWINS / 10) == 0 {
                eprintln!("  {ended} twins are done");
            }
        }
        Ok(outcome)
    }
}

impl Member {
    async fn replicate(self, begin: Instant, writers: &Semaphore, outcome: &Outcome) -> Result<()> {
        // Spread over the time from one point to the next, as hosts spread them.
        let first = begin + FREQUENCY.mul_f64(number(self.number) / number(TWINS));
        let member = Arc::new(self);
        for cycle in 0..CYCLES {
            let due = first + FREQUENCY * u32::try_from(cycle)?;
            let sequence = BEFORE + 1 + cycle;
            sleep_until(due).await;
            let writing = writers.acquire().await?;
            let writer = member.clone();
            let staged = tokio::task::spawn_blocking(move || writer.stage(sequence)).await??;
            drop(writing);
            let sent = Instant::now();
            member.ship(&staged).await?;
            let took = u64::try_from(sent.elapsed().as_millis())?;
            outcome.longest_ms.fetch_max(took, Ordering::Relaxed);
            if due.elapsed() > FREQUENCY {
                outcome.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        fs::remove_file(&member.file)?;
        Ok(())
    }

    /// Asks how its twin stands, as a primary does beside its points.
    fn keeps_contact(&self, outcome: Arc<Outcome>) -> impl Future<Output = ()> + Send + 'static {
        let (link, contact) = (self.link.clone(), Contact::of(self.lineage.clone()));
        let first = CONTACT.mul_f64(number(self.number) / number(TWINS));
        async move {
            sleep(first).await;
            loop {
                if link.meet(&contact, LIMIT).await.is_ok() {
                    outcome.contacts.fetch_add(1, Ordering::Relaxed);
                }
                sleep(CONTACT).await;
            }
        }
    }

    fn stage(&self, sequence: u64) -> Result<Staged> {
        let since = match sequence {
            1 => Since::Seed {
                seed: self.seed,
                parts: 0,
            },
            _ => Since::Point(PointId {
                term: self.lineage.current().id,
                sequence: sequence - 1,
            }),
        };
        let header = Header {
            vm: self.vm,
            disks: vec![self.disk],
            lineage: self.lineage.clone(),
            content: Content::Delta { sequence, since },
            time: Timestamp::now(),
            consistency: Consistency::Crash,
        };
        let mut writer = SegmentWriter::create(File::create(&self.file)?, &header)?;
        let mut random = (self.number << 32 | sequence) + 1;
        let (blocks, stretch) = (DISK.0 / BLOCK_SIZE, 16);
        let stretches = CHANGED / BLOCK_SIZE / stretch;
        let mut content = vec![0; usize::try_from(stretch * BLOCK_SIZE)?];
        for part in 0..stretches {
            for block in content.chunks_mut(4096) {
                noise(&mut block[..2048], &mut random);
            }
            // Scattered over the disk, elsewhere from point to point.
            let at = part * (blocks / stretches) + sequence % 4 * stretch;
            writer.push_frame(0, at, &content)?;
        }
        let (summary, _) = writer.finish()?;
        Ok(Staged {
            file: self.file.clone(),
            header,
            root: summary.root,
        })
    }

    async fn ship(&self, staged: &Staged) -> Result<()> {
        let sent = tokio::time::timeout(LIMIT, self.send(staged)).await;
        sent.with_context(|| format!("twin {} did not take a point in time", self.number))?
    }

    async fn send(&self, staged: &Staged) -> Result<()> {
        let offer = outbox::offer(&staged.file).await?;
        let wrong = |error: LinkError| anyhow::anyhow!("twin {}: {error}", self.number);
        let missing = match self.link.offer(&offer).await.map_err(wrong)? {
            OfferAnswer::Missing { chunks } => chunks,
            other => bail!("twin {}: an offer is answered with {other:?}", self.number),
        };
        for chunk in missing {
            let bytes = outbox::chunk(staged, chunk).await?;
            let put = self.link.put(staged.root, chunk, bytes).await;
            put.map_err(wrong)?;
        }
        let answer = self.link.commit(staged.root).await.map_err(wrong)?;
        ensure!(
            matches!(answer, CommitAnswer::Committed { .. }),
            "twin {}: a commit is answered with {answer:?}",
            self.number
        );
        Ok(())
    }
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("the kernel does not tell the memory of a process")?
        .parse()?;
    Ok(kib << 10)
}
