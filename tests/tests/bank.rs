//! A VM with three disks moves money between them: at every recovery point the sum is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{
    Pair, create_shell, device, no_bad_news, point_name, shell_waits, start_shell, type_in, until,
};
use testkit::bank::{Balanced, BankError, Read, judge};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(600);
/// Sizes of the disks, by which the guest tells them apart. The last one is on SCSI, served over NBD; the
/// others are served over vhost-user.
const DISKS: [u64; 3] = [8 * MIB, 9 * MIB, 10 * MIB];
/// Points that are judged at least.
const POINTS: usize = 20;
/// Transfers after which every disk differs: each touches two.
const APART: u64 = 100;

/// A disk of a point, as a file.
type Image = (PathBuf, File);

fn judge_images(images: &[&Image]) -> Result<Balanced, BankError> {
    let files = images.iter().map(|(_, file)| file);
    let mut reads: Vec<_> = files
        .zip(DISKS)
        .map(|(file, len)| (len, |at, block: &mut [u8]| file.read_exact_at(block, at)))
        .collect();
    let mut disks: Vec<(u64, &mut Read<'_>)> = Vec::new();
    for (len, read) in &mut reads {
        disks.push((*len, read));
    }
    judge(&mut disks)
}

/// The disks of a point; none if it went meanwhile.
fn export(pair: &Pair, point: &str) -> Result<Option<Vec<Image>>> {
    let mut images = Vec::new();
    for disk in 0..DISKS.len() {
        let path = pair.scratch.state().join(format!("{point}-{disk}.raw"));
        let (number, file) = (disk.to_string(), path.display().to_string());
        let export = ["point", "export", "web", point, &file, "--disk", &number];
        if let Err(error) = pair.pollux.pollux(&export) {
            let listed = pair.points("web");
            let listed = listed
                .iter()
                .any(|one| point_name(one).is_ok_and(|name| name == point));
            ensure!(!listed, "point {point} is not exported: {error:#}");
            return Ok(None);
        }
        let file = File::open(&path)?;
        images.push((path, file));
    }
    Ok(Some(images))
}

/// Begins to move money in the guest of `vm`; the line that it says first.
fn open_bank(host: &pollux_tests::Host, vm: &str) -> Result<String> {
    let mut command = "pollux-bank".to_owned();
    for size in DISKS {
        command += &format!(" /dev/{}", device(host, vm, size)?);
    }
    type_in(host, vm, &format!("{command} &"), "pollux-bank: ")
}

#[test]
fn at_every_point_of_three_disks_the_sum_is_right_and_no_disk_is_of_another_instant() -> Result<()>
{
    let pair = Pair::new("bank")?;
    let castor = &pair.castor;
    create_shell(castor, "web", &["--disk", "8MiB"])?;
    for (size, bus) in DISKS.iter().zip(["virtio", "virtio", "scsi"]).skip(1) {
        let path = pair.scratch.state().join(format!("{bus}.raw"));
        File::create_new(&path)?.set_len(*size)?;
        let file = path.display().to_string();
        castor.pollux(&["disk", "attach", "web", &file, "--bus", bus])?;
    }
    start_shell(castor, "web")?;
    open_bank(castor, "web")?;
    pair.replicate("web")?;

    let mut judged: BTreeSet<String> = BTreeSet::new();
    // Those that are far apart, by their transfers.
    let mut kept: BTreeMap<u64, Vec<Image>> = BTreeMap::new();
    let mut in_flight = 0;
    until(LIMIT, "so many points were judged", || {
        for point in pair.points("web") {
            let name = point_name(&point)?;
            if judged.contains(&name) {
                continue;
            }
            let Some(images) = export(&pair, &name)? else {
                continue;
            };
            let found = judge_images(&images.iter().collect::<Vec<_>>())
                .with_context(|| format!("point {name}"))?;
            in_flight += u32::from(found.in_flight > 0);
            judged.insert(name);
            let near = found.transfers.saturating_sub(APART)..=found.transfers + APART;
            if kept.range(near).next().is_none() {
                kept.insert(found.transfers, images);
                continue;
            }
            for (path, _) in images {
                fs::remove_file(path)?;
            }
        }
        let enough = judged.len() >= POINTS && kept.len() >= POINTS / 2;
        Ok(enough.then_some(()))
    })?;
    no_bad_news(&castor.serial_log("web")?)?;
    let transfers = kept.keys().copied().collect::<Vec<_>>();
    println!(
        "{} points, {in_flight} of them in the middle of a transfer; far apart: {transfers:?}",
        judged.len()
    );

    // A point of which one disk is another point's is found out.
    let kept: Vec<Vec<Image>> = kept.into_values().collect();
    for pair in kept.windows(2) {
        for (one, other) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
            for disk in 0..DISKS.len() {
                let mut mixed: Vec<&Image> = one.iter().collect();
                mixed[disk] = &other[disk];
                let error = judge_images(&mixed).expect_err("two instants");
                let told = matches!(error, BankError::Sum { .. } | BankError::Missing { .. });
                ensure!(told, "{error}");
            }
        }
    }

    // A guest that boots from a point finds the same.
    pair.pollux.pollux(&["failover", "test", "web"])?;
    shell_waits(&pair.pollux, "web - Test", 0, LIMIT)?;
    let found = open_bank(&pair.pollux, "web - Test")?;
    ensure!(
        found.contains("found ") && found.ends_with(": right"),
        "{found}"
    );
    Ok(())
}
