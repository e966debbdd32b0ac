//! Tables of disks and checkpoints.

use api::{Checkpoint, ExportedDisk, ResizedDisk, VmDisk};
use jiff::Timestamp;
use serde::Serialize;

use crate::show::{Shown, columns, finish, list, or_dash};

/// Disks, and whose they are.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct DisksOf(Vec<DiskOf>);

#[derive(Debug, Serialize)]
struct DiskOf {
    vm: String,
    #[serde(flatten)]
    disk: VmDisk,
}

impl DisksOf {
    pub(crate) fn one(vm: String, disk: VmDisk) -> Self {
        Self(vec![DiskOf { vm, disk }])
    }

    pub(crate) fn extend(&mut self, vm: &str, disks: Vec<VmDisk>) {
        let vm = vm.to_owned();
        self.0.extend(disks.into_iter().map(|disk| DiskOf {
            vm: vm.clone(),
            disk,
        }));
    }
}

/// Get-VMHardDiskDrive's columns, and what the disk takes.
impl Shown for DisksOf {
    fn table(&self) -> String {
        let mut table = columns(&["VM", "Disk", "Bus", "Size", "Taken", "Checkpoints", "File"]);
        for DiskOf { vm, disk } in &self.0 {
            let taken = disk.allocated.map(|own| {
                let since = disk.overlays.iter().filter_map(|one| one.allocated);
                since.fold(own, |sum, more| model::Bytes(sum.0 + more.0))
            });
            table.add_row([
                vm.clone(),
                disk.slot.to_string(),
                disk.bus.to_string(),
                disk.size.to_string(),
                or_dash(taken),
                disk.overlays.len().to_string(),
                disk.file.display().to_string(),
            ]);
        }
        finish(&table)
    }
}

/// Everything about disks.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct DiskInfo(pub(crate) Vec<VmDisk>);

impl Shown for DiskInfo {
    fn table(&self) -> String {
        let all = self.0.iter().map(|disk| {
            let mut rows = vec![
                ("Disk", disk.slot.to_string()),
                ("Id", disk.id.to_string()),
                ("Bus", disk.bus.to_string()),
                ("Size", disk.size.to_string()),
                ("Taken", or_dash(disk.allocated)),
                ("File", disk.file.display().to_string()),
            ];
            if let Some(waiting) = disk.waiting_for_room.filter(|waiting| *waiting > 0) {
                rows.push((
                    "Waiting for room",
                    format!("{waiting} requests of the guest"),
                ));
            }
            for one in &disk.overlays {
                let merging = if one.merging { ", being merged" } else { "" };
                let since = or_dash(one.allocated);
                let (name, time) = (&one.name, time(one.time));
                rows.push((
                    "Checkpoint",
                    format!("{name}, of {time}, {since} since{merging}"),
                ));
            }
            list(rows)
        });
        all.collect::<Vec<_>>().join("\n\n")
    }
}

/// Get-VMSnapshot's columns.
impl Shown for Vec<Checkpoint> {
    fn table(&self) -> String {
        let mut table = columns(&["Checkpoint", "Time (UTC)", "Since", "State", "Id"]);
        for one in self {
            let state = if one.merging { "merging" } else { "-" };
            table.add_row([
                one.name.to_string(),
                time(one.time),
                one.allocated.to_string(),
                state.to_owned(),
                one.id.to_string()[..8].to_owned(),
            ]);
        }
        finish(&table)
    }
}

impl Shown for ResizedDisk {
    fn table(&self) -> String {
        DiskInfo(vec![self.disk.clone()]).table()
    }
}

impl Shown for ExportedDisk {
    fn table(&self) -> String {
        list(vec![
            ("File", self.file.display().to_string()),
            ("Format", self.format.to_string()),
            ("Size", self.size.to_string()),
            ("Taken", self.allocated.to_string()),
        ])
    }
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
