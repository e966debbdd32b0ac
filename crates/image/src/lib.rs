//! From ranges of a virtual disk to places: raw and overlay.
