//! How a durable store is opened.

use crate::gate::Quotas;
use crate::recall::{HalfVectors, IndexOptions};
use crate::state::EngineKind;

/// How long operation ids are remembered (ms): a client that resends later than this is doing something new.
const LEDGER_RETENTION_MS: i64 = 7 * 24 * 3_600 * 1_000;
/// At most this many operation ids are remembered, the oldest go first: some 100 MB of disk.
const LEDGER_ROWS_MAX: u64 = 1_000_000;

/// Settings of a [`crate::durable::DurableStore`].
#[derive(Debug, Clone, PartialEq)]
pub struct DurableOptions {
    /// The state engine of a new store; an existing one keeps its own.
    pub engine: EngineKind,
    /// Memory that the state engine may use as cache (bytes).
    pub engine_cache_bytes: usize,
    /// Memory that recently read memories may take (bytes of text).
    pub memory_cache_bytes: usize,
    /// How the recall index is built.
    pub index: IndexOptions,
    /// Writes per source and hour.
    pub quotas: Quotas,
    /// How long operation ids are remembered (ms).
    pub ledger_retention_ms: i64,
    /// How many operation ids are remembered at most.
    pub ledger_rows_max: u64,
    /// Writes other than forgets are refused when less than this is free on the disk (bytes).
    pub disk_watermark_bytes: u64,
    /// Memories from which on the recall index is kept as a file too, so that opening reads it; `None` for the usual number.
    pub index_file_rows_min: Option<usize>,
}

/// What a store that is open already can be told anew.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreLimits {
    /// Writes per source and hour.
    pub quotas: Quotas,
    /// How long operation ids are remembered (ms).
    pub ledger_retention_ms: i64,
    /// Writes other than forgets are refused when less than this is free on the disk (bytes).
    pub disk_watermark_bytes: u64,
}

impl DurableOptions {
    /// These options with other limits.
    #[must_use]
    pub fn limited(&self, limits: StoreLimits) -> Self {
        let StoreLimits { quotas, ledger_retention_ms, disk_watermark_bytes } = limits;
        Self { quotas, ledger_retention_ms, disk_watermark_bytes, ..self.clone() }
    }
}

impl Default for DurableOptions {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            engine_cache_bytes: 16 << 20,
            memory_cache_bytes: 16 << 20,
            // The rows hold exact vectors already: the index needs no copies.
            index: IndexOptions { half_vectors: HalfVectors::None, ..IndexOptions::default() },
            quotas: Quotas::default(),
            ledger_retention_ms: LEDGER_RETENTION_MS,
            ledger_rows_max: LEDGER_ROWS_MAX,
            disk_watermark_bytes: 256 << 20,
            index_file_rows_min: None,
        }
    }
}
