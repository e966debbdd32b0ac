//! See [`pollux_fuzz::vm_toml`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::vm_toml::run);
