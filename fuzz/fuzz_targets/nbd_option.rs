//! See [`pollux_fuzz::nbd`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::nbd::option);
