//! Carries a command out.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use api::{
    ApplyCheckpoint, AttachDisk, CancelFailover, Client, CreateDisk, CreateVm, DetachDisk,
    DiskContentFrom, EnableReplication, EventQuery, ExportDisk, ExportPoint, GiveCertificate,
    LockPoint, MakeCheckpoint, NewDisk, OpenPoint, PrepareFailover, Progress, ResizeDisk,
    ReverseReplication, Revoke, SetReplication, StartFailover, StartVm, StopTest, StopVm,
    TestFailover, TrustPeer,
};
use indicatif::{ProgressBar, ProgressStyle};
use model::{Bytes, Code, DirectBoot, Generation, Problem, VmName, VmState};

use crate::args::{
    Arguments, Create, DiskVerb, EventList, EventVerb, FailoverVerb, Force, Format, HostVerb, Noun,
    PointVerb, ReplicaVerb, SegmentVerb, TrackVerb, VmVerb,
};
use crate::show::{self, Shown, harmless};
use crate::show_disk::{DiskInfo, DisksOf};
use crate::show_event::line;
use crate::show_replica::{csv, wide_authorizations, wide_measures, wide_status};
use crate::{console, replica_server, segment, show_point};

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// Carries out the command and says how the process ends.
pub async fn run(arguments: Arguments) -> ExitCode {
    let format = arguments.output;
    let command = Command {
        client: Client::new(arguments.socket),
        format,
        wide: arguments.wide,
    };
    if let Err(problem) = takes(format, &arguments.noun) {
        return refuse(&problem, false);
    }
    let done = tokio::select! {
        done = command.carry_out(arguments.noun) => done,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => refuse(&problem, format == Format::Json),
    }
}

/// Tells the problem, and how the process ends.
pub fn refuse(problem: &Problem, json: bool) -> ExitCode {
    if json {
        let text = serde_json::to_string(problem).expect("a problem has a JSON form");
        eprintln!("{text}");
    } else {
        eprintln!("error: {}", harmless(&problem.to_string()));
    }
    ExitCode::from(problem.code.exit())
}

/// Only measures are a table of figures.
fn takes(format: Format, noun: &Noun) -> Result<(), Problem> {
    if format == Format::Csv && !matches!(noun, Noun::Replica(ReplicaVerb::Measure { .. })) {
        let way_out = "Take `-o json`; `pollux replica measure` is what has that form";
        let reason = "is not a form that this command has";
        return Err(Problem::new(Code::Invalid, "`-o csv`", reason, way_out));
    }
    Ok(())
}

struct Command {
    client: Client,
    format: Format,
    wide: bool,
}

impl Command {
    async fn carry_out(&self, noun: Noun) -> Result<(), Problem> {
        match noun {
            Noun::Vm(verb) => self.vm(verb).await,
            Noun::Disk(verb) => self.disk(verb).await,
            Noun::Replica(verb) => self.replica(verb).await,
            Noun::Track(TrackVerb::Status { vm }) => self.print(&self.client.tracking(&vm).await?),
            Noun::Point(verb) => self.point(verb).await,
            Noun::Failover(verb) => self.failover(verb).await,
            Noun::Event(EventVerb::List(list)) => self.events(list).await,
            Noun::Segment(verb) => self.segment(verb).await,
            Noun::Host(verb) => self.host(verb).await,
        }
    }

    async fn vm(&self, verb: VmVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            VmVerb::Create(create) => self.create(create).await,
            VmVerb::List => self.print(&client.vms().await?),
            VmVerb::Show { vm } => self.print(&client.vm(&vm).await?),
            VmVerb::Start { vm, force } => {
                let start = StartVm {
                    because: statement(force),
                };
                let started = client.start(&vm, &start).await?;
                self.notice(&started);
                self.print(&vec![started.vm])
            }
            VmVerb::Stop { vm, timeout } => {
                let stop = StopVm { timeout_s: timeout };
                self.print(&vec![client.stop(&vm, &stop).await?.vm])
            }
            VmVerb::Kill { vm } => self.print(&vec![client.kill(&vm).await?.vm]),
            VmVerb::Delete { vm, store_lost } => {
                match store_lost {
                    true => client.delete_lost(&vm).await?,
                    false => client.delete(&vm).await?,
                }
                self.say(&format!("VM `{vm}` is deleted"))
            }
            VmVerb::Upgrade { vm: Some(vm), .. } => {
                self.print(&vec![client.upgrade(&vm).await?.vm])
            }
            VmVerb::Upgrade { vm: None, .. } => self.upgrade_all().await,
            VmVerb::Console { vm, log: true } => {
                let text = client.serial_log(&vm).await?;
                write_out(&text).map(drop)
            }
            VmVerb::Console { vm, log: false } => console::attach(client, &vm).await,
        }
    }

    async fn create(&self, create: Create) -> Result<(), Problem> {
        let bar = Bar::new(self.format);
        let made = self
            .client
            .create(&wanted(create)?, |progress| bar.show(&progress))
            .await?;
        drop(bar);
        self.print(&vec![made.vm])
    }

    /// All that run; one that cannot be upgraded is told of at the end.
    async fn upgrade_all(&self) -> Result<(), Problem> {
        let (mut done, mut failed) = (Vec::new(), None);
        for vm in self.client.vms().await? {
            if vm.state == VmState::Off {
                continue;
            }
            match self.client.upgrade(&vm.id.to_string()).await {
                Ok(details) => done.push(details.vm),
                Err(problem) => failed = Some(problem),
            }
        }
        self.print(&done)?;
        failed.map_or(Ok(()), Err)
    }

    async fn disk(&self, verb: DiskVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            DiskVerb::List { vm } => self.list_disks(vm).await,
            DiskVerb::Info { vm, disk } => {
                let disks = match disk {
                    Some(disk) => vec![client.disk(&vm, &disk).await?],
                    None => client.disks(&vm).await?,
                };
                self.print(&DiskInfo(disks))
            }
            DiskVerb::Create { vm, size, bus } => {
                let made = client.create_disk(&vm, &CreateDisk { size, bus }).await?;
                self.print(&DisksOf::one(vm, made))
            }
            DiskVerb::Attach { vm, file, bus } => {
                let file = absolute(&file)?;
                let attached = client.attach_disk(&vm, &AttachDisk { file, bus }).await?;
                self.print(&DisksOf::one(vm, attached))
            }
            DiskVerb::Detach { vm, disk, delete } => {
                client
                    .detach_disk(&vm, &disk, &DetachDisk { delete })
                    .await?;
                self.say(&format!("disk `{disk}` of VM `{vm}` is detached"))
            }
            DiskVerb::Resize { vm, disk, size } => {
                let resized = client.resize_disk(&vm, &disk, &ResizeDisk { size }).await?;
                if self.format == Format::Json {
                    return self.print(&resized);
                }
                if resized.at_next_start {
                    eprintln!(
                        "notice: the guest sees the new size after its next start: the disk is on {}",
                        resized.disk.bus
                    );
                }
                self.print(&DisksOf::one(vm, resized.disk))
            }
            DiskVerb::Checkpoint { vm, name } => {
                let make = MakeCheckpoint { name };
                self.print(&vec![client.make_checkpoint(&vm, &make).await?])
            }
            DiskVerb::Apply {
                vm,
                checkpoint,
                drop_later,
            } => {
                let apply = ApplyCheckpoint { drop_later };
                let details = client.apply_checkpoint(&vm, &checkpoint, &apply).await?;
                self.print(&details.checkpoints)
            }
            DiskVerb::Merge { vm, checkpoint, .. } => {
                let bar = Bar::new(self.format);
                let show = |progress| bar.show(&progress);
                let merged = match checkpoint {
                    Some(checkpoint) => {
                        client.merge_checkpoint(&vm, &checkpoint, show).await?;
                        format!("checkpoint `{checkpoint}` of VM `{vm}` is merged")
                    }
                    None => {
                        client.merge_checkpoints(&vm, show).await?;
                        format!("the checkpoints of VM `{vm}` are merged")
                    }
                };
                drop(bar);
                self.say(&merged)
            }
            DiskVerb::Export {
                vm,
                disk,
                file,
                checkpoint,
                format,
            } => {
                let export = ExportDisk {
                    file: absolute(&file)?,
                    checkpoint,
                    format,
                };
                let bar = Bar::new(self.format);
                let exported = client
                    .export_disk(&vm, &disk, &export, |progress| bar.show(&progress))
                    .await?;
                drop(bar);
                self.print(&exported)
            }
        }
    }

    async fn list_disks(&self, vm: Option<String>) -> Result<(), Problem> {
        let vms = match vm {
            Some(vm) => vec![self.client.vm(&vm).await?.vm],
            None => self.client.vms().await?,
        };
        let mut all = DisksOf::default();
        for vm in vms {
            let disks = self.client.disks(&vm.id.to_string()).await?;
            all.extend(vm.name.as_str(), disks);
        }
        self.print(&all)
    }

    async fn replica(&self, verb: ReplicaVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            ReplicaVerb::Enable {
                vm,
                to,
                frequency,
                disks,
                keep,
                seed_from,
                fence,
            } => {
                let enable = EnableReplication {
                    peer: to,
                    every_s: frequency,
                    disks: Some(disks),
                    keep,
                    seed_from,
                    fence,
                };
                self.print_relationships(vec![client.enable_replication(&vm, &enable).await?])
            }
            ReplicaVerb::Set {
                vm,
                frequency,
                disks,
                keep,
                fence,
                start_unasked,
            } => {
                let set = SetReplication {
                    every_s: frequency,
                    disks,
                    keep,
                    fence,
                    start_unasked,
                };
                self.print_relationships(vec![client.set_replication(&vm, &set).await?])
            }
            ReplicaVerb::Cancel { vm } => {
                client.cancel_replication(&vm).await?;
                let text = "is no longer replicated, and what came of its twin is deleted";
                self.say(&format!("VM `{vm}` {text}"))
            }
            ReplicaVerb::Status { vm, watch } => self.status(vm.as_deref(), watch).await,
            ReplicaVerb::Measure { vm } => self.measure(vm.as_deref()).await,
            ReplicaVerb::ResetStatistics { vm } => {
                self.print_measures(client.reset_measures(&vm).await?)
            }
            ReplicaVerb::Health { vm: Some(vm) } => self.print(&vec![client.health(&vm).await?]),
            ReplicaVerb::Health { vm: None } => self.print(&client.all_health().await?),
            ReplicaVerb::Verify {
                vm,
                against_primary,
            } => self.verify(&vm, against_primary).await,
            ReplicaVerb::Points { vm } => self.print(&client.points(&vm).await?),
            ReplicaVerb::Pause { vm } => {
                self.print_relationships(vec![client.suspend_replication(&vm).await?])
            }
            ReplicaVerb::Resume { vm } => {
                self.print_relationships(vec![client.resume_replication(&vm).await?])
            }
            ReplicaVerb::Remove { vm, force } => {
                let ended = match statement(force) {
                    Some(because) => client.disable_replication_because(&vm, &because).await?,
                    None => client.disable_replication(&vm).await?,
                };
                if self.format == Format::Json {
                    return write_out((show::json(&ended) + "\n").as_bytes()).map(drop);
                }
                if let Some(untold) = &ended.untold {
                    let text = format!(
                        "notice: it ended on this host alone: {} {}. `pollux replica remove {vm}` \
                         there ends it there too",
                        untold.thing, untold.reason
                    );
                    eprintln!("{}", harmless(&text));
                }
                self.say(&format!("VM `{vm}` is no longer replicated"))
            }
            ReplicaVerb::Server(verb) => self.print(&replica_server::server(client, verb).await?),
            ReplicaVerb::Authorize(args) => {
                self.print(&replica_server::authorize(client, args).await?)
            }
            ReplicaVerb::Deny { pattern } => self.print(&client.deny(&pattern).await?),
            ReplicaVerb::Authorizations => {
                let all = client.authorizations().await?;
                if self.wide && self.format == Format::Table {
                    return self.say(&wide_authorizations(&all));
                }
                self.print(&all)
            }
        }
    }

    /// Of every byte of a twin, or of a twin against its primary: an error if anything is damaged.
    async fn verify(&self, vm: &str, against_primary: bool) -> Result<(), Problem> {
        let bar = Bar::new(self.format);
        let show = |progress| bar.show(&progress);
        if against_primary {
            let compared = self.client.compare_replica(vm, show).await?;
            drop(bar);
            self.print(&compared)?;
            return show_point::differs(vm, &compared).map_or(Ok(()), Err);
        }
        let verified = self.client.verify_replica(vm, show).await?;
        drop(bar);
        self.print(&verified)?;
        show_point::damaged(vm, &verified).map_or(Ok(()), Err)
    }

    async fn events(&self, list: EventList) -> Result<(), Problem> {
        let query = EventQuery {
            vm: list.vm,
            since: list.since,
            after: None,
            limit: Some(list.limit),
        };
        if !list.follow {
            return self.print(&self.client.events(&query).await?);
        }
        let mut events = self.client.follow_events(&query).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            let text = match self.format {
                Format::Json => show::json_line(&event),
                Format::Table | Format::Csv => line(&event),
            };
            if !write_out(format!("{text}\n").as_bytes())? {
                return Ok(());
            }
        }
        Err(Problem::new(
            Code::Unreachable,
            "polluxd",
            "has ended, and tells of no more events",
            "Start it, and follow them again",
        ))
    }

    async fn measure(&self, vm: Option<&str>) -> Result<(), Problem> {
        match vm {
            Some(vm) => self.print_measures(self.client.measures(vm).await?),
            None => {
                let all = self.client.all_measures().await?;
                match self.format {
                    Format::Csv => write_out(csv(&all).as_bytes()).map(drop),
                    Format::Table if self.wide => self.say(&wide_measures(&all)),
                    _ => self.print(&all),
                }
            }
        }
    }

    fn print_measures(&self, one: api::Measures) -> Result<(), Problem> {
        match self.format {
            Format::Csv => write_out(csv(&[one]).as_bytes()).map(drop),
            Format::Table if self.wide => self.say(&wide_measures(&[one])),
            _ => self.print(&one),
        }
    }

    fn print_relationships(&self, all: Vec<api::Replication>) -> Result<(), Problem> {
        write_out(self.relationships(&all).as_bytes()).map(drop)
    }

    fn relationships(&self, all: &Vec<api::Replication>) -> String {
        if self.wide && self.format == Format::Table {
            wide_status(all) + "\n"
        } else {
            self.text(all)
        }
    }

    async fn status(&self, vm: Option<&str>, watch: bool) -> Result<(), Problem> {
        let bar = Bar::new(self.format);
        loop {
            let all = match vm {
                Some(vm) => vec![self.client.replication(vm).await?],
                None => self.client.replications().await?,
            };
            if !watch {
                return self.print_relationships(all);
            }
            if self.format == Format::Table && io::stdout().is_terminal() {
                // Home, then clear what is below.
                print!("\x1b[H\x1b[J");
            }
            let look = match self.format {
                // A program takes what it sees at one time from one line.
                Format::Json => serde_json::to_string(&all).map_or_else(
                    |error| Err(Problem::failed("what is shown", &error)),
                    |line| Ok(line + "\n"),
                )?,
                _ => self.relationships(&all),
            };
            if !write_out(look.as_bytes())? {
                return Ok(());
            }
            if let Some(so_far) = all.iter().find_map(api::Replication::progress) {
                bar.show(so_far);
            } else {
                bar.hide();
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn point(&self, verb: PointVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            PointVerb::List { vm } => self.print(&client.points(&vm).await?),
            PointVerb::Open { vm, point, disk } => {
                let opened = client.open_point(&vm, &point, &OpenPoint { disk }).await?;
                self.print(&opened)?;
                self.hint(&show_point::how_to_read(&vm, &point, &opened))
            }
            PointVerb::Close { vm, point } => {
                client.close_point(&vm, &point).await?;
                self.say(&format!("point `{point}` of VM `{vm}` is closed"))
            }
            PointVerb::Lock {
                vm,
                point,
                until,
                hours,
            } => {
                let until = until.unwrap_or_else(|| show_point::after(hours.unwrap_or_default()));
                let locked = client.lock_point(&vm, &point, &LockPoint { until }).await?;
                self.print(&vec![locked])
            }
            PointVerb::Export {
                vm,
                point,
                file,
                disk,
                all_disks,
                format,
            } => {
                let export = ExportPoint {
                    to: absolute(&file)?,
                    disk: (!all_disks).then_some(disk),
                    format,
                };
                let bar = Bar::new(self.format);
                let exported = client
                    .export_point(&vm, &point, &export, |progress| bar.show(&progress))
                    .await?;
                drop(bar);
                self.print(&exported)
            }
        }
    }

    async fn failover(&self, verb: FailoverVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            FailoverVerb::Test { vm, point } => {
                let test = TestFailover { point: Some(point) };
                self.print(&vec![client.test_failover(&vm, &test).await?.vm])
            }
            FailoverVerb::StopTest { vm, or_failover } => {
                client
                    .stop_test_failover(&vm, StopTest { or_failover })
                    .await?;
                self.say(&format!("no test failover of VM `{vm}` is left"))
            }
            FailoverVerb::Prepare {
                vm,
                timeout,
                keep_checkpoints,
            } => {
                let prepare = PrepareFailover {
                    timeout_s: timeout,
                    keep_checkpoints,
                };
                let bar = Bar::new(self.format);
                let show = |progress| bar.show(&progress);
                let prepared = client.prepare_failover(&vm, &prepare, show).await?;
                drop(bar);
                self.print(&prepared)?;
                if self.format == Format::Json {
                    return Ok(());
                }
                self.say(&format!(
                    "next, on host `{}`: `pollux failover start {vm}`; or here, to go back: \
                     `pollux failover cancel {vm}`",
                    prepared.replica_host
                ))
            }
            FailoverVerb::Cancel { vm, drop_writes } => {
                client
                    .cancel_failover(&vm, CancelFailover { drop_writes })
                    .await?;
                self.say(&format!("VM `{vm}` is what it was before"))
            }
            FailoverVerb::Reverse { vm, disks } => {
                let reverse = ReverseReplication { disks };
                self.print(&vec![client.reverse(&vm, &reverse).await?])
            }
            FailoverVerb::LostWrites { vm, drop: true } => {
                client.drop_lost_writes(&vm).await?;
                self.say(&format!(
                    "what VM `{vm}` wrote here and never sent is kept no longer"
                ))
            }
            FailoverVerb::LostWrites { vm, drop: false } => {
                self.print(&client.lost_writes(&vm).await?)
            }
            FailoverVerb::Complete { vm } => {
                let bar = Bar::new(self.format);
                client
                    .complete_failover(&vm, |progress| bar.show(&progress))
                    .await?;
                drop(bar);
                self.say(&format!("VM `{vm}` lies on disks of its own now"))
            }
            FailoverVerb::Start {
                vm,
                point,
                drop_writes,
                wait,
                force,
            } => {
                let start = StartFailover {
                    point,
                    drop_writes,
                    wait,
                    because: statement(force),
                };
                let started = client.failover(&vm, &start).await?;
                self.notice(&started);
                self.print(&vec![started.vm])
            }
        }
    }

    /// Files are read here, without polluxd.
    async fn segment(&self, verb: SegmentVerb) -> Result<(), Problem> {
        let bar = Bar::new(self.format);
        let progress = |what: &str, done, total| {
            bar.show(&Progress {
                what: what.to_owned(),
                done: Bytes(done),
                total: Bytes(total),
            });
        };
        match verb {
            SegmentVerb::Info { file } => self.print(&segment::SegmentInfo::read(&file)?),
            SegmentVerb::Verify { file } => {
                let verifying = |done, total| progress("verifying", done, total);
                let verified = segment::verify(&file, verifying).await?;
                bar.hide();
                self.print(&verified)?;
                verified.problem().map_or(Ok(()), Err)
            }
            SegmentVerb::Cat {
                file,
                part,
                index: true,
                ..
            } => self.print(&segment::list(&file, &part)?),
            SegmentVerb::Cat { file, part, to, .. } => {
                let copying = |done, total| progress("copying", done, total);
                if to.is_none() {
                    self.takes_content()?;
                }
                let copied = segment::copy(&file, &part, to.as_deref(), copying).await?;
                bar.hide();
                if let (Format::Table, Some(notice)) = (self.format, copied.notice()) {
                    eprintln!("notice: {notice}");
                }
                match to {
                    Some(_) => self.print(&copied),
                    None => Ok(()),
                }
            }
        }
    }

    /// Checks that content can go to standard output.
    fn takes_content(&self) -> Result<(), Problem> {
        let refuse = |reason, way_out| {
            Err(Problem::new(
                Code::Invalid,
                "standard output",
                reason,
                way_out,
            ))
        };
        if self.format == Format::Json {
            let reason = "takes content or JSON, not both";
            return refuse(reason, "Name a file with --to, or list with --index");
        }
        if io::stdout().is_terminal() {
            let reason = "is a terminal, and content may be anything";
            return refuse(reason, "Redirect it, or name a file with --to");
        }
        Ok(())
    }

    async fn host(&self, verb: HostVerb) -> Result<(), Problem> {
        let client = &self.client;
        match verb {
            HostVerb::Status => self.print(&client.host().await?),
            HostVerb::Identity => self.print(&client.identity().await?),
            HostVerb::Certificate {
                certificate: Some(certificate),
                key: Some(key),
                authority: Some(authority),
                ..
            } => {
                let give = GiveCertificate {
                    certificate: text_of(&certificate)?,
                    key: text_of(&key)?,
                    authority: text_of(&authority)?,
                };
                self.print(&client.give_certificate(&give).await?)
            }
            HostVerb::Certificate { .. } => self.print(&client.take_certificate().await?),
            HostVerb::Revoke { list } => {
                let revoke = Revoke {
                    list: text_of(&list)?,
                };
                self.print(&client.revoke(&revoke).await?)
            }
            HostVerb::Peers => self.print(&client.peers().await?),
            HostVerb::Trust {
                name,
                address,
                fingerprint,
                authority,
                crl,
                limit,
            } => {
                let peer = TrustPeer {
                    name,
                    address,
                    fingerprint,
                    authority: authority.as_deref().map(text_of).transpose()?,
                    revoked: crl.as_deref().map(text_of).transpose()?,
                    limit,
                };
                let trusted = client.trust(&peer).await?;
                if let (Format::Table, Some(unseen)) = (self.format, &trusted.unseen) {
                    let text = format!(
                        "notice: {} {}. Its certificate is checked when it connects; what does \
                         not receive VMs and has no partner does not listen",
                        unseen.thing, unseen.reason
                    );
                    eprintln!("{}", harmless(&text));
                }
                self.print(&vec![trusted])
            }
            HostVerb::Untrust { name } => {
                client.untrust(&name).await?;
                self.say(&format!("host `{name}` is no longer trusted"))
            }
        }
    }

    /// Tells of emulation, for it is why a guest is slow.
    fn notice(&self, details: &api::VmDetails) {
        let accelerator = details.processes.as_ref().and_then(|all| all.accelerator);
        if self.format == Format::Table && accelerator == Some(api::Accelerator::Tcg) {
            eprintln!(
                "notice: KVM is not usable here, so the guest is emulated, many times slower; \
                 `pollux host status` says why"
            );
        }
    }

    fn print<T: Shown + serde::Serialize>(&self, what: &T) -> Result<(), Problem> {
        write_out(self.text(what).as_bytes()).map(drop)
    }

    fn text<T: Shown + serde::Serialize>(&self, what: &T) -> String {
        match self.format {
            Format::Table | Format::Csv => what.table() + "\n",
            Format::Json => show::json(what) + "\n",
        }
    }

    /// What may be done next, for people.
    fn hint(&self, text: &str) -> Result<(), Problem> {
        match self.format {
            Format::Table => write_out(format!("\n{text}\n").as_bytes()).map(drop),
            Format::Json | Format::Csv => Ok(()),
        }
    }

    /// What was done, when there is nothing to show.
    fn say(&self, text: &str) -> Result<(), Problem> {
        match self.format {
            Format::Table | Format::Csv => write_out(format!("{text}\n").as_bytes()).map(drop),
            Format::Json => write_out(b"null\n").map(drop),
        }
    }
}

/// Writes to standard output, and says whether anybody reads it; that nobody does is no error.
pub(crate) fn write_out(bytes: &[u8]) -> Result<bool, Problem> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Problem::failed("standard output", &error)),
    }
}

/// The content of a file in PEM form.
fn text_of(file: &Path) -> Result<String, Problem> {
    let thing = || file.display().to_string();
    let bytes = std::fs::read(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Problem::new(Code::NotFound, thing(), "does not exist", ""),
        _ => Problem::failed(thing(), &error),
    })?;
    String::from_utf8(bytes).map_err(|_error| {
        let way_out = "convert it, as with `openssl x509 -inform DER` or `openssl crl -inform DER`";
        Problem::new(Code::Invalid, thing(), "is not in PEM form", way_out)
    })
}

fn statement(force: Force) -> Option<String> {
    force.because.filter(|_| force.force)
}

fn wanted(create: Create) -> Result<CreateVm, Problem> {
    let name: VmName = create.name.parse().map_err(|error| {
        let error: model::SpecError = error;
        Problem::new(Code::Invalid, "new VM", error.to_string(), "")
    })?;
    let thing = format!("VM `{name}`");
    let generation = Generation::try_from(create.generation)
        .map_err(|error| Problem::new(Code::Invalid, thing, error.to_string(), ""))?;
    let direct_boot = match create.kernel {
        None => None,
        Some(kernel) => Some(DirectBoot {
            kernel: absolute(&kernel)?,
            initrd: create.initrd.as_deref().map(absolute).transpose()?,
            cmdline: create.cmdline,
        }),
    };
    let mut disks = Vec::new();
    for image in &create.image {
        disks.push(NewDisk {
            from: DiskContentFrom::Image(absolute(image)?),
            size: create.size,
            bus: create.bus,
        });
    }
    disks.extend(create.disk.iter().map(|size| NewDisk {
        from: DiskContentFrom::Empty,
        size: Some(*size),
        bus: create.bus,
    }));
    for file in &create.disk_file {
        disks.push(NewDisk {
            from: DiskContentFrom::File(absolute(file)?),
            size: None,
            bus: create.bus,
        });
    }
    Ok(CreateVm {
        name,
        generation,
        processors: create.processors,
        memory: create.memory,
        secure_boot: create.secure_boot,
        direct_boot,
        disks,
    })
}

/// Paths are meant from where the user is; polluxd is elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    std::path::absolute(path).map_err(|error| Problem::failed(path.display().to_string(), &error))
}

/// Progress on standard error, if somebody looks at it.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(format: Format) -> Self {
        if format != Format::Table || !io::stderr().is_terminal() {
            return Self(None);
        }
        let style = ProgressStyle::with_template(
            "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, \
             {eta} left",
        )
        .expect("the template is right")
        .progress_chars("=> ");
        Self(Some(ProgressBar::no_length().with_style(style)))
    }

    fn show(&self, progress: &Progress) {
        if let Some(bar) = &self.0 {
            bar.set_message(progress.what.clone());
            bar.set_length(progress.total.0);
            bar.set_position(progress.done.0);
        }
    }

    fn hide(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.hide();
    }
}
