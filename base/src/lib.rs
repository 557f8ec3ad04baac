//! The nouns that every part of Mneme speaks. Knows nothing of storage, sockets, actors or tensors.
//!
//! ```
//! use mneme_base::{MemoryId, Namespace, Timestamp};
//! let namespace: Namespace = "work/notes".parse().unwrap();
//! let id = MemoryId::generate(Timestamp::from_millis(1_700_000_000_000));
//! assert_eq!(namespace.as_str(), "work/notes");
//! assert_eq!(id, id.to_string().parse().unwrap());
//! ```
//!
//! Reading order: [`id`], [`time`], [`namespace`], [`provenance`], [`embedding`].

pub mod embedding;
pub mod id;
pub mod namespace;
pub mod provenance;
#[cfg(feature = "schema")]
mod schema;
pub mod time;

pub use embedding::{Embedding, EmbeddingError, EmbeddingGeneration, Score};
pub use id::{AdapterId, BootId, ContentHash, IdError, Lsn, MemoryId, OpId, TaskId};
pub use namespace::{Namespace, NamespaceError};
pub use provenance::{Provenance, SourceLocation, TrustTier};
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
