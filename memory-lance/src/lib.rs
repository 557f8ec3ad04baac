//! ArrowStorage: the store as Lance datasets, for scale beyond one machine's memory and for readers of the Lance ecosystem.
//! Knows the store's projection trait and nothing of sockets, actors or settings.
//!
//! The journal is the truth and this is a copy that can be made anew. [`LanceProjection`] follows the store: it applies changes by
//! key, syncs them, and only then moves its checkpoint. It runs on any URI that Lance can write: a folder, or an object store by
//! cargo feature (`s3`, `gcs`, `azure`).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use mneme_memory::{DurableOptions, DurableStore, MaintenanceTask, MemoryStore};
//! # use mneme_memory_lance::{LanceOptions, LanceProjection};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = DurableStore::open("memory".as_ref(), DurableOptions::default())?;
//! store.attach(Arc::new(LanceProjection::open("memory/lance", LanceOptions::default())?))?;
//! store.project()?;
//! # Ok(())
//! # }
//! ```
//! Reading order: [`schema`] (the tables), [`rows`] (memories as columns and back), [`shared`] (options and errors), [`storage`] (one
//! table), [`repair`] (a damaged head), `sync` (what Lance does not do), `upkeep`, [`projection`], [`parquet`].

pub mod parquet;
pub mod projection;
pub mod repair;
pub mod rows;
pub mod schema;
pub mod shared;
pub mod storage;
mod sync;
mod upkeep;

pub use projection::LanceProjection;
pub use shared::{LanceOptions, StorageError, StorageReport, TableVersion};
pub use storage::ArrowStorage;
