//! See [`pollux_fuzz::journal_run`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::journal_run::run);
