//! Files that are replaced atomically and locked exclusively.
