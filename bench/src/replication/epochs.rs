//! What a point every second costs the guest, its segments sent to another host and taken in there: on
//! the same two cores as the guest.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;

use super::pair::{Pair, VM};
use crate::figures::{Goal, Rows};
use crate::load::{Client, Load, Pace, Pattern};

const DISK: u64 = 256 << 20;
const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: DISK,
};
/// What the guest writes when it is not all that it can, in bytes per second.
const CHURN: f64 = 20e6;
const SLICE: Duration = Duration::from_secs(6);
const RUNS: usize = 5;
/// When the guest writes all that it can: each takes longer, until all of it was sent.
const SATURATED_RUNS: usize = 3;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("guest_1s_epochs_ratio") {
        return Ok(());
    }
    let mut pair = Pair::new("epochs")?;
    let disk = pair.folder().join("disk.raw");
    File::create(&disk)?.set_len(DISK)?;
    crate::side::fill(&disk, DISK)?;
    pair.create(&disk)?;
    pair.enable("1s")?;
    pair.wait_for_new_point(&[])?;
    let mut client = pair.client(LOAD)?;
    let name = "guest_1s_epochs_ratio";
    let saturated = "guest_1s_epochs_ratio.saturated";
    for (name, churn, runs, goal) in [
        (name, Some(CHURN), RUNS, Goal::AtLeast(0.95)),
        (saturated, None, SATURATED_RUNS, Goal::Reported),
    ] {
        let mut slice = || {
            let pace = Pace::start(LOAD, SLICE);
            let mut pace = match churn {
                Some(churn) => pace.at_most(churn / 4096.0),
                None => pace,
            };
            client.run(&mut pace)?;
            let (done, took) = pace.end();
            #[allow(clippy::cast_precision_loss)]
            let done = done as f64;
            Ok::<_, anyhow::Error>(done / took.as_secs_f64())
        };
        let mut ratios = Vec::new();
        for run in 0..runs {
            eprintln!("{name}, run {} of {runs}", run + 1);
            // By turns, so that whatever changes with time hits both alike.
            let (mut with, mut without) = (0.0, 0.0);
            let order = [run % 2 == 0, run % 2 == 1];
            for replicated in order {
                if replicated {
                    pair.wait_until_sent()?;
                    with = slice()?;
                } else {
                    pair.castor.pollux(&["replica", "pause", VM])?;
                    without = slice()?;
                    pair.castor.pollux(&["replica", "resume", VM])?;
                }
            }
            ratios.push(with / without);
        }
        rows.add(name, "x", goal, &ratios);
    }
    Ok(())
}
