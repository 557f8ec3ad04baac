//! The state engine: where every durable row lives. One trait, three engines (`redb`, `sled`, memory), one conformance suite.
//!
//! A state engine is a handful of named tables of byte rows with one atomic synced write: [`StateEngine::commit`]. Everything
//! that has to survive together (memory row, idempotency row, queue row, journal row) goes into one [`WriteBatch`].
//!
//! **After the first fault an engine refuses everything** with [`StoreError::Closed`]: a failed write or fsync leaves
//! unknown bytes behind, and the kernel forgets the dirty pages it could not write, so that trying again would report a
//! success that is none. The process has to exit and recover from what is on disk.
//!
//! Reading order: this file (trait, tables, batch), [`folder`] (what lies on disk, generations), [`engine`] (closing,
//! rewriting, copying: the same for both disk engines), then the engines themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::store::StoreError;

pub mod conformance;
pub(crate) mod engine;
pub(crate) mod folder;
mod ram;
mod redb_engine;
mod sled_engine;

pub use ram::RamEngine;

/// The format of the rows and of the folder that this build writes.
pub const FORMAT: u32 = 1;

/// Which state engine holds a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EngineKind {
    /// Rows in a map: nothing survives the process.
    Memory,
    /// A copy-on-write B-tree in one file. The default: see `docs/benchmarks/durability.md`.
    #[default]
    Redb,
    /// A log-structured heap with a metadata log (1.0 alpha, pinned).
    Sled,
}

impl EngineKind {
    /// Its name in configuration and on disk.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Sled => "sled",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("state engine {0:?} is not one of redb, sled, memory")]
pub struct UnknownEngine(String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;
    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "redb" => Ok(Self::Redb),
            "sled" => Ok(Self::Sled),
            "memory" => Ok(Self::Memory),
            other => Err(UnknownEngine(other.chars().take(32).collect())),
        }
    }
}

/// The tables. The numbers are on disk: they are never given a second meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Table {
    /// Counters, settings, checkpoints, by name.
    Meta = 1,
    /// What changed, by LSN: for projections.
    Journal = 2,
    /// What each operation gave, by `op_id`: idempotency.
    Ledger = 3,
    /// The ledger by time, for its expiry.
    LedgerTime = 4,
    /// The memories, by id.
    Memory = 5,
    /// The vectors, by memory id.
    Embedding = 6,
    /// Secondary keys: by content hash, namespace, source, thread.
    Index = 7,
    /// The queue of memories that need vectors, by id.
    Pending = 8,
    /// Rows of other parts of the daemon, by collection and key.
    Document = 9,
    /// Writes per source and time, for quotas.
    Usage = 10,
    /// Forgotten memories whose bytes are still in the files, by id.
    Purge = 11,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Meta,
        Self::Journal,
        Self::Ledger,
        Self::LedgerTime,
        Self::Memory,
        Self::Embedding,
        Self::Index,
        Self::Pending,
        Self::Document,
        Self::Usage,
        Self::Purge,
    ];

    /// Its name on disk, for engines that have named tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Journal => "journal",
            Self::Ledger => "ledger",
            Self::LedgerTime => "ledger_time",
            Self::Memory => "memory",
            Self::Embedding => "embedding",
            Self::Index => "index",
            Self::Pending => "pending",
            Self::Document => "document",
            Self::Usage => "usage",
            Self::Purge => "purge",
        }
    }
}

/// Rows to write together. A later change of the same row replaces an earlier one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    changes: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
}

impl WriteBatch {
    /// Puts a row.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.insert((table, key.into()), Some(value.into()));
    }

    /// Deletes a row; one that is not there is fine.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.insert((table, key.into()), None);
    }

    /// What this batch makes of a row: `None` when it leaves it alone, `Some(None)` when it deletes it.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        // A borrowed pair cannot look up an owned one in a BTreeMap, so the key is copied: short, and only on the write path.
        self.changes.get(&(table, key.to_vec())).map(Option::as_deref)
    }

    /// The changes in table and key order.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], Option<&[u8]>)> {
        self.changes.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_deref()))
    }

    /// How many rows it changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

// Rows hold the content of memories, which never reaches a log.
impl fmt::Debug for WriteBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBatch").field("rows", &self.changes.len()).finish()
    }
}

/// Takes rows of a scan; [`ControlFlow::Break`] ends it. **It must not call the engine**: a rewrite that waits for the
/// scan to end would wait for ever.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Named tables of byte rows with one atomic synced write.
///
/// Readers run beside one writer. Rows come back in the byte order of their keys.
pub trait StateEngine: Send + Sync + fmt::Debug {
    /// Which engine it is.
    fn kind(&self) -> EngineKind;

    /// Returns a row.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits those of some rows that exist, with their places in `keys`.
    fn get_many(&self, table: Table, keys: &[&[u8]], visit: &mut dyn FnMut(usize, &[u8])) -> Result<(), StoreError> {
        for (at, key) in keys.iter().enumerate() {
            if let Some(value) = self.get(table, key)? {
                visit(at, &value);
            }
        }
        Ok(())
    }

    /// Visits the rows between two keys, in key order.
    fn scan(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, visit: &mut Visit<'_>)
    -> Result<(), StoreError>;

    /// Writes a batch: all of it or nothing, on disk (fsync) when it returns `Ok`. An `Err` closes the engine.
    fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError>;

    /// Rewrites every live row into fresh files and removes the old ones, so that no deleted byte is left in any file.
    /// Writers are held up only for the rows that changed meanwhile. Returns the bytes given back to the disk.
    ///
    /// [`StoreError::NoRoom`] and [`StoreError::NotRewritten`] leave the engine open: it goes on with complete files.
    fn rewrite(&self) -> Result<u64, StoreError>;

    /// Writes a consistent copy of every row into an empty folder, synced. Returns the rows copied.
    fn copy_to(&self, folder: &Path) -> Result<u64, StoreError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// The first fault, if there was one: the engine is closed then.
    fn fault(&self) -> Option<String>;
}

/// Opens the engine that lies in a folder, or makes one of `kind` in an empty or missing folder.
///
/// An existing store keeps the engine it was made with; `kind` only decides for a new one.
pub fn open_engine(folder: &Path, kind: EngineKind, cache_bytes: usize) -> Result<Arc<dyn StateEngine>, StoreError> {
    let found = folder::engine_of(folder)?.unwrap_or(kind);
    if found != kind {
        tracing::warn!(configured = %kind, found = %found, "store keeps the state engine that it was made with");
    }
    Ok(match found {
        EngineKind::Memory => Arc::new(RamEngine::default()),
        EngineKind::Redb => Arc::new(engine::Engine::<redb_engine::RedbBackend>::open(folder, cache_bytes)?),
        EngineKind::Sled => Arc::new(engine::Engine::<sled_engine::SledBackend>::open(folder, cache_bytes)?),
    })
}

/// Visits the rows of a table whose keys start with `prefix`.
pub fn scan_prefix(
    engine: &dyn StateEngine,
    table: Table,
    prefix: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let end = prefix_end(prefix);
    let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    engine.scan(table, Bound::Included(prefix), to, visit)
}

/// The first key after all those that start with `prefix`; `None` when there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_after_all_that_start_with_it() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255]), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn a_later_change_of_a_row_replaces_an_earlier_one() {
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, *b"k", *b"1");
        batch.delete(Table::Meta, *b"k");
        assert_eq!(batch.get(Table::Meta, b"k"), Some(None));
        assert_eq!(batch.len(), 1);
    }

    #[test]
    fn table_names_and_numbers_are_distinct() {
        let names: std::collections::BTreeSet<_> = Table::ALL.iter().map(|table| table.name()).collect();
        let numbers: std::collections::BTreeSet<_> = Table::ALL.iter().map(|table| *table as u8).collect();
        assert_eq!((names.len(), numbers.len()), (Table::ALL.len(), Table::ALL.len()));
    }
}
