//! For tests only: power-cut store, injected network, guest builder.

mod folder;

pub use folder::CutFolder;
