//! Pure policy of the self-evolution loop: when to adapt, what to train on, what to accept, what to serve, what to undo.
//! Knows nothing of actors, files, sockets, tensors or clocks: time is an argument, randomness comes from a seed.
//!
//! ```
//! use mneme_base::Timestamp;
//! use mneme_evolution::machine::{Action, Event, Evolution};
//! use mneme_evolution::policy::Policy;
//!
//! let mut evolution = Evolution::new(Policy::default());
//! let base_hash = mneme_base::ContentHash::of(b"base weights");
//! let now = Timestamp::from_millis(1_700_000_000_000);
//! let actions = evolution.handle(Event::Engine { base_hash, trains: vec![] }, now);
//! // Every decision is a row, journaled before its effect; the rows alone rebuild the machine.
//! let rows = actions.into_iter().filter_map(|action| match action {
//!     Action::Journal(row) => Some(*row),
//!     _ => None,
//! });
//! let restored = Evolution::restore(Policy::default(), rows, None).unwrap();
//! assert_eq!(restored.state(), evolution.state());
//! ```
//!
//! Reading order: [`machine`], [`policy`], [`trigger`], [`context`], [`data`], [`gate`], [`router`], [`registry`],
//! [`portable`], [`eprocess`], [`stats`], [`random`]; for the evidence: [`ppm`], [`prequential`].

pub mod context;
pub mod data;
pub mod eprocess;
pub mod gate;
pub mod machine;
pub mod policy;
pub mod portable;
pub mod ppm;
pub mod prequential;
pub mod random;
pub mod registry;
pub mod router;
pub mod stats;
pub mod trigger;
