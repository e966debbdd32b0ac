//! A host that became the replica has its own disks back before it has a point.

use super::*;

impl Cell<'_> {
    /// Castor becomes the replica, and has its own disks back before the first point has come; whether pollux
    /// was `told` that it was the replica.
    pub(super) fn give_back(&mut self, told: bool) -> Result<()> {
        let reverse = ["failover", "reverse"];
        let twin = self.host(Castor).state().join("replicas");
        let twin = twin.join(self.id(Castor)?);
        if told {
            self.hosts.back.cut_after(100_000);
            self.on(Pollux, &reverse, &[])?;
            until(MINUTE, "the point is on its way", || {
                Ok(self.hosts.back.is_cut().then_some(()))
            })?;
        } else {
            self.hosts.back.lose_answers();
            let all = [&reverse[..], &[self.vm.as_str()]].concat();
            let mut asked = self.host(Pollux).command(&all)?.spawn()?;
            until(MINUTE, "castor has heard", || {
                Ok(twin.exists().then_some(()))
            })?;
            self.hosts.back.cut();
            ensure!(!asked.wait()?.success(), "it is answered");
            self.hosts.back.mend();
        }
        until(MINUTE, "castor is the replica", || {
            let state = self.replication(Castor).map(|(state, _)| state).ok();
            Ok(state.filter(|state| state == "initial-replication-in-progress"))
        })?;
        // Whatever a person says, there is nothing to start it from.
        self.refused(
            Castor,
            &["failover", "start"],
            &LOST,
            "pollux failover cancel",
        )?;
        self.on(Castor, &["failover", "cancel"], &[])?;
        ensure!(!twin.exists(), "it is a twin");
        Ok(())
    }
}

/// Castor has its own disks back, and is started by force while the two hosts are parted.
fn forced_after_it_has_its_disks_back(hosts: &mut Hosts, vm: &str, told: bool) -> Result<()> {
    let mut cell = Cell::new(hosts, vm.to_owned(), 1);
    let (_, own) = cell.succeed()?;
    cell.give_back(told)?;
    let start = ["vm", "start"];
    cell.refused(Castor, &start, &[], "--force")?;
    // It still asks, and hears that it runs there.
    cell.refused(Castor, &start, &LOST, "taken over by host `pollux`")?;
    cell.hosts.part();
    cell.on(Castor, &start, &LOST)?;
    let there = std::mem::replace(&mut cell.disk, own);
    cell.write(Castor, 0..0)?;
    ensure!((cell.state(Castor)?, cell.state(Pollux)?) == ("running".into(), "running".into()));

    // The two meet, and the lower one is held still. It tells why.
    cell.hosts.join();
    let begun = Instant::now();
    until(MINUTE, "the host that took over is held", || {
        Ok((cell.state(Pollux)? == "paused").then_some(()))
    })?;
    println!("held after {:?}", begun.elapsed());
    ensure!(cell.state(Castor)? == "running");
    // It is held first. Since when both ran is asked of the one that took over.
    until(MINUTE, "it tells from when on both ran", || {
        let (state, said) = cell.replication(Pollux)?;
        Ok((state == "stood-down" && said.contains("Both ran from")).then_some(()))
    })?;
    let details = cell.host(Pollux).json(&["vm", "show", vm])?;
    ensure!(text(&details, "/succeeded/host")? == "castor", "{details}");
    until(MINUTE, "there is an event", || {
        let events = cell.host(Pollux).json(&["event", "list", "--vm", vm])?;
        let events = events.as_array().context("a list")?;
        let told = events.iter().any(|event| event["kind"] == "stood-down");
        Ok(told.then_some(()))
    })?;
    let (path, name) = cell.file("disk.raw")?;
    cell.on(Castor, &["disk", "export"], &["0", &name])?;
    ensure!(fs::read(path)? == cell.disk, "the disk is its own");

    // Taken back on the other one, castor gives way again, and is the replica by what differs.
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.refused(Pollux, &start, &[], "--force")?;
    cell.on(Castor, &["vm", "kill"], &[])?;
    cell.on(Pollux, &start, &LOST)?;
    cell.gives_way(Castor)?;
    cell.refused(Castor, &start, &[], "--force")?;
    cell.disk = there;
    cell.insist(Pollux, &["failover", "reverse"])?;
    cell.write(Pollux, 0..0)?;
    cell.equal(Pollux)?;
    cell.refused(
        Castor,
        &["failover", "cancel"],
        &[],
        "recovery points already",
    )
}

#[test]
fn a_host_that_has_its_own_disks_back_meets_the_one_that_took_over() -> Result<()> {
    let mut hosts = Hosts::new("failback-meet")?;
    forced_after_it_has_its_disks_back(&mut hosts, "told", true)?;
    forced_after_it_has_its_disks_back(&mut hosts, "untold", false)
}

#[test]
fn a_host_that_has_its_own_disks_back_is_the_replica_again_by_what_differs() -> Result<()> {
    let mut hosts = Hosts::new("failback-again")?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let (History { unsent, .. }, own) = cell.succeed()?;
    cell.give_back(true)?;
    for _ in 0..2 {
        cell.hosts.join();
        until(
            MINUTE,
            "the new primary says how it is the replica again",
            || {
                let (state, said) = cell.replication(Pollux)?;
                Ok((state == "error" && said.contains("failover reverse web")).then_some(()))
            },
        )?;
        cell.give_back(true)?;
    }
    // Without an answer nobody can tell whether it is the replica still.
    cell.hosts.part();
    cell.refused(Pollux, &["failover", "reverse"], &[], "does not answer")?;
    cell.hosts.join();
    let since = cell.write(Pollux, 0..0)?;
    let carried = cell.carried(Pollux);
    cell.insist(Pollux, &["failover", "reverse"])?;
    let cost = cell.cost(Pollux, carried, &own, &since, regions(&unsent))?;
    println!("{cost}");
    // What was never sent is known as before, and asked for again nothing is done.
    let lost = cell
        .host(Castor)
        .json(&["failover", "lost-writes", "web"])?;
    let ranges = lost.pointer("/disks/0/ranges").and_then(Value::as_array);
    ensure!(
        ranges.is_some_and(|ranges| !ranges.is_empty()),
        "{ranges:?}"
    );
    let points = cell.points(Castor)?.len();
    cell.insist(Pollux, &["failover", "reverse"])?;
    ensure!(cell.points(Castor)?.len() >= points);
    cell.write(Pollux, 0..0)?;
    cell.equal(Pollux)?;
    cell.end(Pollux)?;

    for side in [Castor, Pollux] {
        ended_after_it_has_its_disks_back(&mut hosts, side)?;
    }
    Ok(())
}

/// The relationship is ended on one of the two: neither has it any more, and what stood down stays so.
fn ended_after_it_has_its_disks_back(hosts: &mut Hosts, side: Side) -> Result<()> {
    let mut cell = Cell::new(hosts, format!("{side:?}").to_lowercase(), 1);
    cell.succeed()?;
    cell.give_back(true)?;
    cell.hosts.join();
    cell.on(side, &["replica", "remove"], &[])?;
    for side in [Castor, Pollux] {
        cell.refused(side, &["replica", "status"], &[], "is not replicated")?;
    }
    let start = ["vm", "start"];
    cell.refused(Castor, &start, &[], "--force")?;
    cell.on(Castor, &["vm", "delete"], &[])?;
    cell.on(Pollux, &["failover", "complete"], &[]).ok();
    let enable = ["--to", "castor", "--frequency", "1s"];
    until(MINUTE, "it is replicated anew", || {
        Ok(cell.on(Pollux, &["replica", "enable"], &enable).ok())
    })?;
    cell.equal(Pollux)
}
