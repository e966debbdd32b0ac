//! The command line, and its documentation.

use std::path::PathBuf;

use api::DiskFormat;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use model::{Bus, Bytes, DiskChoice, FenceChoice, Keep, StartUnasked, VmName};

use crate::replica_server::{AuthorizeArgs, ServerVerb};
use crate::show_event::since;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 something failed that should not have; 2 the request is wrong; 3 the thing \
does not exist; 4 its state does not allow this; 5 not allowed or not trusted; 6 a host or \
process cannot be reached; 7 no space or memory left.

A VM is named by its name, its id, or the first digits (at least four) of its id. Errors go to standard error as \
`error: THING: REASON. WAY OUT`, with `-o json` as one JSON object.";

/// Virtual machines and their twins on other hosts.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Arguments {
    /// Socket of polluxd
    #[arg(
        long,
        global = true,
        env = "POLLUX_SOCKET",
        value_name = "PATH",
        default_value = api::DEFAULT_SOCKET
    )]
    pub(crate) socket: PathBuf,
    /// How to print
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) output: Format,
    /// Relationships and measures with the columns of Hyper-V, however wide that is
    #[arg(short, long, global = true)]
    pub(crate) wide: bool,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For spreadsheets; only of measures
    Csv,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmVerb),
    /// Disks of VMs, and their checkpoints
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Twins of VMs on other hosts
    #[command(subcommand)]
    Replica(ReplicaVerb),
    /// How changes of VMs are tracked
    #[command(subcommand)]
    Track(TrackVerb),
    /// Recovery points of twins
    #[command(subcommand)]
    Point(PointVerb),
    /// Starting twins
    #[command(subcommand)]
    Failover(FailoverVerb),
    /// What happened
    #[command(subcommand)]
    Event(EventVerb),
    /// Segment files, read without polluxd
    #[command(subcommand)]
    Segment(SegmentVerb),
    /// This host and those it trusts
    #[command(subcommand)]
    Host(HostVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Make a VM
    Create(Create),
    /// All VMs of this host
    List,
    /// Everything about a VM
    Show {
        /// The VM
        vm: String,
    },
    /// Start a VM
    Start {
        /// The VM
        vm: String,
        #[command(flatten)]
        force: Force,
    },
    /// Ask the guest to shut down, and wait until it is off
    Stop {
        /// The VM
        vm: String,
        /// Seconds that the guest has
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
    },
    /// End the guest at once, as if its plug was pulled
    Kill {
        /// The VM
        vm: String,
    },
    /// Delete a VM and its disks; disks made with `--disk-file` stay
    Delete {
        /// The VM
        vm: String,
        /// Of a twin: give it up although the replica store that it lies in is lost
        #[arg(long)]
        store_lost: bool,
    },
    /// Start the disk server of a running VM anew, from the program that is installed now; the
    /// guest does not notice
    Upgrade {
        /// The VM
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        vm: Option<String>,
        /// All VMs of this host that run
        #[arg(long)]
        all: bool,
    },
    /// The serial port of a VM; Ctrl-] leaves
    Console {
        /// The VM
        vm: String,
        /// Print what the guest wrote so far, and end
        #[arg(long)]
        log: bool,
    },
}

/// A person's word that a VM does not run on the other host.
#[derive(Debug, Args)]
pub(crate) struct Force {
    /// Go on although the other host cannot be asked; needs --because
    #[arg(long, requires = "because")]
    pub(crate) force: bool,
    /// Why the VM cannot be running on the other host; it is recorded
    #[arg(long, value_name = "STATEMENT", requires = "force")]
    pub(crate) because: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("content").args(["disk", "image", "disk_file"]).multiple(true))]
pub(crate) struct Create {
    /// Its name
    pub(crate) name: String,
    /// Virtual hardware: 1 (BIOS) or 2 (UEFI); it cannot be changed
    #[arg(long, default_value_t = 2)]
    pub(crate) generation: u8,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) processors: u32,
    /// Memory, such as 2GiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Bytes,
    /// UEFI Secure Boot; on for generation 2 unless switched off
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub(crate) secure_boot: Option<bool>,
    /// An empty disk of that size, such as 20GiB; may be repeated
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Vec<Bytes>,
    /// A disk with a copy of this raw file; may be repeated, such disks come first
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// Size of the disks made by --image, if larger than their files
    #[arg(long, value_name = "SIZE", requires = "image")]
    pub(crate) size: Option<Bytes>,
    /// A disk that is this raw file itself; may be repeated, such disks come last
    #[arg(long, value_name = "FILE")]
    pub(crate) disk_file: Vec<PathBuf>,
    /// What its disks are plugged into: virtio, scsi or ide; unless said, ide for generation 1,
    /// virtio for generation 2
    #[arg(long)]
    pub(crate) bus: Option<Bus>,
    /// Boot this kernel instead of the firmware's own way
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// Command line for --kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    pub(crate) cmdline: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskVerb {
    /// The disks of a VM, or of all VMs of this host
    List {
        /// The VM
        vm: Option<String>,
    },
    /// Everything about the disks of a VM, or about one of them
    Info {
        /// The VM
        vm: String,
        /// The disk: its number, the name of its file, or the first digits of its id
        disk: Option<String>,
    },
    /// Make an empty disk in the VM's folder and plug it in, while the VM runs or not
    Create {
        /// The VM
        vm: String,
        /// Its size, such as 20GiB
        size: Bytes,
        /// What it is plugged into: virtio, scsi or ide
        #[arg(long)]
        bus: Option<Bus>,
    },
    /// Plug in a raw file as it is, while the VM runs or not
    Attach {
        /// The VM
        vm: String,
        /// The file
        file: PathBuf,
        /// What it is plugged into: virtio, scsi or ide
        #[arg(long)]
        bus: Option<Bus>,
    },
    /// Unplug a disk; a guest that runs is asked to let it go
    Detach {
        /// The VM
        vm: String,
        /// The disk: its number, the name of its file, or the first digits of its id
        disk: String,
        /// And delete its file
        #[arg(long)]
        delete: bool,
    },
    /// Make a disk larger
    Resize {
        /// The VM
        vm: String,
        /// The disk: its number, the name of its file, or the first digits of its id
        disk: String,
        /// Its new size, such as 40GiB
        size: Bytes,
    },
    /// Keep all disks of a VM as they are now, at one instant
    Checkpoint {
        /// The VM
        vm: String,
        /// Its name; unless said, after the time
        name: Option<String>,
    },
    /// Take all disks of a VM that is off back to a checkpoint; what was written since is lost
    Apply {
        /// The VM
        vm: String,
        /// The checkpoint: its name, or the first digits of its id
        checkpoint: String,
        /// Even if there are later checkpoints; they go
        #[arg(long)]
        drop_later: bool,
    },
    /// Remove a checkpoint; what was written since stays. Ctrl-C ends the wait, not the work
    Merge {
        /// The VM
        vm: String,
        /// The checkpoint: its name, or the first digits of its id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        checkpoint: Option<String>,
        /// All of them, the oldest first
        #[arg(long)]
        all: bool,
    },
    /// Write a disk as it is now, or as it was at a checkpoint, into a file on polluxd's host
    Export {
        /// The VM
        vm: String,
        /// The disk: its number, the name of its file, or the first digits of its id
        disk: String,
        /// The file; it must not exist
        file: PathBuf,
        /// The checkpoint: its name, or the first digits of its id
        #[arg(long, value_name = "CHECKPOINT")]
        checkpoint: Option<String>,
        /// raw, qcow2 or vhdx
        #[arg(long, value_name = "FORMAT", default_value = "raw")]
        format: DiskFormat,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaVerb {
    /// Send a VM to a trusted host
    Enable {
        /// The VM
        vm: String,
        /// Name of the host
        #[arg(long, value_name = "PEER")]
        to: String,
        /// Time from one point to the next, such as 30s or 5min
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = seconds)]
        frequency: u64,
        /// Which disks: `all`, by number such as `0,2`, or `all-but:1`. One that is left out, such as
        /// that of a page file, is not there when the twin is started. Disks that are attached later are
        /// replicated as well with `all` and `all-but`, not when numbers are named
        #[arg(long, value_name = "DISKS", default_value = "all")]
        disks: DiskChoice,
        /// Which recovery points are kept, such as `1h:all,24h:hourly`
        #[arg(long, value_name = "POLICY")]
        keep: Option<Keep>,
        /// A VM of that host that holds about the same, such as one restored from a backup, and is off:
        /// the twin is filled from it first, and only what differs is sent. That host allows it with
        /// `pollux replica authorize --copy`
        #[arg(long, value_name = "VM")]
        seed_from: Option<VmName>,
        /// Run it under a lease, `lease` (10 s) or `lease=SECONDS`: it is held still when that host has
        /// not answered for so long, and that host may take over a little later without --force
        #[arg(long, value_name = "FENCE")]
        fence: Option<FenceChoice>,
    },
    /// Read everything that a twin on this host has, and compare it with its hashes; says what is
    /// damaged, and which recovery points are hurt
    Verify {
        /// The VM
        vm: String,
        /// On the primary: compare the twin's newest point with the disks instead, by hash and while
        /// the VM runs. What differs is sent again by itself
        #[arg(long)]
        against_primary: bool,
    },
    /// Change how a VM is replicated; the other host follows
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The VM
        vm: String,
        /// Time from one point to the next, such as 30s or 5min
        #[arg(long, value_name = "TIME", value_parser = seconds, group = "what")]
        frequency: Option<u64>,
        /// Which disks: `all`, by number such as `0,2`, or `all-but:1`. One that is added is copied
        /// beside the points; one that is taken away stays in the points that have it
        #[arg(long, value_name = "DISKS", group = "what")]
        disks: Option<DiskChoice>,
        /// Which recovery points are kept, such as `1h:all,24h:hourly`
        #[arg(long, value_name = "POLICY", group = "what")]
        keep: Option<Keep>,
        /// Run it under a lease, `lease` (10 s) or `lease=SECONDS`: it is held still when the other host
        /// has not answered for so long, and that host may take over a little later without --force.
        /// `none` ends that
        #[arg(long, value_name = "FENCE", group = "what")]
        fence: Option<FenceChoice>,
        /// What `pollux vm start` does when the other host gives no answer: `deny` refuses without
        /// --force, `allow` starts it. If that host has taken over, two run then until they are in
        /// contact
        #[arg(long, value_name = "deny|allow", group = "what")]
        start_unasked: Option<StartUnasked>,
    },
    /// Give an initial replication up; what came of the twin is deleted
    Cancel {
        /// The VM
        vm: String,
    },
    /// How relationships are; all of them, or one VM's
    Status {
        /// The VM
        vm: Option<String>,
        /// Go on showing; with `-o json` one line for each look, an array of relationships
        #[arg(long)]
        watch: bool,
    },
    /// What was measured in the monitoring interval; of all relationships, or of one VM's
    Measure {
        /// The VM
        vm: Option<String>,
    },
    /// Count anew; a warning that comes of the figures goes
    ResetStatistics {
        /// The VM
        vm: String,
    },
    /// Why relationships are not healthy, and what to do; all of them, or one VM's
    Health {
        /// The VM
        vm: Option<String>,
    },
    /// The points of a twin, the oldest first; the same as `pollux point list`
    Points {
        /// The VM
        vm: String,
    },
    /// Send nothing until resumed, or receive nothing on the twin's host; changes go on being tracked
    Pause {
        /// The VM
        vm: String,
    },
    /// Go on after a pause or an error
    Resume {
        /// The VM
        vm: String,
    },
    /// End a relationship on both hosts, or here alone if the other cannot be reached; the twin stays
    Remove {
        /// The VM
        vm: String,
        #[command(flatten)]
        force: Force,
    },
    /// Receiving twins of other hosts' VMs
    #[command(subcommand)]
    Server(ServerVerb),
    /// Let a trusted host make twins here; from then on only those that are authorized may
    Authorize(AuthorizeArgs),
    /// Authorize a host no longer
    Deny {
        /// As it was authorized
        pattern: String,
    },
    /// Who is authorized
    Authorizations,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrackVerb {
    /// What of each disk waits to be sent, what a power cut would cost, and how the cuts go
    Status {
        /// The VM
        vm: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointVerb {
    /// The points of a twin, the oldest first
    List {
        /// The VM
        vm: String,
    },
    /// Serve the disks of a point read-only over NBD, until it is closed
    Open {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`
        point: String,
        /// One disk only: its number, the name of its file, or the first digits of its id
        #[arg(long, value_name = "DISK")]
        disk: Option<String>,
    },
    /// Serve the disks of a point no longer
    Close {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`
        point: String,
    },
    /// Keep a point until a time: nothing removes it before, and the lock cannot be taken back
    #[command(group = ArgGroup::new("end").args(["until", "for"]).required(true))]
    Lock {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`
        point: String,
        /// Until then: 2027-01-31 (its end, UTC), or a time such as 2027-01-31T18:00Z
        #[arg(long, value_name = "DATE", value_parser = end_of)]
        until: Option<Timestamp>,
        /// For so long from now on, such as 12h, 7d or 4w
        #[arg(long = "for", id = "for", value_name = "TIME", value_parser = hours)]
        hours: Option<u32>,
    },
    /// Write a disk as it was at a point into a file on polluxd's host
    Export {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`
        point: String,
        /// The file; it must not exist. With --all-disks a folder, for files such as `disk0.raw`
        file: PathBuf,
        /// The disk: its number, the name of its file, or the first digits of its id
        #[arg(long, value_name = "DISK", default_value = "0")]
        disk: String,
        /// All disks
        #[arg(long, conflicts_with = "disk")]
        all_disks: bool,
        /// raw, qcow2 or vhdx
        #[arg(long, value_name = "FORMAT", default_value = "raw")]
        format: DiskFormat,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FailoverVerb {
    /// Start a copy of the twin, named `NAME - Test`; replication goes on, and there may be several
    Test {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`
        #[arg(long, default_value = "latest")]
        point: String,
    },
    /// Delete the copy that a test failover made, or all copies of a twin
    StopTest {
        /// The copy, or the VM whose copies all go
        vm: String,
        /// If there are none, call the failover off, as Stop-VMFailover does
        #[arg(long, hide = true)]
        or_failover: bool,
    },
    /// Shut the VM down on its own host, lock it and send its last changes, for a planned failover
    Prepare {
        /// The VM
        vm: String,
        /// Seconds that the guest has to shut down
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
        /// Even if it has checkpoints: this host cannot become the replica before they are merged
        #[arg(long)]
        keep_checkpoints: bool,
    },
    /// Give a VM free again that was prepared for a planned failover; on the host that took over, call that
    /// off, until the failover is completed or reversed: it is the replica again, and the VM starts on the
    /// other host; or take the disks back that became those of a twin by `failover reverse` on the other
    /// host, as long as it has no point
    Cancel {
        /// The VM
        vm: String,
        /// What was written since the failover goes with it
        #[arg(long)]
        drop_writes: bool,
    },
    /// Replicate back: the host from which the VM was failed over becomes its replica. Only what differs is
    /// sent. Checkpoints that it has there are merged first, there: `disk merge --all`
    Reverse {
        /// The VM
        vm: String,
        /// Which disks are replicated: all, all-but:1,3, or some, such as 0,2
        #[arg(long, value_name = "DISKS")]
        disks: Option<DiskChoice>,
    },
    /// What this host wrote and never sent before the other one took over. `failover test`, `point open` and
    /// `point export` know it as the point `lost-writes`
    LostWrites {
        /// The VM
        vm: String,
        /// Keep it no longer
        #[arg(long)]
        drop: bool,
    },
    /// Start the twin: because the primary is lost, or was prepared for it. One that was failed over
    /// already, and is off, is started from another point until the failover is completed or reversed
    Start {
        /// The VM
        vm: String,
        /// The point: as `pollux point list` shows it, or `latest`, which goes without saying the first time
        #[arg(long)]
        point: Option<String>,
        /// What was written since the failover goes with the point that is left for another
        #[arg(long, requires = "point")]
        drop_writes: bool,
        /// Wait until the lease of a primary that does not answer is over
        #[arg(long, conflicts_with = "force")]
        wait: bool,
        #[command(flatten)]
        force: Force,
    },
    /// Make a failover final: the twin's other points go, and the VM gets disks of its own while it runs.
    /// Once begun it goes on, whether this command waits or not
    Complete {
        /// The VM
        vm: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventVerb {
    /// What happened on this host, the newest last
    List(EventList),
}

#[derive(Debug, Args)]
pub(crate) struct EventList {
    /// Only about this VM
    #[arg(long)]
    pub(crate) vm: Option<String>,
    /// Only since then: how long ago, such as 12h or 7d, or a time such as 2026-11-29
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<Timestamp>,
    /// At most so many, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: u32,
    /// Go on with what happens from now on; with `-o json` one object per line
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SegmentVerb {
    /// What a segment says of itself: disks, lineage, what it builds on, how much it holds
    Info {
        /// The segment file
        file: PathBuf,
    },
    /// Check every hash of a segment, and say what is wrong where
    Verify {
        /// The segment file
        file: PathBuf,
    },
    /// Content of a disk as a segment holds it, to standard output or into a file
    Cat {
        /// The segment file
        file: PathBuf,
        #[command(flatten)]
        part: Part,
        /// Write a new, sparse file instead; it must not exist
        #[arg(long, value_name = "FILE", conflicts_with = "index")]
        to: Option<PathBuf>,
        /// List what the segment holds instead
        #[arg(long)]
        index: bool,
    },
}

/// Part of a disk.
#[derive(Debug, Default, Args)]
pub(crate) struct Part {
    /// The disk: its number in the segment from 0, or the first digits of its id
    #[arg(long)]
    pub(crate) disk: Option<String>,
    /// First byte of the disk, such as 1MiB or 4096
    #[arg(long, value_name = "OFFSET", value_parser = bytes)]
    pub(crate) at: Option<Bytes>,
    /// How much; unless said, to the end of the disk
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) length: Option<Bytes>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// How this host is
    Status,
    /// What another host needs to trust this one
    Identity,
    /// Show a certificate of a PKI to other hosts
    #[command(group = ArgGroup::new("which").args(["certificate", "own"]).required(true))]
    Certificate {
        /// The host's certificate, and those between it and its authority's, PEM
        #[arg(requires_all = ["key", "authority"])]
        certificate: Option<PathBuf>,
        /// Its private key, PEM
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The certificate of the authority that other hosts are to trust, PEM
        #[arg(long, value_name = "FILE")]
        authority: Option<PathBuf>,
        /// Show one of the host's own authority again, as at first
        #[arg(long)]
        own: bool,
    },
    /// Take in a list of revoked certificates, PEM, of an authority that is trusted
    Revoke {
        /// The list
        list: PathBuf,
    },
    /// Trust another host
    #[command(group = ArgGroup::new("by").args(["fingerprint", "authority"]).required(true))]
    Trust {
        /// Its name; or `*.` and a domain, for all its hosts
        name: String,
        /// Address and port of its replica endpoint; `*:8443` for a domain's hosts
        address: String,
        /// Its fingerprint, as `pollux host identity` prints it there
        fingerprint: Option<String>,
        /// The certificate of its authority instead, PEM
        #[arg(long, value_name = "FILE")]
        authority: Option<PathBuf>,
        /// A list of certificates that the authority revoked, PEM
        #[arg(long, value_name = "FILE", requires = "authority")]
        crl: Option<PathBuf>,
        /// Most space that its twins may take here
        #[arg(long, value_name = "SIZE")]
        limit: Option<Bytes>,
    },
    /// The hosts that are trusted
    Peers,
    /// Trust another host no longer
    Untrust {
        /// Its name
        name: String,
    },
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it must be `on` or `off`"),
    }
}

/// A size, or a number of bytes.
fn bytes(text: &str) -> Result<Bytes, model::ParseBytesError> {
    text.parse()
        .map_or_else(|_| text.parse(), |number| Ok(Bytes(number)))
}

/// A time such as `30s`, `5min` or `1h`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => 0,
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale))
    {
        Some(seconds) if seconds > 0 => Ok(seconds),
        _ => Err("it must be a whole number with `s`, `min` or `h`, such as `30s`".to_owned()),
    }
}

/// The end of a day in UTC, or a moment with its zone.
fn end_of(text: &str) -> Result<Timestamp, String> {
    let wrong = "it must be a day such as `2027-01-31`, or a time with its zone such as \
                 `2027-01-31T18:00Z`";
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let day: Date = text.parse().map_err(|_no_day| wrong.to_owned())?;
    // A time without a zone is a day to jiff.
    if text.contains([':', 'T', 't', ' ']) {
        return Err(wrong.to_owned());
    }
    let next = day.tomorrow().and_then(|next| next.to_zoned(TimeZone::UTC));
    next.map(|next| next.timestamp())
        .map_err(|_too_far| "that is too far".to_owned())
}

/// A time such as `12h`, `7d` or `4w`, in hours.
fn hours(text: &str) -> Result<u32, String> {
    let wrong = || "it must be a whole number with `h`, `d` or `w`, such as `7d`".to_owned();
    let (number, scale) = match text.char_indices().next_back() {
        Some((end, 'h')) => (&text[..end], 1),
        Some((end, 'd')) => (&text[..end], 24),
        Some((end, 'w')) => (&text[..end], 7 * 24),
        _ => return Err(wrong()),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let hours = number
        .parse::<u32>()
        .ok()
        .and_then(|n| n.checked_mul(scale));
    hours.filter(|n| digits && *n > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_lock_is_a_day_or_a_moment_or_so_long_from_now() {
        let until = |text: &str| end_of(text).map(|time| time.to_string());
        assert_eq!(until("2027-01-31"), Ok("2027-02-01T00:00:00Z".to_owned()));
        assert_eq!(
            until("2027-01-31T18:00Z"),
            Ok("2027-01-31T18:00:00Z".to_owned())
        );
        assert_eq!(
            until("2027-01-31T18:00+02:00"),
            Ok("2027-01-31T16:00:00Z".to_owned())
        );
        for bad in [
            "",
            "tomorrow",
            "2027-02-30",
            "2027-01-31T18:00",
            "31.01.2027",
        ] {
            assert!(end_of(bad).is_err(), "{bad}");
        }
        assert_eq!(hours("12h"), Ok(12));
        assert_eq!(hours("7d"), Ok(168));
        assert_eq!(hours("4w"), Ok(672));
        for bad in [
            "",
            "d",
            "0d",
            "+3d",
            "-1d",
            "7",
            "7 d",
            "1.5d",
            "7y",
            "99999999999d",
        ] {
            assert!(hours(bad).is_err(), "{bad}");
        }
        let lock = |more: &[&str]| {
            let all = [&["pollux", "point", "lock", "web", "latest"], more].concat();
            Arguments::try_parse_from(all)
        };
        assert!(lock(&[]).is_err(), "for ever?");
        assert!(lock(&["--for", "7d"]).is_ok());
        assert!(lock(&["--until", "2027-01-31"]).is_ok());
        assert!(lock(&["--for", "7d", "--until", "2027-01-31"]).is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(seconds("5s"), Ok(5));
        assert_eq!(seconds("5min"), Ok(300));
        assert_eq!(seconds("1h"), Ok(3600));
        for bad in ["", "s", "0s", "-5s", "5 parsecs", "99999999999999999999s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_in_a_disk_are_read_with_and_without_units() {
        assert_eq!(bytes("4096"), Ok(Bytes(4096)));
        assert_eq!(bytes("1MiB"), Ok(Bytes(1 << 20)));
        assert!(bytes("1.5 MiB").is_err());
        assert!(bytes("").is_err());
    }

    #[test]
    fn secure_boot_is_on_or_off() {
        let create = |word: &str| {
            Arguments::try_parse_from(["pollux", "vm", "create", "web", "--secure-boot", word])
        };
        assert!(create("on").is_ok());
        assert!(create("off").is_ok());
        let refused = create("true").expect_err("not a word of its help");
        assert!(refused.to_string().contains("`on` or `off`"), "{refused}");
    }

    #[test]
    fn force_and_its_statement_belong_together() {
        let parse = |args: &[&str]| Arguments::try_parse_from(args);
        assert!(parse(&["pollux", "failover", "start", "web", "--force"]).is_err());
        assert!(parse(&["pollux", "failover", "start", "web", "--because", "x"]).is_err());
        let both = [
            "pollux",
            "failover",
            "start",
            "web",
            "--force",
            "--because",
            "x",
        ];
        assert!(parse(&both).is_ok());
    }
}
