//! The io_uring store and the per-thread executor.
