//! One program for all tests of this folder: linking Lance costs more than running most of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

#[path = "../../../memory/src/bin/mneme-torture/disk.rs"]
mod disk;
mod faults;
mod follower;
mod parquet;
mod power;
mod support;
