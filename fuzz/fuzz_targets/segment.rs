//! See [`pollux_fuzz::segment`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::segment::run);
