//! Stores and retrieves memories. Knows nothing of actors, sockets, configuration or tensors.
//!
//! Reading order: [`domain`] (the nouns), [`store`] (the trait that every store passes the same conformance suite for), [`gate`]
//! (what may be written), [`oracle`] (the store in memory), [`state`] (where rows are durable), [`durable`] (the store that
//! lasts), [`recall`] over [`index`] (what answers questions), [`map`] (memories in a plane), [`transfer`] (export and import).

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod domain;
pub mod durable;
pub mod gate;
pub mod index;
pub mod map;
pub mod oracle;
pub mod recall;
pub mod state;
pub mod store;
pub mod transfer;

pub use domain::{
    ForgetReceipt, ForgetSelector, Hit, HitExplanation, Memory, MemoryKind, MemoryState, Metadata, NewMemory, Recall,
    RecallFilter, RecallQuery, RememberReceipt, Signal,
};
pub use durable::{DurableOptions, DurableStore, StoreLimits};
pub use oracle::InMemoryStore;
pub use recall::{HalfVectors, IndexOptions, RankedHit, RankedRecall, RecallIndex, context_texts};
pub use store::{
    Document, MaintenanceReport, MaintenanceTask, MemoryStore, Operation, OperationKind, OperationOutcome,
    OperationResult, PendingEmbedding, Refusal, Scan, StoreError, StoreHealth, StoreStats,
};
