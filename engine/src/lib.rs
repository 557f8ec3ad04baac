//! Networks, inference and training on libtorch: the engine that `mneme-engine` serves. Knows nothing of clients, of the
//! memory store or of actors.
//!
//! Reading order: [`runtime`] and [`assets`] (where it runs and what it loads), [`load`], [`nn`] (the networks), [`embedder`].

pub mod assets;
pub mod error;
pub mod load;
pub mod nn;
pub mod runtime;

pub use error::ModelError;
