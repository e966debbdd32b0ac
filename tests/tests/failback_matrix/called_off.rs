//! The failover is called off, and the VM goes on where it was.

use super::*;

impl Cell<'_> {
    /// Calls the failover to pollux off, whose polluxd is killed as soon as that is decided, or before it is
    /// answered. It is the replica then, or was left failed over and is asked again.
    fn call_off_killed(&mut self) -> Result<()> {
        let cancel = ["failover", "cancel"];
        let twin = self.host(Pollux).state().join("replicas");
        let twin = twin.join(self.id(Pollux)?);
        let is_replica = || -> Result<bool> {
            let standing = fs::read_to_string(twin.join("standing.toml"))?;
            Ok(standing.contains("role = \"replica\""))
        };
        let all = [&cancel[..], &[self.vm.as_str(), "--drop-writes"]].concat();
        let mut asked = self.host(Pollux).command(&all)?.spawn()?;
        until(MINUTE, "it is decided", || {
            Ok((is_replica()? || asked.try_wait()?.is_some()).then_some(()))
        })?;
        self.hosts.pair.pollux.kill_daemon()?;
        asked.wait()?;
        self.hosts.start()?;
        ensure!(is_replica()?, "it was decided");
        ensure!(!twin.join("failover").exists(), "it lies above a point");
        let pinned = self.points(Pollux)?;
        let pinned = pinned.iter().filter(|point| point["pinned"] == true);
        ensure!(pinned.count() == 0, "a point is pinned");
        self.refused(Pollux, &["vm", "start"], &[], "failover start")?;
        self.refused(Pollux, &cancel, &[], "has no disks of its own")
    }

    /// What castor wrote since it was called off, `since`, and before, `unsent`, comes to pollux by what
    /// differs from the point `known`, and the two are equal.
    fn goes_on(&self, known: &Point, before: Carried, changed: &BTreeSet<usize>) -> Result<()> {
        self.settled(Castor)?;
        let (carried, talk) = self.carried_since(Castor, before);
        self.equal(Castor)?;
        let points = self.points(Pollux)?;
        let names = points.iter().map(point_name).collect::<Result<Vec<_>>>()?;
        let at = names.iter().position(|name| *name == known.name);
        let at = at.context("the points from before are there")?;
        let sizes = points[at + 1..].iter().map(|point| size(point, "/size"));
        let shipped: u64 = sizes.sum::<Result<u64>>()?;
        let count = (points.len() - at) as u64;
        let most = (changed.len() * BLOCK) as u64 + count * Cost::INDEX;
        println!("shipped {shipped}, carried {carried} of {most} bytes");
        ensure!(shipped <= most, "{shipped} of {most}");
        // Hashes of the regions that may differ, and what the two say besides.
        let most = most + regions(changed) / 128 + talk;
        ensure!(carried <= most, "carried {carried} of {most}");
        Ok(())
    }

    /// The disk of castor, where it runs, is what it was.
    fn has_its_disk(&self) -> Result<()> {
        let (path, name) = self.file("disk.raw")?;
        self.on(Castor, &["disk", "export"], &["0", &name])?;
        ensure!(fs::read(path)? == self.disk, "the disk is not its own");
        Ok(())
    }
}

#[test]
fn a_planned_failover_is_called_off_and_the_vm_starts_at_home_without_a_word() -> Result<()> {
    let mut hosts = Hosts::new("called-off-planned")?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let (start, cancel) = (["vm", "start"], ["failover", "cancel"]);
    cell.create(Nothing)?;
    cell.settled(Castor)?;
    cell.write(Castor, 0..0)?;
    let newest = cell.settled(Castor)?;
    cell.insist(Castor, &["failover", "prepare"])?;
    cell.insist(Pollux, &["failover", "start"])?;
    let own = cell.disk.clone();
    cell.write(Pollux, 0..0)?;
    cell.refused(Castor, &start, &[], "pollux failover cancel web")?;
    cell.refused(Pollux, &cancel, &["--drop-writes"], "pollux vm kill web")?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.refused(Pollux, &cancel, &[], "has written")?;
    cell.refused(Pollux, &cancel, &[], "--drop-writes")?;
    // Stop-VMFailover says the same, and pollux still decides.
    let native = cell.host(Pollux).refused(&["Stop-VMFailover", "web"])?;
    ensure!(native.message.contains("--drop-writes"), "{native:?}");
    cell.refused(Pollux, &["failover", "stop-test"], &[], "no test failover")?;
    cell.refused(Castor, &start, &[], "taken over by host `pollux`")?;

    cell.call_off_killed()?;
    cell.disk = own;
    cell.hosts.part();
    cell.refused(Castor, &start, &[], "taken over by host `pollux`")?;
    cell.hosts.join();
    let carried = cell.carried(Castor);
    cell.insist(Castor, &start)?;
    cell.has_its_disk()?;
    let since = cell.write(Castor, 0..0)?;
    cell.goes_on(&newest, carried, &since)?;

    // Once more, from where it is now, and under a lease, which is agreed on anew.
    let fence = ["--fence", "lease=10"];
    cell.on(Castor, &["replica", "set"], &fence)?;
    cell.on(Castor, &["vm", "kill"], &[])?;
    nothing_pending(cell.host(Castor), "web")?;
    cell.insist(Pollux, &["failover", "start"])?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.on(Pollux, &cancel, &["--drop-writes"])?;
    cell.insist(Castor, &start)?;
    cell.has_its_disk()?;
    cell.write(Castor, 0..0)?;
    cell.equal(Castor)?;
    let events = cell.host(Pollux).json(&["event", "list", "--vm", "web"])?;
    let events = events.as_array().context("a list")?;
    let off = |event: &&Value| event["kind"] == "failover-called-off";
    // One that is killed when it has decided does not tell.
    let told = events.iter().filter(off).count();
    ensure!((1..=2).contains(&told), "{events:?}");
    Ok(())
}

#[test]
fn a_forced_failover_is_called_off_and_what_was_never_sent_is() -> Result<()> {
    let mut hosts = Hosts::new("called-off-forced")?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let (History { newest, unsent, .. }, own) = cell.succeed()?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.call_off_killed()?;
    cell.disk = own;
    let carried = cell.carried(Castor);
    cell.insist(Castor, &["vm", "start"])?;
    cell.has_its_disk()?;
    let since = cell.write(Castor, 0..0)?;
    cell.goes_on(&newest, carried, &(&since | &unsent))
}

#[test]
fn what_sends_need_not_have_heard_of_a_failover_that_is_called_off() -> Result<()> {
    let mut hosts = Hosts::new("called-off-unheard")?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let start = ["vm", "start"];
    cell.create(Nothing)?;
    let History { newest, unsent, .. } = cell.history(Nothing)?;
    let own = cell.disk.clone();
    cell.take_over(Pollux, &newest)?;
    cell.write(Pollux, 0..0)?;
    // Pollux reaches castor, and tells it; what castor sends does not come there.
    cell.hosts.back.mend();
    until(MINUTE, "castor stands down", || {
        let (state, _) = cell.replication(Castor)?;
        Ok((state == "stood-down").then_some(()))
    })?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.on(Pollux, &["failover", "cancel"], &["--drop-writes"])?;
    cell.disk = own;
    let carried = cell.carried(Castor);
    cell.hosts.join();
    cell.insist(Castor, &start)?;
    cell.has_its_disk()?;
    let since = cell.write(Castor, 0..0)?;
    cell.goes_on(&newest, carried, &(&since | &unsent))?;

    // Its replica may take over again: it asks, as before.
    cell.on(Castor, &["vm", "kill"], &[])?;
    cell.hosts.part();
    cell.refused(Castor, &start, &[], "--force")
}

#[test]
fn a_host_from_which_the_vm_was_taken_back_is_the_replica_again_by_what_differs() -> Result<()> {
    let mut hosts = Hosts::new("called-off-taken-back")?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let (History { newest, unsent, .. }, own) = cell.succeed()?;
    cell.hosts.part();
    // What was begun of replicating back is no more once it is taken back.
    cell.refused(Pollux, &["failover", "reverse"], &[], "cannot be reached")?;
    cell.on(Castor, &["vm", "start"], &LOST)?;
    cell.disk = own;
    let since = cell.write(Castor, 0..0)?;
    cell.hosts.join();
    until(MINUTE, "the host that took over is held", || {
        Ok((cell.state(Pollux)? == "paused").then_some(()))
    })?;
    // Both say what makes a twin of it again.
    let leads = "pollux failover cancel web";
    until(MINUTE, "it says what leads to a twin", || {
        let (state, said) = cell.replication(Pollux)?;
        Ok((state == "stood-down" && said.contains(leads)).then_some(()))
    })?;
    until(MINUTE, "the primary says what leads to a twin", || {
        let (_, said) = cell.replication(Castor)?;
        Ok(said.contains(leads).then_some(()))
    })?;
    cell.refused(Castor, &["failover", "reverse"], &[], leads)?;
    cell.refused(Pollux, &["failover", "cancel"], &[], "pollux vm kill web")?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.refused(Pollux, &["failover", "cancel"], &[], "--drop-writes")?;
    let carried = cell.carried(Castor);
    cell.call_off_killed()?;
    cell.goes_on(&newest, carried, &(&since | &unsent))?;
    ensure!(cell.state(Castor)? == "running", "it ran all the time");

    // The other one gave way to it, and may take over again: it asks.
    cell.hosts.part();
    cell.on(Castor, &["vm", "kill"], &[])?;
    cell.refused(Castor, &["vm", "start"], &[], "--force")?;
    cell.hosts.join();
    cell.insist(Castor, &["vm", "start"])?;

    // Final, it has no points to go back to.
    let newest = cell.settled(Castor)?;
    cell.hosts.part();
    cell.take_over(Pollux, &newest)?;
    cell.on(Pollux, &["failover", "complete"], &[])?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.refused(Pollux, &["failover", "cancel"], &[], "failover reverse web")
}

#[test]
fn a_word_to_start_does_not_count_against_a_host_that_is_heard_of_meanwhile() -> Result<()> {
    let mut hosts = Hosts::new("heard-meanwhile")?;
    for vm in ["web", "db", "mail", "files", "names"] {
        if heard_meanwhile(&mut hosts, vm)? {
            return Ok(());
        }
        hosts.join();
    }
    anyhow::bail!("castor gave up each time before it was told")
}

/// Castor is told that `vm` runs on pollux while it asks, and a person said that pollux is lost. False if it
/// had given up before: then the word counts.
fn heard_meanwhile(hosts: &mut Hosts, vm: &str) -> Result<bool> {
    let mut cell = Cell::new(hosts, vm.to_owned(), 1);
    cell.create(Nothing)?;
    let newest = cell.history(Nothing)?.newest;
    cell.take_over(Pollux, &newest)?;
    cell.write(Pollux, 0..0)?;
    // Castor asks, hears nothing, and is told before it gives up.
    cell.hosts.pair.wire.mend();
    cell.hosts.pair.wire.lose_answers();
    let forced = [&["vm", "start", vm][..], &LOST].concat();
    let mut asked = cell.host(Castor).command(&forced)?;
    let asked = asked.stderr(Stdio::piped()).spawn()?;
    until(MINUTE, "it is being started", || {
        Ok((cell.state(Castor)? == "starting").then_some(()))
    })?;
    cell.hosts.back.mend();
    let answered = asked.wait_with_output()?;
    if answered.status.success() {
        return Ok(false);
    }
    let said = String::from_utf8_lossy(&answered.stderr);
    ensure!(said.contains("taken over by host `pollux`"), "{said}");
    until(MINUTE, "its processes have ended", || {
        Ok((cell.state(Castor)? == "off").then_some(()))
    })?;
    ensure!(cell.state(Pollux)? == "running", "nothing happened to it");

    // Nor is it replicated anew from what it has here, without a word that the other one is lost.
    cell.hosts.join();
    cell.on(Castor, &["replica", "remove"], &[])?;
    let enable = ["replica", "enable", vm, "--to", "pollux"];
    let refused = cell.host(Castor).refused(&enable)?;
    ensure!(
        refused.message.contains("taken over by host `pollux`"),
        "{refused:?}"
    );
    Ok(true)
}
