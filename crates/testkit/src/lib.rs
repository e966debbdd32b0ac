//! For tests only: power-cut store, injected network, guest builder.
