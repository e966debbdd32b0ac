//! For tests only: power-cut store and folder, a seeded executor, conformance suites.

pub mod guest;
pub mod workload;

mod conformance;
mod folder;
mod rng;
mod schedule;
mod store;

pub use conformance::{
    device_conformance, image_conformance, join, power_cut_conformance, ready, store_conformance,
};
pub use folder::CutFolder;
pub use rng::Rng;
pub use schedule::Schedule;
pub use store::PowerCutStore;
