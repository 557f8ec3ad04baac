//! Benchmarks, side by side with peers.

pub mod streams;
