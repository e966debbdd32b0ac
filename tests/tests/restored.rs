//! A VM's folder is restored from a backup of a time when the VM ran there, and it runs on the other host now.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::{
    FIRST_WRITE, Host, Pair, Refusal, create_local_writer, planned, text, until, writes_on,
};

const MINUTE: Duration = Duration::from_secs(60);

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status()?;
    ensure!(copied.success(), "{copied}");
    Ok(())
}

fn status(host: &Host) -> Result<String> {
    let details = host.json(&["vm", "show", "web"])?;
    Ok(text(&details, "/vm/status")?.to_owned())
}

#[test]
fn a_vm_whose_folder_was_restored_does_not_run_beside_the_one_that_went_home() -> Result<()> {
    let mut pair = Pair::new("restored")?;
    create_local_writer(&pair.castor, "web", "64MiB", 8)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.castor.pollux(&["replica", "server", "enable"])?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    planned(&pair.castor, &pair.pollux)?;

    // Backed up where it may be started without asking anybody: the other host stood down for it.
    let details = pair.pollux.json(&["vm", "show", "web"])?;
    let id = text(&details, "/spec/id")?;
    let home = pair.pollux.state().join("replicas").join(id);
    let backup = pair.scratch.state().join("backup");
    pair.pollux.kill_everything()?;
    copy(&home, &backup)?;
    pair.castor.kill_daemon()?;
    pair.pollux.start_daemon()?;
    pair.pollux.pollux(&["vm", "start", "web"])?;
    pair.castor.start_daemon()?;

    // It goes home, as planned.
    pair.pollux.insist(&["failover", "reverse", "web"])?;
    until(3 * MINUTE, "points come back", || {
        let points = pair.castor.json(&["point", "list", "web"]).ok();
        let points = points.and_then(|points| points.as_array().map(Vec::len));
        Ok((points >= Some(2)).then_some(()))
    })?;
    // A guest that is not up yet does not hear that it is to shut down.
    writes_on(&pair.pollux, "web", 100)?;
    planned(&pair.pollux, &pair.castor)?;

    // Restored while nobody answers for the host on which it runs.
    pair.pollux.kill_everything()?;
    pair.castor.kill_daemon()?;
    std::fs::remove_dir_all(&home)?;
    copy(&backup, &home)?;
    pair.pollux.start_daemon()?;
    let refused = pair.pollux.refused(&["vm", "start", "web"])?.message;
    for said in ["`castor`", "stored last", "--force --because STATEMENT"] {
        ensure!(refused.contains(said), "{refused}");
        ensure!(status(&pair.pollux)?.contains(said));
    }
    // It stays so whoever is killed.
    pair.pollux.kill_everything()?;
    pair.pollux.start_daemon()?;
    let refused = pair.pollux.refused(&["vm", "start", "web"])?.message;
    ensure!(refused.contains("stored last"), "{refused}");

    // Once the other host answers it is known who may run.
    pair.castor.start_daemon()?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    until(MINUTE, "the other host was heard", || {
        Ok(status(pollux)?
            .contains("host `castor` took over")
            .then_some(()))
    })?;
    let says = |refused: &Refusal| refused.message.contains("was taken over by host `castor`");
    let refused = pollux.refused_for(&["vm", "start", "web"], says)?;
    ensure!(says(&refused), "{}", refused.message);
    writes_on(castor, "web", 100)?;
    Ok(())
}
