//! HTTP types of the management API and its client.
