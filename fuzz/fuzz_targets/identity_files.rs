//! See [`pollux_fuzz::certificates`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::certificates::files);
