//! See [`pollux_fuzz::receiver`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::receiver::run);
