//! See [`pollux_fuzz::peer_json`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::peer_json::run);
