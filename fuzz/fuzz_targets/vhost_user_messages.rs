//! See [`pollux_fuzz::vhost_user`].
#![cfg_attr(fuzzing, no_main)]

pollux_fuzz::target!(pollux_fuzz::vhost_user::messages);
