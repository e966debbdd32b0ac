//! What a process of a VM may do, and no more.

mod rights;

pub use rights::Rights;
