//! Power cuts under a real kernel: a guest runs Pollux's overlay, and a disk with a write-intent log, or takes
//! in points as a replica does, on ext4, on a disk whose power is cut.
//!
//! The guest's disk is served from memory that keeps what was flushed and a random part, torn at sectors,
//! of the rest ([`PowerCutStore`]). After a number of operations that the seed chooses, the disk does
//! nothing more, QEMU is killed, the power cut, and the guest booted again; it judges what it finds.
//! `POLLUX_POWER_CUTS` and `POLLUX_POWER_SEED` ask for more, or for others.

use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use block::{Buffer, Device, Done, Fault, Op};
use diskd::vhost_user::{DiskInfo, serve};
use image::RawDevice;
use model::DiskId;
use pollux_tests::power::{DRAINED_FROM, drains};
use ring::{Mailbox, Ring, Sender};
use tempfile::TempDir;
use testkit::guest::GuestImages;
use testkit::{PowerCutStore, Rng};

const EIO: i32 = 5;
const DISK: usize = 64 << 20;
const CUTS: u64 = 5;
/// Most operations of a disk between "session begins" and the cut.
const LONGEST: u64 = 400;
/// Most points that a replica acknowledged before.
const LONGEST_HISTORY: u64 = 12;
/// The same from when a session drains; and in which batch of these that is, at most.
const LONGEST_DRAINING: u64 = 60;
const DRAINED_BATCHES: u64 = 5;
/// A boot on two busy cores, twice over. (Emulated always: a KVM that is there may still not work.)
const LIMIT: Duration = Duration::from_secs(240);

/// What the test tells the owner of the disk.
enum Order {
    /// Do nothing any more after so many operations that change something.
    Arm(u64),
    /// The guest is gone: lose what was not flushed, and go on.
    Cut(u64, SyncSender<()>),
}

/// Ends doing anything after a number of operations.
struct Fuse {
    inner: RawDevice<PowerCutStore>,
    left: Cell<u64>,
    blown: std::sync::mpsc::Sender<()>,
}

impl Device for Fuse {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    async fn run(&self, op: Op) -> Done {
        let left = self.left.get();
        if left > 0 && !matches!(op, Op::Read { .. }) && left != u64::MAX {
            self.left.set(left - 1);
            if left == 1 {
                let _ = self.blown.send(());
            }
        }
        if self.left.get() == 0 {
            return op.refuse(Fault::Os(EIO));
        }
        self.inner.run(op).await
    }
}

fn owner(
    listener: UnixListener,
    content: &[u8],
    orders: Mailbox<Order>,
    blown: std::sync::mpsc::Sender<()>,
    seed: u64,
) {
    let ring = Ring::new(128).expect("a ring");
    let store = PowerCutStore::new(content.len(), 512, seed);
    let fuse = Rc::new(Fuse {
        inner: RawDevice::new(store.clone(), content.len() as u64, false).expect("whole blocks"),
        left: Cell::new(u64::MAX),
        blown,
    });
    ring.block_on(async {
        for (number, part) in content.chunks(1 << 20).enumerate() {
            let at = (number as u64) << 20;
            let from = Buffer::from_slice(part);
            assert_eq!(fuse.inner.run(Op::Write { at, from }).await.outcome, Ok(()));
        }
        assert_eq!(fuse.inner.run(Op::Flush).await.outcome, Ok(()));
        let info = DiskInfo {
            id: DiskId::random(),
            read_only: false,
        };
        let handle = serve(&ring, Rc::clone(&fuse), listener, info).expect("served");
        while let Some(order) = orders.recv().await {
            match order {
                Order::Arm(operations) => fuse.left.set(operations),
                Order::Cut(seed, done) => {
                    while handle.connected() {
                        ring.yield_now().await;
                    }
                    store.cut(seed);
                    fuse.left.set(u64::MAX);
                    let _ = done.send(());
                }
            }
        }
        handle.shutdown().await;
    });
}

/// An empty ext4.
fn file_system(folder: &Path) -> Result<Vec<u8>> {
    let path = folder.join("ext4.img");
    std::fs::File::create(&path)?.set_len(DISK as u64)?;
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    // A superblock with a checksum, torn between its two sectors, is one that ext4 does not mount.
    let done = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-E", options])
        .args(["-O", "^metadata_csum"])
        .arg(&path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()?;
    ensure!(done.success(), "mke2fs: {done}");
    Ok(std::fs::read(path)?)
}

/// A running guest; killed when dropped.
struct Guest {
    qemu: Child,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Guest {
    fn boot(images: &GuestImages, socket: &Path, arguments: &str) -> Result<Self> {
        let append =
            format!("console=ttyS0 no_timer_check quiet panic=5 pollux.power=/dev/vda:{arguments}");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-machine", "q35,memory-backend=mem", "-accel", "tcg"])
            .args(["-cpu", "max", "-m", "256M", "-serial", "stdio"])
            .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
            .arg("-chardev")
            .arg(format!("socket,id=disk,path={}", socket.display()))
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"])
            .arg("-kernel")
            .arg(&images.kernel)
            .arg("-initrd")
            .arg(&images.initrd)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start QEMU")?;
        let out = qemu.stdout.take().context("its serial port")?;
        let (said, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n') {
                // Half a line is none: it was being said when the power went.
                let Ok(line) = line else { return };
                if said
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Self {
            qemu,
            lines,
            log: Vec::new(),
        })
    }

    /// Reads on to a line of the power test that begins with one of `wanted`.
    fn line(&mut self, wanted: &[&str]) -> Result<String> {
        loop {
            let Ok(line) = self.lines.recv_timeout(LIMIT) else {
                bail!("no {wanted:?} from the guest:\n{}", self.log.join("\n"));
            };
            self.log.push(line.clone());
            let Some((_, said)) = line.split_once("pollux-power: ") else {
                continue;
            };
            let said = said.trim_end();
            if said.starts_with("FAILED") {
                bail!("the guest says: {said}\n{}", self.log.join("\n"));
            }
            if wanted.iter().any(|wanted| said.starts_with(wanted)) {
                return Ok(said.to_owned());
            }
        }
    }

    /// `kill -9`; all that it said, in whole lines.
    fn kill(mut self) -> Result<Vec<String>> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        self.log.extend(self.lines.iter());
        Ok(std::mem::take(&mut self.log))
    }
}

/// The last batch that was flushed.
#[derive(Debug, Clone, Copy, Default)]
struct Flushed {
    /// Its number; 0: there was none.
    batch: u64,
    /// Whether the overlay drained.
    draining: bool,
    /// What the overlay held, in KiB.
    left: u64,
}

impl Flushed {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line
            .split_once("pollux-power: flushed ")?
            .1
            .split_whitespace();
        let batch = words.next()?.parse().ok()?;
        let draining = words.next()? == "draining";
        let left = words.next()?.parse().ok()?;
        Some(Self {
            batch,
            draining,
            left,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn setting(name: &str, usual: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|set| set.parse().ok()).unwrap_or(usual)
}

/// A disk whose power is cut, and the seed of all that is done to it.
struct Power {
    images: GuestImages,
    socket: PathBuf,
    orders: Sender<Order>,
    blown: Receiver<()>,
    owner: JoinHandle<()>,
    _folder: TempDir,
    cuts: u64,
    seed: u64,
    rng: Rng,
}

impl Power {
    fn begin() -> Result<Self> {
        let images = GuestImages::build_or_get()?;
        let cuts = setting("POLLUX_POWER_CUTS", CUTS);
        let seed = setting("POLLUX_POWER_SEED", 1);
        println!("{cuts} cuts from seed {seed}");
        let folder = tempfile::tempdir()?;
        let content = file_system(folder.path())?;
        let socket = folder.path().join("disk.sock");
        let listener = UnixListener::bind(&socket)?;
        let (orders, mailbox) = ring::mailbox(4);
        let (fuse, blown) = channel();
        let owner = std::thread::spawn(move || owner(listener, &content, mailbox, fuse, seed));
        Ok(Self {
            images,
            socket,
            orders,
            blown,
            owner,
            _folder: folder,
            cuts,
            seed,
            rng: Rng::new(seed),
        })
    }

    /// Boots session `number`, which judges what the one before left after `said`.
    fn boot(&self, number: u64, said: Option<u64>, kind: &str) -> Result<Guest> {
        let said = said.map_or("none".to_owned(), |said| said.to_string());
        let arguments = format!("{number}:{}:{said}:{kind}", self.seed);
        Guest::boot(&self.images, &self.socket, &arguments)
    }

    fn tell(&self, order: Order) -> Result<()> {
        let told = self.orders.send(order);
        told.map_err(|_full| anyhow!("the owner is gone"))
    }

    /// Cuts the power after so many operations of the disk; all that the guest said.
    fn cut(&mut self, guest: Guest, operations: u64) -> Result<Vec<String>> {
        self.tell(Order::Arm(operations))?;
        self.blown
            .recv_timeout(LIMIT)
            .context("the guest works on")?;
        let said = guest.kill()?;
        let (cut, wait) = sync_channel(1);
        let seed = self.rng.bits();
        self.tell(Order::Cut(seed, cut))?;
        wait.recv_timeout(LIMIT).context("the power was cut")?;
        Ok(said)
    }

    fn end(self) {
        drop(self.orders);
        self.owner.join().expect("the owner did not panic");
    }
}

#[test]
fn what_was_flushed_survives_power_cuts_under_a_real_kernel_and_what_differs_is_armed() -> Result<()>
{
    let mut power = Power::begin()?;
    let cuts = power.cuts;
    let mut last: Option<Flushed> = None;
    let (mut filled, mut drained) = (0, 0);
    for session in 1.. {
        let kind = ["io-uring", "threads"][usize::from(session % 4 >= 2)];
        let mut guest = power.boot(session, last.map(|last| last.batch), kind)?;
        if let Some(last) = last {
            println!("  {}", guest.line(&["right"])?);
            filled += u64::from(!last.draining && last.left > 0);
            drained += u64::from(last.draining && last.left > 0);
        }
        println!("{}", guest.line(&["session"])?);
        // An overlay may be empty by chance when the power is cut.
        let enough = filled > 0 && drained > 0;
        if session > cuts && (enough || session > 4 * cuts) {
            break;
        }
        let operations = if drains(session) {
            let batch = DRAINED_FROM + power.rng.below(DRAINED_BATCHES);
            guest.line(&[&format!("flushed {batch} ")])?;
            1 + power.rng.below(LONGEST_DRAINING)
        } else {
            1 + power.rng.below(LONGEST)
        };
        let said = power.cut(guest, operations)?;
        let flushed = said.iter().rev().find_map(|line| Flushed::parse(line));
        let flushed = flushed.unwrap_or_default();
        println!("  cut {operations} operations later: {flushed:?}");
        last = Some(flushed);
    }
    println!("{filled} overlays judged that were being filled, {drained} that were being drained");
    assert!(drained > 0, "no overlay was judged that was half drained");
    assert!(
        filled > 0 || cuts < 4,
        "no overlay was judged that held something"
    );
    power.end();
    Ok(())
}

#[test]
fn a_replica_holds_every_point_that_it_acknowledged_after_power_cuts_under_a_real_kernel()
-> Result<()> {
    let mut power = Power::begin()?;
    let cuts = power.cuts;
    let mut last = None;
    for session in 1..=cuts + 1 {
        let mut guest = power.boot(session, last, "twin")?;
        if last.is_some() {
            println!("  {}", guest.line(&["right"])?);
        }
        println!("{}", guest.line(&["session"])?);
        if session > cuts {
            break;
        }
        // Of the first sessions not even the initial replication may be there.
        let first = power.rng.below(LONGEST_HISTORY);
        guest.line(&[&format!("acknowledged {first}")])?;
        let operations = 1 + power.rng.below(LONGEST);
        let said = power.cut(guest, operations)?;
        let acknowledged = said.iter().rev().find_map(|line| {
            let (_, point) = line.split_once("pollux-power: acknowledged ")?;
            point.trim_end().parse::<u64>().ok()
        });
        let acknowledged = acknowledged.context("it acknowledged some")?;
        println!("  cut {operations} operations later: {acknowledged} points acknowledged");
        last = Some(acknowledged);
    }
    power.end();
    Ok(())
}
