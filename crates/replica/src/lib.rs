//! The replication state machines and their thin drivers.
