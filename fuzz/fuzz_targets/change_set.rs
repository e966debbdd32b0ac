//! See [`pollux_fuzz::change_set`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::change_set::run);
