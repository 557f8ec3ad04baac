//! The trait behind which every store stands. One conformance suite runs on all of them; the in-memory one is the oracle.

use std::path::{Path, PathBuf};

use mneme_base::{ContentHash, Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, OpId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::domain::{ForgetReceipt, ForgetSelector, Memory, NewMemory, Recall, RecallQuery, RememberReceipt};
use crate::durable::options::StoreLimits;
use crate::transfer::ImportReport;

/// One change, named by its client so that sending it twice does it once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// The client's name for it.
    pub op_id: OpId,
    /// What to do.
    pub kind: OperationKind,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OperationKind {
    /// Remember something.
    Remember(NewMemory),
    /// Put something in the place of an older memory, which stays readable for `as_of`.
    Supersede {
        /// The older memory.
        id: MemoryId,
        /// What replaces it.
        by: NewMemory,
    },
    /// Make memories unrecallable at once, and unreadable on disk soon.
    Forget(ForgetSelector),
    /// Take a memory out of quarantine.
    Corroborate {
        /// The memory.
        id: MemoryId,
    },
    /// Write small rows for other parts of the daemon, in the same durable transaction.
    Documents(Vec<Document>),
}

impl OperationKind {
    /// Hash of the content, by which a repeated `op_id` is told from a conflicting one.
    pub fn content_hash(&self) -> ContentHash {
        ContentHash::of(&serde_json::to_vec(self).expect("operations are plain data and always serialise"))
    }
}

/// A small durable row of another part (evolution log, adapters, watched folders, feedback): the store does not look inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Which collection it belongs to, such as `evolution_log`.
    pub collection: String,
    /// Its key; rows are scanned in key order.
    pub key: String,
    /// Its content; `None` deletes the row.
    pub value: Option<Vec<u8>>,
}

/// What a change gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OperationResult {
    /// Remembered.
    Remembered(RememberReceipt),
    /// Superseded: the receipt of the new memory.
    Superseded(RememberReceipt),
    /// Forgotten.
    Forgotten(ForgetReceipt),
    /// Out of quarantine.
    Corroborated {
        /// The memory.
        id: MemoryId,
        /// The journal place.
        lsn: Lsn,
    },
    /// Rows written.
    Documents {
        /// The journal place.
        lsn: Lsn,
    },
}

/// The fate of one operation of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationOutcome {
    /// What it gave, or why it was refused. A refused operation changed nothing.
    pub result: Result<OperationResult, Refusal>,
    /// The same `op_id` had been carried out before; this is the stored result.
    pub replayed: bool,
}

/// Why one operation was refused: data, not a fault of the store.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The `op_id` was used before for something else.
    #[error("op_id {op_id} was already used for a different operation")]
    OpIdConflict {
        /// The id.
        op_id: OpId,
    },
    /// The memory does not exist (any more).
    #[error("memory {id} does not exist")]
    NotFound {
        /// Which.
        id: MemoryId,
    },
    /// The memory was already replaced.
    #[error("memory {id} was already superseded by {by}")]
    AlreadySuperseded {
        /// Which.
        id: MemoryId,
        /// Its replacement.
        by: MemoryId,
    },
    /// The disk is nearly full: what takes room is refused, before it can fail half way.
    #[error("store is read-only: {free_bytes} bytes are free on its disk, the watermark is {watermark_bytes}")]
    ReadOnly {
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        watermark_bytes: u64,
    },
    /// A field is out of its bounds.
    #[error("{field} {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// Value and bound.
        problem: String,
    },
    /// The source wrote more than it may.
    #[error("source {source_name:?} has written {written} memories in the last hour, its quota is {quota}")]
    QuotaExceeded {
        /// The source.
        source_name: String,
        /// What it wrote.
        written: u64,
        /// What it may.
        quota: u64,
        /// When it may write again (milliseconds from now).
        retry_after_ms: u64,
    },
}

/// A fault of the store: it can no longer promise anything. Refusals are not among them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The state engine failed to read or write. Writing again is never tried: the process has to exit and recover.
    #[error("state engine failed while it {doing}")]
    Io {
        /// What it was doing.
        doing: &'static str,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file on disk is not as it was written.
    #[error("{path} is damaged: {problem}")]
    Corrupt {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The store was written by a newer version.
    #[error("store at {path} has format {found}, this build reads up to {supported}")]
    FormatTooNew {
        /// Where.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// Another process holds the store.
    #[error("store at {path} is in use by another process")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The disk is nearly full, so that writes are refused before they can fail half way.
    #[error("store is read-only: {free_bytes} bytes are free on its disk, the watermark is {watermark_bytes}")]
    ReadOnly {
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        watermark_bytes: u64,
    },
    /// A rewrite of the files would fill the disk. It was not begun, or broken off; nothing was changed.
    #[error("files cannot be rewritten: {needed_bytes} bytes are needed for it, {free_bytes} are free on the disk")]
    NoRoom {
        /// What has to be free.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// A rewrite of the files failed before the new ones were in use, or could not remove the old ones. The store is well, and
    /// serves from complete files; the rewrite is tried again later.
    #[error("files were not rewritten")]
    NotRewritten {
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// An earlier fault closed the store.
    #[error("store is closed after an earlier fault: {reason}")]
    Closed {
        /// The first fault.
        reason: String,
    },
    /// A place that follows the store failed. The store itself is well; the place is tried again later.
    #[error("projection {name} failed")]
    Projection {
        /// Which.
        name: &'static str,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A query is out of its bounds.
    #[error("{field} {problem}")]
    InvalidQuery {
        /// Which field.
        field: &'static str,
        /// Value and bound.
        problem: String,
    },
}

/// A memory whose vector is missing or of an older generation.
#[derive(Clone, PartialEq, Debug)]
pub struct PendingEmbedding {
    /// Which memory.
    pub id: MemoryId,
    /// The texts to embed: the memory's own text, then the text with its context (speaker, date, neighbours).
    /// One vector per text is expected back, in this order.
    pub texts: Vec<String>,
}

/// A page of memories in id order, for export and re-embedding.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scan {
    /// Only this namespace.
    pub namespace: Option<Namespace>,
    /// Start after this id.
    pub after: Option<MemoryId>,
    /// At most this many.
    pub limit: usize,
}

/// Upkeep that the housekeeper asks for, each step on its own so that one failing does not stop the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MaintenanceTask {
    /// Make forgotten bytes unreadable in every file.
    Purge,
    /// Rewrite small or half-dead files.
    Compact,
    /// Bring indices up to the data.
    Index,
    /// Remove old versions and files that nothing refers to.
    Cleanup,
    /// Compare approximate with exact search on sampled queries.
    Audit,
    /// Bring what follows the store, such as a columnar copy, up to the last change.
    Follow,
}

/// What a maintenance step did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MaintenanceReport {
    /// Rows or files that were dealt with.
    pub items: u64,
    /// Bytes given back to the disk.
    pub bytes_freed: u64,
    /// A measured figure of the step, such as recall@10 of an audit.
    pub measure: Option<f64>,
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreHealth {
    /// All is well.
    #[default]
    Healthy,
    /// Answers, but not all of it works.
    Degraded {
        /// What does not.
        reason: String,
    },
    /// Refuses writes.
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// Refuses everything.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Counts and sizes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StoreStats {
    /// The name of the state engine: `memory`, `redb` or `sled`.
    pub engine: String,
    /// Memories that recall can return.
    pub memories: u64,
    /// Of these, in quarantine.
    pub quarantined: u64,
    /// Replaced ones that are kept for `as_of`.
    pub superseded: u64,
    /// Forgotten ones whose bytes are still on disk.
    pub purge_pending: u64,
    /// Memories without a vector of the current generation.
    pub embeddings_pending: u64,
    /// Memories per namespace.
    pub namespaces: Vec<(Namespace, u64)>,
    /// The last change.
    pub lsn: Lsn,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of the in-memory indices.
    pub index_bytes: u64,
    /// How the store is.
    pub health: StoreHealth,
}

/// A place that keeps memories.
///
/// All methods take `&self`: readers run beside one writer. [`MemoryStore::apply`] must be called from one thread at a time;
/// a store serialises callers that do not keep to it. No method panics on input; none waits longer than the disk makes it.
pub trait MemoryStore: Send + Sync + std::fmt::Debug {
    /// Carries out a batch, in order, in one atomic synced transaction (group commit).
    ///
    /// When it returns `Ok`, every accepted operation survives a power cut and is visible to reads. A refused operation
    /// leaves the others alone. `Err` means that none of the batch may be acknowledged and that the store is closed.
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError>;

    /// Returns one memory, forgotten ones excepted.
    fn get(&self, id: MemoryId) -> Result<Option<Memory>, StoreError>;

    /// The text that [`Self::recall`]'s embedding should be made of: the question as a sentence embedder understands it best, with
    /// the speakers that it names addressed.
    fn text_to_embed(&self, query: &RecallQuery) -> String;

    /// Answers a question. Without an embedding it answers from text and says so in `degraded`.
    fn recall(&self, query: &RecallQuery, embedding: Option<&Embedding>, now: Timestamp) -> Result<Recall, StoreError>;

    /// Returns a page of memories in id order.
    fn scan(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError>;

    /// Names the generation that vectors should have; vectors of another one become pending, and are used until replaced.
    fn set_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError>;

    /// Returns memories that still need a vector, oldest first.
    fn pending_embeddings(&self, limit: usize) -> Result<Vec<PendingEmbedding>, StoreError>;

    /// Stores vectors: for each memory one per text of its [`PendingEmbedding`]. Unknown or forgotten ids are skipped.
    fn store_embeddings(
        &self,
        generation: &EmbeddingGeneration,
        embeddings: Vec<(MemoryId, Vec<Embedding>)>,
    ) -> Result<(), StoreError>;

    /// Returns the vector of each memory's text alone, in the order of the ids; `None` where there is none (yet). Costs one read
    /// each.
    fn vectors(&self, ids: &[MemoryId]) -> Result<Vec<Option<Embedding>>, StoreError>;

    /// Takes in memories as they are: ids, times, chains and counts, but for the LSN. Each passes the write gate; one whose id or
    /// content is there already is left out. One atomic synced transaction: at most some thousand at once.
    fn import(&self, memories: Vec<Memory>) -> Result<ImportReport, StoreError>;

    /// Returns rows of a collection in key order, from `after` (exclusive), with keys that start with `prefix`.
    fn documents(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError>;

    /// Does one step of upkeep.
    fn maintain(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError>;

    /// Writes a consistent copy into an empty folder while the store is in use, and verifies it.
    fn backup(&self, folder: &Path) -> Result<MaintenanceReport, StoreError>;

    /// Puts other limits into force for what comes after.
    fn set_limits(&self, limits: StoreLimits);

    /// Counts and sizes: no scan, but sizes may be some seconds old.
    fn stats(&self) -> StoreStats;

    /// The last change. Free of charge.
    fn lsn(&self) -> Lsn {
        self.stats().lsn
    }
}
