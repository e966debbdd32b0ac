//! Recovery points, for people.

use api::{ExportedDisk, OpenedPoint, Point};
use jiff::{SignedDuration, Timestamp};

use crate::show::{Shown, columns, exact_time, finish, or_dash};

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

/// So many hours from now on, to the second.
pub(crate) fn after(hours: u32) -> Timestamp {
    let now = Timestamp::now();
    let then = now.checked_add(SignedDuration::from_hours(hours.into()));
    let then = then.unwrap_or(Timestamp::MAX);
    Timestamp::from_second(then.as_second()).unwrap_or(then)
}

/// What can be done with a point that is open.
pub(crate) fn how_to_read(vm: &str, opened: &OpenedPoint) -> String {
    let Some(disk) = opened.disks.first() else {
        return String::new();
    };
    let (uri, point, slot) = (&disk.uri, opened.point, disk.slot);
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
