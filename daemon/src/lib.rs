//! The daemon as a library: `boot()` wires store, engine, actors and socket. Knows nothing of tensors.
//!
//! Reading order: [`boot`] (start and stop), [`lock`], [`listen`], [`connection`], [`service`] (what each method does),
//! [`convert`] (wire types to domain types), [`tasks`], [`engine`], [`metrics`], [`logging`], [`systemd`], [`limits`], [`allocator`], [`restore`],
//! [`program`].

pub mod allocator;
pub mod boot;
pub mod connection;
pub mod convert;
pub mod engine;
pub mod limits;
pub mod listen;
pub mod lock;
pub mod logging;
pub mod metrics;
#[cfg(feature = "otel")]
mod otlp;
pub mod program;
pub mod restore;
mod scrape;
pub mod service;
pub mod systemd;
pub mod tasks;

pub use boot::{BootError, Daemon, boot};
