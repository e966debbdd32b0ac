//! See [`pollux_fuzz::overlay_map`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::overlay_map::run);
