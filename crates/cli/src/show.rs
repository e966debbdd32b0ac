//! Tables for people, JSON for programs.

use api::{HostStatus, Identity, Peer, Revoked, Vm, VmDetails};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use model::Bytes;
use serde::Serialize;

/// What has a form for people.
pub(crate) trait Shown {
    /// As text, without a line break at the end.
    fn table(&self) -> String;
}

/// For programs.
pub(crate) fn json(what: &impl Serialize) -> String {
    serde_json::to_string_pretty(what).expect("every answer has a JSON form")
}

/// For programs that read line by line.
pub(crate) fn json_line(what: &impl Serialize) -> String {
    serde_json::to_string(what).expect("every answer has a JSON form")
}

/// Columns as wide as their content, or as the terminal allows.
pub(crate) fn columns(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    fit(&mut table);
    table
}

/// A terminal that does not know its width says that it has none.
fn fit(table: &mut Table) {
    if table.width() == Some(0) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
}

pub(crate) fn finish(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `name: value`, one a line.
pub(crate) fn list(rows: Vec<(&str, String)>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    fit(&mut table);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    finish(&table)
}

pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Such as `1d 02:03:04`.
fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 {
        clock
    } else {
        format!("{days}d {clock}")
    }
}

/// Without what would steer a terminal: names in errors come from anywhere.
pub(crate) fn harmless(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            all.extend(c.escape_default());
        } else {
            all.push(c);
        }
    }
    all
}

/// To the millisecond, in UTC.
pub(crate) fn exact_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// Such as `30 s`, `5 min`.
pub(crate) fn interval(seconds: u64) -> String {
    if seconds >= 60 && seconds % 60 == 0 {
        format!("{} min", seconds / 60)
    } else {
        format!("{seconds} s")
    }
}

/// Get-VM's columns; the generation stands for the version.
impl Shown for Vec<Vm> {
    fn table(&self) -> String {
        let mut table = columns(&[
            "Name", "State", "CPUs", "Memory", "Uptime", "Mode", "Status", "Gen",
        ]);
        for vm in self {
            table.add_row([
                vm.name.to_string(),
                vm.state.to_string(),
                vm.processors.to_string(),
                vm.memory.to_string(),
                or_dash(vm.uptime_s.map(time)),
                or_dash(vm.mode),
                vm.status.clone(),
                vm.generation.to_string(),
            ]);
        }
        finish(&table)
    }
}

impl Shown for VmDetails {
    fn table(&self) -> String {
        let mut rows = vec![
            ("Name", self.vm.name.to_string()),
            ("Id", self.vm.id.to_string()),
            ("State", self.vm.state.to_string()),
            ("Status", self.vm.status.clone()),
            ("Generation", self.vm.generation.to_string()),
            ("Processors", self.vm.processors.to_string()),
            ("Memory", self.vm.memory.to_string()),
            ("Uptime", or_dash(self.vm.uptime_s.map(time))),
            ("Replication", or_dash(self.vm.mode)),
            ("VM-Generation ID", self.spec.generation_id.to_string()),
            ("Folder", self.folder.display().to_string()),
        ];
        if let Some(boot) = &self.spec.direct_boot {
            rows.push(("Kernel", boot.kernel.display().to_string()));
        } else if self.spec.generation == model::Generation::Two {
            let secure = if self.spec.secure_boot { "on" } else { "off" };
            rows.push(("Secure Boot", secure.to_owned()));
        }
        if let Some(processes) = &self.processes {
            rows.push(("Accelerator", or_dash(processes.accelerator)));
            rows.push(("vmd", format!("process {}", processes.vmd)));
            let diskd = or_dash(processes.diskd.map(|pid| format!("process {pid}")));
            let restarts = processes.diskd_restarts;
            let version = match (&processes.diskd_version, processes.diskd_outdated) {
                (Some(version), true) => {
                    format!(", of version {version}: `pollux vm upgrade` brings the installed one")
                }
                _ => String::new(),
            };
            rows.push((
                "diskd",
                format!("{diskd}, restarted {restarts} times{version}"),
            ));
            rows.push(("Disk I/O", or_dash(processes.store.clone())));
            let guest = or_dash(processes.guest.map(|pid| format!("process {pid}")));
            rows.push(("QEMU", guest));
            for lacking in &processes.lacking {
                rows.push(("Not confined", lacking.clone()));
            }
        }
        for disk in &self.disks {
            let taken = disk
                .allocated
                .map_or_else(String::new, |taken| format!(", {taken} taken"));
            let text = format!(
                "{} on {}: {}{taken}, {}",
                disk.slot,
                disk.bus,
                disk.size,
                disk.file.display()
            );
            rows.push(("Disk", text));
        }
        for one in &self.checkpoints {
            let merging = if one.merging { ", being merged" } else { "" };
            let text = format!("{}, {} since{merging}", one.name, one.allocated);
            rows.push(("Checkpoint", text));
        }
        list(rows)
    }
}

impl Shown for Vec<Peer> {
    fn table(&self) -> String {
        let mut table = columns(&["Name", "Address", "Limit", "Fingerprint"]);
        for peer in self {
            table.add_row([
                peer.name.clone(),
                peer.address.clone(),
                or_dash(peer.limit),
                peer.fingerprint.clone(),
            ]);
        }
        finish(&table)
    }
}

impl Shown for Identity {
    fn table(&self) -> String {
        let Self {
            name,
            address,
            fingerprint,
            given,
            valid_until,
        } = self;
        let kind = if *given {
            "of a PKI"
        } else {
            "of its own authority, renewed by itself"
        };
        let until = valid_until.map_or_else(String::new, |until| {
            format!(", valid until {}", until.strftime("%Y-%m-%d"))
        });
        let rows = vec![
            ("Name", name.clone()),
            ("Address", address.clone()),
            ("Fingerprint", fingerprint.clone()),
            ("Certificate", format!("{kind}{until}")),
        ];
        // The command stands on one line, to be copied whole.
        format!(
            "{}\n\nOn the other host:\n\n  pollux host trust {name} {address} {fingerprint}",
            list(rows)
        )
    }
}

impl Shown for Revoked {
    fn table(&self) -> String {
        list(vec![("Revoked by authority", self.authority.clone())])
    }
}

impl Shown for HostStatus {
    fn table(&self) -> String {
        let part = |free: Bytes, total: Bytes| format!("{free} free of {total}");
        let facts = list(vec![
            ("Name", self.name.clone()),
            ("Version", self.version.clone()),
            ("State folder", self.state.display().to_string()),
            ("Run folder", self.run.display().to_string()),
            (
                "Accelerator",
                format!(
                    "{} ({})",
                    or_dash(self.accelerator),
                    self.accelerator_reason
                ),
            ),
            ("QEMU", or_dash(self.qemu.clone())),
            (
                "Memory",
                format!(
                    "{} for guests, {} free for more, {} in all",
                    self.memory_guests, self.memory_available, self.memory_total
                ),
            ),
            ("VMs", format!("{}, {} running", self.vms, self.running)),
            ("Twins of other hosts' VMs", self.replicas.to_string()),
            ("Replica store", part(self.store_free, self.store_total)),
            ("Replica endpoint", self.replica_listen.clone()),
        ]);
        // A line each: what is wrong may be long.
        let left_out = self
            .left_out
            .iter()
            .map(|problem| format!("\nLeft out: {problem}"));
        let stores = self.stores.iter();
        let stores = stores.map(|store| format!("\nDisk I/O of VMs that run: {store}"));
        let lacking = self.lacking.iter();
        let lacking = lacking.map(|one| format!("\nNot confined: {one}"));
        let certificates = self.certificates.iter();
        let certificates = certificates.map(|one| format!("\nCertificate: {one}"));
        let refused = self.refused.iter();
        let refused = refused.map(|one| format!("\nRefused: {one}"));
        let more: String = stores
            .chain(lacking)
            .chain(left_out)
            .chain(certificates)
            .chain(refused)
            .collect();
        facts + &more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_does_not_know_its_width_does_not_make_columns_narrow() {
        let mut table = columns(&["Name", "Address"]);
        table.add_row(["castor", "127.0.0.1:8443"]);
        table.set_width(0);
        fit(&mut table);
        assert_eq!(finish(&table), "Name    Address\ncastor  127.0.0.1:8443");
    }

    #[test]
    fn times_and_intervals_are_short() {
        assert_eq!(time(3_723), "01:02:03");
        assert_eq!(time(86_400 + 59), "1d 00:00:59");
        assert_eq!(interval(30), "30 s");
        assert_eq!(interval(300), "5 min");
        assert_eq!(interval(90), "90 s");
    }

    #[test]
    fn the_command_to_trust_a_host_stands_on_one_line() {
        let text = Identity {
            name: "castor".to_owned(),
            address: "castor:8443".to_owned(),
            fingerprint: format!("sha256:{}", "0".repeat(64)),
            given: false,
            valid_until: None,
        }
        .table();
        let command = text.lines().last().expect("it has lines");
        assert!(command.starts_with("  pollux host trust castor castor:8443 sha256:0000"));
        assert!(command.ends_with("0000"), "{command}");
    }
}
