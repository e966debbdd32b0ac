//! For tests only: power-cut store and folder, a seeded executor, conformance suites.

pub mod bank;
pub mod guest;
pub mod workload;

mod conformance;
mod folder;
mod history;
#[cfg(test)]
mod image;
mod lives;
mod port;
mod rng;
mod room;
mod schedule;
mod store;

pub use conformance::{
    crooked, device_conformance, image_conformance, join, power_cut_conformance,
    read_only_conformance, ready, store_conformance,
};
pub use folder::CutFolder;
pub use history::History;
pub use lives::{World, finish, lives, seeds};
pub use port::free_port;
pub use rng::Rng;
pub use room::{SmallDisk, in_own_mounts, may_mount};
pub use schedule::Schedule;
pub use store::PowerCutStore;
