//! See [`pollux_fuzz::journal_index`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::journal_index::run);
