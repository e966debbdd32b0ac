//! pollux: commands and their output.
