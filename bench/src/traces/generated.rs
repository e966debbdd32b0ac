//! Traces that are made up: the same on every machine. Twenty minutes each, about 20 MB/s.

use std::time::Duration;

use super::Write;
use crate::load::xorshift;

const LENGTH: Duration = Duration::from_secs(1200);
const BLOCK: u64 = 4096;
/// What is written to: 16 GiB of the disk.
const BLOCKS: u64 = 4 << 20;
/// Of the requests, of the hot set and of the database, one each.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

type Trace = Box<dyn Iterator<Item = Write>>;

/// All of them.
pub(super) fn all() -> [(&'static str, Trace); 4] {
    [
        ("uniform", Box::new(uniform())),
        ("zipf", Box::new(zipf())),
        ("append", Box::new(append())),
        ("database", Box::new(database())),
    ]
}

/// When number `number` of `per_second` happens.
fn time(number: u64, per_second: u32) -> Duration {
    Duration::from_micros(number * 1_000_000 / u64::from(per_second))
}

fn within(write: &Write) -> bool {
    write.time < LENGTH
}

/// Blocks of 4 KiB anywhere, 5,000 a second.
fn uniform() -> impl Iterator<Item = Write> {
    let mut random = SEED;
    let writes = (0..).map(move |number| Write {
        time: time(number, 5000),
        at: xorshift(&mut random) % BLOCKS * BLOCK,
        len: BLOCK,
    });
    writes.take_while(within)
}

/// Blocks of 4 KiB, 5,000 a second, of which few are written often: Zipf's law with exponent 0.99, the
/// hot ones scattered over the disk.
fn zipf() -> impl Iterator<Item = Write> {
    let mut random = SEED + 1;
    let hot = Zipf::new(BLOCKS);
    let writes = (0..).map(move |number| Write {
        time: time(number, 5000),
        at: scattered(hot.rank(&mut random)) * BLOCK,
        len: BLOCK,
    });
    writes.take_while(within)
}

/// Records of 6,000 bytes, 3,333 a second, appended to a log of 1 GiB that begins again when it is full; a
/// record is written in whole sectors, so that the last one of it is written once more with the next.
fn append() -> impl Iterator<Item = Write> {
    let mut next = 0;
    let writes = (0..).map(move |number| log_record(time(number, 3333), &mut next, 6000));
    writes.take_while(within)
}

/// Transactions of a database, 600 a second: a record of 2 KiB in a log of 1 GiB, and three pages of
/// 8 KiB of 8 GiB behind it, the hot ones more often.
fn database() -> impl Iterator<Item = Write> {
    const LOG: u64 = 1 << 30;
    const PAGE: u64 = 8192;
    let mut random = SEED + 2;
    let pages = Zipf::new(BLOCKS / 4);
    let mut next = 0;
    let writes = (0..).flat_map(move |number| {
        let time = time(number, 600);
        let record = log_record(time, &mut next, 2048);
        let page = |random: &mut u64| Write {
            time,
            at: LOG + scattered(pages.rank(random)) % (BLOCKS / 4) * PAGE,
            len: PAGE,
        };
        let (one, two, three) = (page(&mut random), page(&mut random), page(&mut random));
        [record, one, two, three]
    });
    writes.take_while(within)
}

/// The next record of a log of 1 GiB, in whole sectors.
fn log_record(time: Duration, next: &mut u64, len: u64) -> Write {
    const SECTOR: u64 = 512;
    if *next + len > 1 << 30 {
        *next = 0;
    }
    let at = *next / SECTOR * SECTOR;
    *next += len;
    Write {
        time,
        at,
        len: next.next_multiple_of(SECTOR) - at,
    }
}

/// Another block for each, far from its neighbours': multiplied by an odd number.
fn scattered(rank: u64) -> u64 {
    rank.wrapping_mul(SEED) % BLOCKS
}

/// Ranks by Zipf's law: Gray et al., Quickly Generating Billion-Record Synthetic Databases, 1994, section 3.2.
struct Zipf {
    ranks: f64,
    alpha: f64,
    eta: f64,
    zeta: f64,
}

impl Zipf {
    const THETA: f64 = 0.99;

    // Ranks are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    fn new(ranks: u64) -> Self {
        let zeta: f64 = (1..=ranks)
            .map(|rank| (rank as f64).powf(-Self::THETA))
            .sum();
        let zeta_2 = 1.0 + 2_f64.powf(-Self::THETA);
        let ranks = ranks as f64;
        Self {
            ranks,
            alpha: 1.0 / (1.0 - Self::THETA),
            eta: (1.0 - (2.0 / ranks).powf(1.0 - Self::THETA)) / (1.0 - zeta_2 / zeta),
            zeta,
        }
    }

    /// 0 is the most frequent one.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of ranks"
    )]
    fn rank(&self, random: &mut u64) -> u64 {
        let uniform = (xorshift(random) >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(Self::THETA) {
            return 1;
        }
        let rank = self.ranks * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        rank.clamp(0.0, self.ranks - 1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_the_same_every_time_and_its_time_never_goes_back() {
        for ((name, trace), (_, again)) in all().into_iter().zip(all()) {
            let (mut bytes, mut last) = (0, Duration::ZERO);
            for (write, same) in trace.zip(again).take(100_000) {
                assert_eq!(write, same, "{name}");
                assert!(write.time >= last, "{name}");
                assert!(
                    write.len > 0 && write.at + write.len <= 16 << 30,
                    "{name}: {write:?}"
                );
                (last, bytes) = (write.time, bytes + write.len);
            }
            let rate = bytes as f64 / last.as_secs_f64();
            assert!(
                (15e6..25e6).contains(&rate),
                "{name}: {rate} bytes a second"
            );
        }
    }

    #[test]
    fn ranks_follow_the_law() {
        let zipf = Zipf::new(1000);
        let mut random = 1;
        let mut counts = [0_u32; 1000];
        for _ in 0..1_000_000 {
            counts[usize::try_from(zipf.rank(&mut random)).expect("small")] += 1;
        }
        // The first has 1 / zeta(1000, 0.99) of them all; the tenth 10^-0.99 of that.
        let share = f64::from(counts[0]) / 1e6;
        assert!((share * zipf.zeta - 1.0).abs() < 0.02, "{share}");
        let tenth = f64::from(counts[9]) / f64::from(counts[0]);
        assert!((0.08..0.13).contains(&tenth), "{tenth}");
    }
}
