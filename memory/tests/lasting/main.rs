//! What the durable store promises beyond the suite, by subject. One program: linking costs more than running.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod failing;
mod faults;
mod following;
mod forgetting;
mod format;
mod support;
mod upkeep;
