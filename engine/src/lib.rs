//! Networks, inference and training on libtorch: the engine that `mneme-engine` serves. Knows nothing of clients, of the
//! memory store or of actors.
//!
//! Reading order: [`runtime`] and [`assets`] (where it runs and what it loads), [`nn`] and [`load`] (the networks),
//! [`embedder`], [`generator`], [`generate`], [`score`], [`adapter_file`], [`train`], [`engine`] (all of it behind the daemon's
//! trait), [`evaluate`].

pub mod adapter_file;
pub mod assets;
pub mod embedder;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod generator;
pub mod load;
pub mod nn;
pub mod runtime;
pub mod score;
pub mod train;

pub use engine::ArrowEngine;
pub use error::ModelError;

/// What the engine calls itself.
pub const NAME: &str = concat!("mneme-engine ", env!("CARGO_PKG_VERSION"));
