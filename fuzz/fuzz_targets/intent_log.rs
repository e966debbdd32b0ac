//! See [`pollux_fuzz::intent_log`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::intent_log::run);
