//! polluxd: wiring, supervision, the management API.
//!
//! ```text
//!   pollux --HTTP, Unix socket--> http ----> host ---> vm: one owner task each
//!                                              |          |-- vmd's control socket
//!   other polluxds --HTTPS--> replica -------->|          |-- QMP
//! ```
//!
//! - [`layout`]: where everything lies. The folders are the truth; the lists in memory are made
//!   from them.
//! - [`host`]: one host and the VMs on it.
//! - `vm`: the folder of a VM, the pure rules between its states, the owner task, its processes.
//! - [`http`]: the API; crate `api` has its types.
//!
//! polluxd may be killed at any instant: guests, diskds and vmds run on, and the next polluxd
//! adopts them. What must outlive it is written durably before anything rests on it.

mod certificates;
mod clock;
#[cfg(test)]
mod documented_tests;
mod endpoint;
mod event;
mod filling;
mod flushes;
mod former;
mod health;
pub mod host;
pub mod http;
pub mod layout;
mod lines;
mod measure;
mod memory;
mod metrics;
mod partner;
mod programs;
mod receive;
mod serve;
mod server;
mod settings;
mod stamps;
mod stores;
mod twin;
mod vm;

pub use measure::Monitoring;
pub use serve::{Options, serve};
pub use settings::Settings;
