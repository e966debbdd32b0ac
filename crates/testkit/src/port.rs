//! Ports that a test keeps for itself.

use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below what Linux gives to whoever asks for any port (`net.ipv4.ip_local_port_range`, from 32768 on), so that
/// no connection takes one while its host is down.
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;
/// To a process, before the next one's begin.
const OF_ONE: u32 = 64;

/// A free port of loopback. No other call of this process returns it, nor of one that was started shortly before
/// or after it, as the tests of one run are.
///
/// # Panics
/// None is free.
#[must_use]
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    (0..COUNT)
        .map(|_| {
            let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
            let nth = process::id().wrapping_mul(OF_ONE).wrapping_add(taken);
            u16::try_from(FIRST + nth % COUNT).expect("below 32768")
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a port is free")
}
