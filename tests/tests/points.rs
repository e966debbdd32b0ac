//! Recovery points of a twin are opened, exported and locked. No guest runs: the VM is off, its disks are
//! written through the export that a guest would use.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::{Host, Scratch, json_u64, kill, nothing_pending, point_name, text, until};
use serde_json::{Value, json};
use testkit::Rng;

const MINUTE: Duration = Duration::from_secs(60);
/// Points that the twin keeps: few, so that merging never rests.
const POINTS: u64 = 4;
const MIB: usize = 1 << 20;
/// Sizes of the VM's disks.
const DISKS: [usize; 2] = [24 * MIB, 8 * MIB];

/// A VM that is off, with its twin.
struct Pair {
    castor: Host,
    pollux: Host,
    scratch: Scratch,
    /// Of the VM.
    id: String,
    rng: Rng,
    /// What the disks of the VM hold.
    disks: Vec<Vec<u8>>,
}

impl Pair {
    fn new(what: &str) -> Result<Self> {
        let scratch = Scratch::new(&format!("system/{what}"))?;
        let settings = scratch.state().join("pollux");
        fs::create_dir_all(&settings)?;
        fs::write(
            settings.join("host.toml"),
            format!("keep = \"{POINTS}:all\"\n"),
        )?;
        let castor = Host::start("castor", &scratch)?;
        let pollux = Host::start("pollux", &scratch)?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
        let create = ["vm", "create", "web", "--memory", "64MiB", "--bus", "scsi"];
        let sizes = ["--disk", "24MiB", "--disk", "8MiB"];
        castor.pollux(&[&create[..], &sizes].concat())?;
        let details = castor.json(&["vm", "show", "web"])?;
        let id = text(&details, "/vm/id")?.to_owned();
        let enable = ["replica", "enable", "web", "--to", "pollux"];
        castor.pollux(&[&enable[..], &["--frequency", "1s"]].concat())?;
        let pair = Self {
            castor,
            pollux,
            scratch,
            id,
            rng: Rng::new(5),
            disks: DISKS.map(|size| vec![0; size]).to_vec(),
        };
        until(MINUTE, "there is a point", || {
            Ok(pair.points().is_ok_and(|all| !all.is_empty()).then_some(()))
        })?;
        Ok(pair)
    }

    fn points(&self) -> Result<Vec<Value>> {
        let points = self.pollux.json(&["point", "list", "web"])?;
        Ok(points.as_array().context("a list")?.clone())
    }

    fn point(&self, name: &str) -> Result<Value> {
        let points = self.points()?.into_iter();
        let mut named = points.filter(|point| point_name(point).is_ok_and(|own| own == name));
        named.next().with_context(|| format!("no point {name}"))
    }

    fn newest(&self) -> Result<u64> {
        let points = self.points()?;
        json_u64(points.last().context("a point")?, "/id/sequence")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.state().join(name)
    }

    /// Writes something else on both disks.
    fn write(&mut self) -> Result<()> {
        for number in 0..self.disks.len() {
            let disk = &mut self.disks[number];
            for _ in 0..20 {
                let len = 1 + usize::try_from(self.rng.below(200_000))?;
                let at = usize::try_from(self.rng.below((disk.len() - len) as u64))?;
                let zero = self.rng.once_in(3);
                let bytes = match zero {
                    true => vec![0; len],
                    false => self.rng.bytes(len),
                };
                disk[at..at + len].copy_from_slice(&bytes);
            }
            let image = self.file("written.raw");
            fs::write(&image, &self.disks[number])?;
            let folder = self.castor.diskd_socket(&self.id);
            let socket = folder.with_file_name(format!("nbd{number}.sock"));
            let guest = format!("nbd+unix:///guest?socket={}", socket.display());
            run(
                "nbdcopy",
                &["--flush", &image.display().to_string(), &guest],
            )?;
        }
        Ok(())
    }

    /// Waits until the newest point holds what the disks hold.
    fn settle(&self) -> Result<()> {
        // Those that are on their way were perhaps cut before all was written.
        let wanted = self.newest()? + 3;
        until(MINUTE, "newer points come", || {
            Ok((self.newest()? >= wanted).then_some(()))
        })?;
        nothing_pending(&self.castor, "web")
    }

    /// A point that holds what the disks hold, and files of their content. It stays until points come again:
    /// now at most the one that is on its way comes.
    fn settled(&self) -> Result<(String, Vec<PathBuf>)> {
        let newest = self.newest()?;
        let files = (0..).zip(&self.disks).map(|(number, disk)| {
            let file = self.file(&format!("{newest}-{number}.expected"));
            fs::write(&file, disk)?;
            Ok(file)
        });
        let files = files.collect::<Result<_>>()?;
        self.settle()?;
        self.castor.pollux(&["replica", "pause", "web"])?;
        let points = self.points()?;
        Ok((point_name(points.last().context("a point")?)?, files))
    }

    /// Points come again.
    fn resume(&self) -> Result<()> {
        self.castor.pollux(&["replica", "resume", "web"])?;
        Ok(())
    }

    /// Writes until so many points are newer than those of now that none of them is kept.
    fn churn(&mut self) -> Result<()> {
        let wanted = self.newest()? + POINTS + 2;
        while self.newest()? < wanted {
            self.write()?;
        }
        Ok(())
    }

    fn twin(&self) -> PathBuf {
        self.pollux.state().join("replicas").join(&self.id)
    }

    /// The largest file of the journal that is none of the base, which has no hashes, and what it holds; none
    /// if it went with its point meanwhile.
    fn largest(&self) -> Option<(PathBuf, Vec<u8>)> {
        let journal = self.twin().join("journal");
        let folders = ["segments", "packs"].map(|folder| fs::read_dir(journal.join(folder)));
        let files = folders.into_iter().flatten().flatten().flatten();
        let sized = files.filter_map(|file| Some((file.metadata().ok()?.len(), file.path())));
        let (_, file) = sized.max()?;
        let content = fs::read(&file).ok()?;
        Some((file, content))
    }

    /// An export of the point `name` to `file`, on its way.
    fn begin_export(&self, name: &str, file: &str) -> Result<Child> {
        for _ in 0..20 {
            let mut export = self
                .pollux
                .command(&["point", "export", "web", name, file])?
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let seen = until(MINUTE, "the export begins", || {
                let ended = export.try_wait()?.is_some();
                let begun = !self.open_folders()?.is_empty();
                Ok((begun || ended).then_some(begun && !ended))
            })?;
            if seen {
                return Ok(export);
            }
            fs::remove_file(file).context("it was exported")?;
        }
        bail!("each export was over before it could be seen")
    }

    /// Names in the twin's folder that are there only while a point is open or exported.
    fn open_folders(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.twin())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if ["open-", "export-", "."]
                .iter()
                .any(|ours| name.starts_with(ours))
            {
                found.push(name);
            }
        }
        Ok(found)
    }

    fn nothing_is_open(&self) -> Result<()> {
        let (folders, processes) = (self.open_folders()?, self.pollux.processes()?);
        ensure!(folders.is_empty(), "left behind: {folders:?}");
        ensure!(processes.is_empty(), "run on: {processes:?}");
        let held = self.points()?.iter().any(|point| point["pinned"] == true);
        ensure!(!held, "a point stays pinned");
        Ok(())
    }
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("{program} runs"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Compares what is served with what a disk held, with a program of others.
fn same(uri: &str, expected: &Path) -> Result<()> {
    let expected = expected.display().to_string();
    let compare = ["compare", "-f", "raw", "-F", "raw", &expected, uri];
    run("qemu-img", &compare).map(drop)
}

fn uris(opened: &Value) -> Result<Vec<String>> {
    let disks = opened.as_array().context("disks")?;
    disks
        .iter()
        .map(|disk| Ok(text(disk, "/uri")?.to_owned()))
        .collect()
}

#[test]
fn an_open_point_reads_the_same_whatever_is_merged_or_killed_and_leaves_nothing() -> Result<()> {
    let mut pair = Pair::new("open-points")?;
    pair.write()?;
    let (name, expected) = pair.settled()?;
    let opened = pair.pollux.json(&["point", "open", "web", &name])?;
    pair.resume()?;
    let first = uris(&opened["disks"])?;
    assert_eq!(first.len(), 2);
    for ((uri, file), size) in first.iter().zip(&expected).zip(DISKS) {
        assert_eq!(run("nbdinfo", &["--size", uri])?.trim(), size.to_string());
        run("nbdinfo", &["--is", "read-only", uri])?;
        same(uri, file)?;
        let copy = pair.file("copy.raw").display().to_string();
        run("nbdcopy", &[uri, &copy])?;
        same(&copy, file)?;
    }
    // Read-only for whoever tries, and no guest's export.
    let write = ["-f", "raw", "-c", "write 0 4k", &first[0]];
    run("qemu-io", &write).expect_err("it is read-only");
    run("nbdinfo", &[&first[0].replace("disk?", "guest?")]).expect_err("no such export");

    // A second one, of one disk, beside it; then both outlive what comes after them.
    pair.churn()?;
    let (_, late_files) = pair.settled()?;
    let one = pair
        .pollux
        .json(&["point", "open", "web", "latest", "--disk", "1"])?;
    pair.resume()?;
    let late = point_name(&json!({ "id": one["point"] }))?;
    let second = uris(&one["disks"])?;
    assert_eq!(second.len(), 1);
    assert_eq!(pair.open_folders()?.len(), 2);
    pair.churn()?;
    let all_same = |what: &str| -> Result<()> {
        for (uri, file) in first.iter().zip(&expected) {
            same(uri, file).with_context(|| format!("{name}, {what}"))?;
        }
        same(&second[0], &late_files[1]).with_context(|| format!("{late}, {what}"))
    };
    all_same("after merges")?;
    let listed = pair.point(&name)?;
    assert_eq!(uris(&listed["open"])?, first);
    assert_eq!(listed["pinned"], true);

    // Both processes of both are killed, one kind after the other; and polluxd, which finds them.
    for program in ["pollux-diskd", "pollux-vmd"] {
        let before = pair.pollux.processes()?;
        let hit: Vec<_> = before.iter().filter(|(_, name)| name == program).collect();
        assert_eq!(hit.len(), 2, "{before:?}");
        for (pid, _) in &hit {
            kill(*pid)?;
        }
        until(MINUTE, "others are started", || {
            let now = pair.pollux.processes()?;
            let fresh = now
                .iter()
                .filter(|one| !before.contains(one) && one.1 == program);
            Ok((fresh.count() == 2).then_some(()))
        })?;
        until(MINUTE, "both points are served again", || {
            Ok(all_same(program).is_ok().then_some(()))
        })?;
    }
    pair.pollux.kill_everything()?;
    pair.pollux.start_daemon()?;
    until(
        MINUTE,
        "both are served again after everything was killed",
        || Ok(all_same("everything killed").is_ok().then_some(())),
    )?;
    pair.pollux.kill_daemon()?;
    all_same("without polluxd")?;
    pair.pollux.start_daemon()?;
    pair.churn()?;
    all_same("adopted")?;

    // Closed: gone, and merged past.
    pair.pollux.pollux(&["point", "close", "web", &name])?;
    assert_eq!(pair.open_folders()?.len(), 1);
    pair.pollux.pollux(&["point", "close", "web", &late])?;
    pair.nothing_is_open()?;
    pair.churn()?;
    until(MINUTE, "it is merged", || {
        Ok(pair.point(&name).is_err().then_some(()))
    })?;
    for uri in first.iter().chain(&second) {
        run("nbdinfo", &[uri]).expect_err("closed");
    }

    // With the twin goes what is open of it.
    pair.pollux.pollux(&["point", "open", "web", "latest"])?;
    pair.castor.pollux(&["replica", "remove", "web"])?;
    pair.pollux.pollux(&["vm", "delete", "web"])?;
    assert_eq!(pair.pollux.processes()?, Vec::new());
    ensure!(!pair.twin().exists(), "the twin's folder is gone");
    Ok(())
}

#[test]
fn a_point_is_exported_in_every_format_whole_or_not_at_all() -> Result<()> {
    let mut pair = Pair::new("export-points")?;
    pair.write()?;
    let (name, expected) = pair.settled()?;
    for format in ["raw", "qcow2", "vhdx"] {
        let folder = pair.file(format);
        fs::create_dir(&folder)?;
        let path = folder.display().to_string();
        let export = ["point", "export", "web", &name, &path, "--all-disks"];
        let told = pair
            .pollux
            .json(&[&export[..], &["--format", format]].concat())?;
        for (number, file) in expected.iter().enumerate() {
            let made = folder.join(format!("disk{number}.{format}"));
            assert_eq!(text(&told[number], "/file")?, made.display().to_string());
            let (made, file) = (made.display().to_string(), file.display().to_string());
            let compare = ["compare", "-f", format, "-F", "raw", &made, &file];
            run("qemu-img", &compare).with_context(|| format!("disk {number}, {format}"))?;
        }
        assert_eq!(fs::read_dir(&folder)?.count(), 2);
    }
    let file = pair.file("one.qcow2").display().to_string();
    let one = ["point", "export", "web", &name, &file, "--disk", "1"];
    pair.pollux
        .pollux(&[&one[..], &["--format", "qcow2"]].concat())?;
    let info = run("qemu-img", &["info", "--output=json", &file])?;
    let info: Value = serde_json::from_str(&info)?;
    assert_eq!(json_u64(&info, "/virtual-size")?, DISKS[1] as u64);
    pair.nothing_is_open()?;

    // What is wrong is said before anything is done.
    let refused = |args: &[&str], exit: i32, says: &str| -> Result<()> {
        let refusal = pair.pollux.refused(args)?;
        assert_eq!(refusal.exit, exit, "{args:?}: {}", refusal.message);
        ensure!(refusal.message.contains(says), "{}", refusal.message);
        Ok(())
    };
    let absent = pair.file("absent/x.raw").display().to_string();
    let free = pair.file("free.raw").display().to_string();
    let raw = pair.file("raw").display().to_string();
    let export = |point, file| ["point", "export", "web", point, file];
    refused(&export(&name, &file), 4, "exists already")?;
    refused(&export(&name, &absent), 3, "folder does not exist")?;
    refused(&export("00000000.1", &free), 3, "point list")?;
    let with = |file, more: &[&'static str]| [&export(&name, file)[..], more].concat();
    refused(&with(&free, &["--all-disks"]), 3, "does not exist")?;
    refused(&with(&file, &["--all-disks"]), 4, "is no folder")?;
    refused(&with(&raw, &["--all-disks"]), 4, "disk0.raw")?;
    refused(&with(&free, &["--disk", "7"]), 3, "disk `7`")?;
    refused(&with(&free, &["--format", "vmdk"]), 2, "raw, qcow2 or vhdx")?;
    refused(&["point", "open", "web", "00000000.1"], 3, "point list")?;
    refused(&["point", "close", "web", &name], 4, "is not open")?;
    pair.pollux.pollux(&["point", "open", "web", &name])?;
    refused(&["point", "open", "web", &name], 4, "open already")?;
    pair.pollux.pollux(&["point", "close", "web", &name])?;
    let at_primary = pair.castor.refused(&["point", "open", "web", &name])?;
    ensure!(
        at_primary.message.contains("pollux"),
        "{}",
        at_primary.message
    );
    pair.nothing_is_open()?;

    // Given up: nothing is left, whoever ends it.
    for kind in ["INT", "KILL"] {
        let mut export = pair.begin_export(&name, &free)?;
        run("kill", &["-s", kind, &export.id().to_string()])?;
        export.wait()?;
        until(MINUTE, "the export is over", || {
            Ok(pair.nothing_is_open().is_ok().then_some(()))
        })?;
        // It may have got its name at the last moment, as a whole.
        if Path::new(&free).exists() {
            same(&free, &expected[0])?;
            fs::remove_file(&free)?;
        }
    }
    Ok(())
}

#[test]
fn a_point_that_is_locked_stays_and_so_does_its_twin() -> Result<()> {
    let mut pair = Pair::new("locked-points")?;
    pair.write()?;
    let (name, expected) = pair.settled()?;
    let locked = pair
        .pollux
        .json(&["point", "lock", "web", &name, "--for", "2h"])?;
    pair.resume()?;
    let until = text(&locked[0], "/locked")?.to_owned();
    let refused = |args: &[&str], exit: i32, says: &str| -> Result<()> {
        let args = [&["point", "lock", "web"], args].concat();
        let refusal = pair.pollux.refused(&args)?;
        assert_eq!(refusal.exit, exit, "{args:?}: {}", refusal.message);
        ensure!(refusal.message.contains(says), "{}", refusal.message);
        Ok(())
    };
    refused(&[&name, "--for", "1h"], 4, "never shortened")?;
    refused(&[&name, "--until", "2020-01-01"], 2, "past")?;
    refused(&[&name, "--until", "2120-01-01"], 2, "too far")?;
    refused(&["00000000.1", "--for", "1h"], 3, "point list")?;
    refused(&[&name], 2, "--until")?;
    pair.churn()?;
    let kept = pair.point(&name)?;
    assert_eq!(text(&kept, "/locked")?, until);
    let file = pair.file("locked.raw").display().to_string();
    pair.pollux
        .pollux(&["point", "export", "web", &name, &file])?;
    same(&file, &expected[0])?;

    pair.castor.pollux(&["replica", "remove", "web"])?;
    let refusal = pair.pollux.refused(&["vm", "delete", "web"])?;
    assert_eq!(refusal.exit, 4, "{}", refusal.message);
    ensure!(refusal.message.contains("locked"), "{}", refusal.message);
    pair.pollux.kill_everything()?;
    pair.pollux.start_daemon()?;
    assert_eq!(text(&pair.point(&name)?, "/locked")?, until);
    Ok(())
}

/// Whether the health of the twin is what a verification that found damage makes it.
fn says_damaged(pair: &Pair) -> Result<bool> {
    let all = pair.pollux.json(&["replica", "health", "web"])?;
    let messages = all[0]["messages"].as_array().context("messages")?;
    Ok(all[0]["health"] == "critical"
        && messages
            .iter()
            .any(|one| one["reason"] == "journal-damaged"))
}

#[test]
fn a_twin_is_verified_and_damage_is_told_with_the_points_that_it_hurts() -> Result<()> {
    let mut pair = Pair::new("verified-twin")?;
    pair.write()?;
    pair.settled()?;
    let verify = ["replica", "verify", "web"];
    let whole = pair.pollux.json(&verify)?;
    assert_eq!(whole["damage"], Value::Array(Vec::new()), "{whole}");
    ensure!(text(&whole, "/read")? != "0 B", "{whole}");
    let at_primary = pair.castor.refused(&verify)?;
    assert_eq!(at_primary.exit, 4, "{}", at_primary.message);

    let (file, mut content) = until(MINUTE, "a segment is read", || Ok(pair.largest()))?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, &content)?;
    let told = pair.pollux.refused(&verify)?;
    assert_eq!(told.exit, 1, "{}", told.message);
    ensure!(told.message.contains("damaged"), "{}", told.message);
    let json = [&["-o", "json"], &verify[..]].concat();
    let output = pair.pollux.command(&json)?.output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(text(&told, "/damage/0/file")?, file.display().to_string());
    ensure!(
        !told["damage"][0]["points"]
            .as_array()
            .context("a list")?
            .is_empty()
    );
    ensure!(says_damaged(&pair)?, "the health of the twin says so");
    content[middle] ^= 1;
    fs::write(&file, &content)?;
    pair.pollux.pollux(&verify)?;
    ensure!(!says_damaged(&pair)?, "it was mended");
    Ok(())
}

/// The base has no hashes of its own: only the primary can tell that it rotted.
#[test]
fn a_twin_is_compared_with_its_primary_and_what_rotted_is_in_the_next_point() -> Result<()> {
    let mut pair = Pair::new("compared-twin")?;
    pair.write()?;
    pair.settle()?;
    let compare = ["replica", "verify", "web", "--against-primary"];
    let elsewhere = pair.pollux.refused(&compare)?;
    assert_eq!(elsewhere.exit, 4, "{}", elsewhere.message);
    ensure!(
        elsewhere.message.contains("host `castor`"),
        "{}",
        elsewhere.message
    );
    let whole = pair.castor.json(&compare)?;
    let all: usize = DISKS.iter().sum();
    assert_eq!(text(&whole, "/compared")?, format!("{} MiB", all / MIB));
    assert_eq!(
        (text(&whole, "/damaged")?, text(&whole, "/changed")?),
        ("0 B", "0 B")
    );

    // Once everything that was written is merged into the base, two of its blocks rot.
    let wanted = pair.newest()? + POINTS + 2;
    until(MINUTE, "all is merged", || {
        let few = pair.points()?.len() as u64 <= POINTS;
        Ok((pair.newest()? >= wanted && few).then_some(()))
    })?;
    let journal = pair.twin().join("journal");
    let mut bases = Vec::new();
    for entry in fs::read_dir(&journal)? {
        let path = entry?.path();
        let is_base = fs::metadata(&path)?.len() == DISKS[1] as u64;
        bases.extend((is_base && path.extension().is_some_and(|it| it == "raw")).then_some(path));
    }
    assert_eq!(bases.len(), 1, "{bases:?}");
    let base = fs::OpenOptions::new().write(true).open(&bases[0])?;
    let content = |at: usize| pair.disks[1][at];
    let rotten = [5 * 4096 + 17, MIB + 4096];
    for at in rotten {
        base.write_all_at(&[content(at) ^ 0xff], at as u64)?;
    }
    let told = pair.castor.refused(&compare)?;
    assert_eq!(told.exit, 1, "{}", told.message);
    ensure!(told.message.contains("8 KiB"), "{}", told.message);
    ensure!(
        told.message.contains("holds them again"),
        "{}",
        told.message
    );
    for kind in ["twin-damaged", "twin-repaired"] {
        until(MINUTE, kind, || {
            let events = pair.castor.json(&["event", "list", "--vm", "web"])?;
            let told = events.as_array().context("a list")?.iter();
            let told = told.filter(|event| event["kind"] == kind).count();
            ensure!(told <= 1, "{events}");
            Ok((told == 1).then_some(()))
        })?;
    }

    // It is whole again, and what is exported is what the disks hold.
    let whole = pair.castor.json(&compare)?;
    assert_eq!(text(&whole, "/damaged")?, "0 B");
    let (name, files) = pair.settled()?;
    let copy = pair.file("repaired.raw").display().to_string();
    pair.pollux
        .pollux(&["point", "export", "web", &name, &copy, "--disk", "1"])?;
    same(&copy, &files[1])
}

#[test]
fn an_export_that_polluxd_did_not_survive_leaves_nothing() -> Result<()> {
    let mut pair = Pair::new("export-killed")?;
    pair.write()?;
    let (name, expected) = pair.settled()?;
    let free = pair.file("free.raw").display().to_string();
    let mut export = pair.begin_export(&name, &free)?;
    pair.pollux.kill_daemon()?;
    export.wait()?;
    pair.pollux.start_daemon()?;
    until(MINUTE, "what was left is removed", || {
        Ok(pair.nothing_is_open().is_ok().then_some(()))
    })?;
    if Path::new(&free).exists() {
        same(&free, &expected[0])?;
    }
    let partial = fs::read_dir(pair.scratch.state())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .any(|name| name.ends_with(".partial"));
    ensure!(!partial, "a file that is not whole has a name");
    Ok(())
}
