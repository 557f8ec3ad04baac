//! mnemed: the daemon.
