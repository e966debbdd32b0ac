//! Recovery points, for people.

use api::{ComparedReplica, ExportedDisk, OpenedPoint, Point, VerifiedReplica};
use jiff::{SignedDuration, Timestamp};
use model::{Bytes, Code, PointId, Problem};

use crate::show::{Shown, columns, exact_time, finish, harmless, list, or_dash};

impl Shown for Vec<Point> {
    fn table(&self) -> String {
        let mut table = columns(&[
            "Point",
            "Time (UTC)",
            "Consistency",
            "Size",
            "Held",
            "Open",
            "Locked until",
        ]);
        let yes = |it: bool| if it { "yes" } else { "-" }.to_owned();
        for point in self {
            let consistency = match point.consistency {
                journal::Consistency::Crash => "crash",
                journal::Consistency::Application => "application",
            };
            table.add_row([
                point.id.to_string(),
                exact_time(point.time),
                consistency.to_owned(),
                point.size.to_string(),
                yes(point.pinned),
                yes(!point.open.is_empty()),
                or_dash(
                    point
                        .locked
                        .map(|until| until.strftime("%Y-%m-%d %H:%M").to_string()),
                ),
            ]);
        }
        finish(&table)
    }
}

impl Shown for OpenedPoint {
    fn table(&self) -> String {
        let mut table = columns(&["Disk", "Size", "Address"]);
        for disk in &self.disks {
            table.add_row([
                disk.slot.to_string(),
                disk.size.to_string(),
                disk.uri.clone(),
            ]);
        }
        finish(&table)
    }
}

/// More points of a damaged file are counted, not listed, for people.
const LISTED: usize = 5;

impl Shown for VerifiedReplica {
    fn table(&self) -> String {
        let mut rows = vec![("Read", self.read.to_string())];
        if self.damage.is_empty() {
            rows.push(("Damage", "none".to_owned()));
        }
        for damage in &self.damage {
            rows.push(("Damaged", damage.file.display().to_string()));
            let more = match damage.more {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            rows.push(("", format!("{}{more}", damage.what)));
            let points = damage.points.iter().take(LISTED).map(PointId::to_string);
            let mut points = points.collect::<Vec<_>>().join(", ");
            if damage.points.len() > LISTED {
                points += &format!(", and {} more", damage.points.len() - LISTED);
            }
            let hurt = if points.is_empty() { "none" } else { &points };
            rows.push(("", format!("points that are hurt: {hurt}")));
        }
        list(rows)
    }
}

/// That something is damaged, if it is.
pub(crate) fn damaged(vm: &str, verified: &VerifiedReplica) -> Option<Problem> {
    let reason = match verified.damage.len() {
        0 => return None,
        1 => "is damaged in one file".to_owned(),
        more => format!("is damaged in {more} files"),
    };
    let way_out = "Use points that are not hurt, and see to the disk of this host; to make the twin \
                   anew, delete it here and enable the replication again";
    Some(Problem::new(
        Code::Failed,
        format!("the twin of VM `{vm}`"),
        reason,
        way_out,
    ))
}

impl Shown for ComparedReplica {
    fn table(&self) -> String {
        let mut rows = vec![
            ("Newest point", self.point.to_string()),
            ("Compared", self.compared.to_string()),
            ("Changed since, left out", self.changed.to_string()),
        ];
        if self.damaged == Bytes(0) {
            rows.push(("Damage", "none".to_owned()));
            return list(rows);
        }
        rows.push(("Damaged", self.damaged.to_string()));
        for range in self.damage.iter().take(LISTED) {
            rows.push((
                "",
                format!("{} at {} of disk {}", range.len, range.at, range.slot),
            ));
        }
        let listed = self.damage.len().min(LISTED);
        let more = self.more + (self.damage.len() - listed) as u64;
        if more > 0 {
            rows.push(("", format!("and {more} more ranges")));
        }
        let repaired = self.repaired.map(|point| point.to_string());
        rows.push((
            "Repaired in point",
            repaired.unwrap_or_else(|| "not yet".to_owned()),
        ));
        list(rows)
    }
}

/// That the twin is not what the disks are, if so.
pub(crate) fn differs(vm: &str, compared: &ComparedReplica) -> Option<Problem> {
    if compared.damaged == Bytes(0) {
        return None;
    }
    let (reason, way_out) = match compared.repaired {
        Some(point) => (
            format!("had {} that were not what the disks hold", compared.damaged),
            format!(
                "Point {point} holds them again; older ones do not: `pollux replica verify {vm}` on \
                 the other host tells which files are damaged, if their hashes say so. See to the \
                 storage there"
            ),
        ),
        None => (
            format!("has {} that are not what the disks hold", compared.damaged),
            "They are sent again with the next point; `pollux replica health` tells until then. \
             See to the storage of the other host"
                .to_owned(),
        ),
    };
    let thing = format!("the twin of VM `{vm}`");
    Some(Problem::new(Code::Failed, thing, reason, way_out))
}

/// So many hours from now on, to the second.
pub(crate) fn after(hours: u32) -> Timestamp {
    let now = Timestamp::now();
    let then = now.checked_add(SignedDuration::from_hours(hours.into()));
    let then = then.unwrap_or(Timestamp::MAX);
    Timestamp::from_second(then.as_second()).unwrap_or(then)
}

/// What can be done with a point that is open, which a person called `named`.
pub(crate) fn how_to_read(vm: &str, named: &str, opened: &OpenedPoint) -> String {
    let Some(disk) = opened.disks.first() else {
        return String::new();
    };
    let point = match named {
        // Another one tomorrow.
        "latest" => opened.point.to_string(),
        named => harmless(named),
    };
    let (uri, slot) = (&disk.uri, disk.slot);
    format!(
        "Any program that speaks NBD reads it, such as\n  \
         nbdinfo '{uri}'\n  \
         nbdcopy '{uri}' disk{slot}.raw\n\
         Until `pollux point close {vm} {point}` the point is kept."
    )
}

impl Shown for Vec<ExportedDisk> {
    fn table(&self) -> String {
        let mut table = columns(&["File", "Format", "Size", "Taken"]);
        for disk in self {
            table.add_row([
                disk.file.display().to_string(),
                disk.format.to_string(),
                disk.size.to_string(),
                disk.allocated.to_string(),
            ]);
        }
        finish(&table)
    }
}
