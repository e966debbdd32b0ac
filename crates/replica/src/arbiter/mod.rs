//! The model check of who may run: every interleaving of two hosts, a network, their clocks and
//! the people at them, within bounds, over the functions that polluxd runs on.
//!
//! ```text
//!   people: start, stop, failover, --force, remove, restore ----+
//!                                                                v
//!   host-a  {standing, progress, reserved}  <-- network -->  host-b  {standing, journal}
//!            guest, grant, clock                                     guest, promise, clock
//! ```
//!
//! A message that was sent can be delivered at any later time, any number of times, in any order,
//! or never: that is the network, partitions included. Hosts and their polluxd crash: what is not
//! durable is lost. Clocks drift within the bound. The rules are [`rule::Rule`]s; the search must
//! find a history that breaks a promise when any one of them is switched off.
//!
//! - [`pair`]: the state, and what each host has on disk, in memory and nowhere.
//! - [`step`]: what may happen, and what must never be seen.
//! - [`points`], [`time`]: the steps of recovery points, and of clocks and leases.
//! - [`ways`]: from every state, the commands that refusals name lead to one host that runs.

mod pair;
mod points;
mod rule;
mod step;
mod tests;
mod time;
mod ways;
