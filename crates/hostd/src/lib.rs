//! polluxd: wiring, jobs, supervision, the management API.
