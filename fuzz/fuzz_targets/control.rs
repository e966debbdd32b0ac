//! See [`pollux_fuzz::control`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::control::run);
