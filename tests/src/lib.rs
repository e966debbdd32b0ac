//! Whole-system tests with real guests, the demo, and their harness.
