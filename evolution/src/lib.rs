//! Pure policy of the self-evolution loop: triggers, levels, gates, registry, state machine.
pub mod context;
pub mod data;
pub mod eprocess;
pub mod gate;
pub mod random;
pub mod stats;
pub mod trigger;
