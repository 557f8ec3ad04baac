//! The `sled` engine (1.0.0-alpha.124): one tree, keys prefixed by the table's number, because only a batch on one tree is
//! atomic. A commit is the batch and then a flush of the epoch it fell into.

use std::mem::ManuallyDrop;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::state::engine::{Backend, BackendError, Syncing};
use crate::state::{EngineKind, Table, Visit, WriteBatch};

/// Rows per leaf, fixed at creation. A commit writes every leaf it touches as a whole, and a row can be some kilobytes
/// (text, vectors): few rows per leaf keep a small commit small.
const LEAF_ROWS: usize = 32;
/// The light end of zstd's scale: leaves are compressed on every commit.
const COMPRESSION_LEVEL: i32 = 1;
/// Without an interval every drop of an iterator would flush, because iterators own a tree handle and a tree flushes when
/// it is dropped. So the background flush is kept, at an interval that never comes (ms).
const BACKGROUND_FLUSH_INTERVAL_MS: usize = 365 * 24 * 3_600 * 1_000;

/// A handle can move between threads but not be shared by them, so that every call borrows one from a pool; there are as many
/// as calls ever ran at once.
pub(crate) struct SledBackend {
    origin: Mutex<sled::Db<LEAF_ROWS>>,
    idle: Mutex<Vec<sled::Db<LEAF_ROWS>>>,
}

impl SledBackend {
    fn with_handle<T>(
        &self,
        call: impl FnOnce(&sled::Db<LEAF_ROWS>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let handle = idle.unwrap_or_else(|| self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone());
        // Leaked if the call panics: see `abandon`.
        let handle = ManuallyDrop::new(handle);
        let result = call(&handle);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(ManuallyDrop::into_inner(handle));
        result
    }
}

fn prefixed(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table as u8);
    full.extend_from_slice(key);
    full
}

impl Backend for SledBackend {
    const KIND: EngineKind = EngineKind::Sled;

    fn open(folder: &Path, cache_bytes: usize) -> Result<Self, BackendError> {
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity_bytes(cache_bytes)
            .flush_every_ms(Some(BACKGROUND_FLUSH_INTERVAL_MS))
            .zstd_compression_level(COMPRESSION_LEVEL);
        Ok(Self { origin: Mutex::new(config.open::<LEAF_ROWS>()?), idle: Mutex::default() })
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.with_handle(|db| Ok(db.get(prefixed(table, key))?.map(|value| value.to_vec())))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError> {
        let from = match from {
            Bound::Included(key) => Bound::Included(prefixed(table, key)),
            Bound::Excluded(key) => Bound::Excluded(prefixed(table, key)),
            Bound::Unbounded => Bound::Included(vec![table as u8]),
        };
        let to = match to {
            Bound::Included(key) => Bound::Included(prefixed(table, key)),
            Bound::Excluded(key) => Bound::Excluded(prefixed(table, key)),
            Bound::Unbounded => Bound::Excluded(vec![table as u8 + 1]),
        };
        self.with_handle(|db| {
            for row in db.range::<Vec<u8>, _>((from, to)) {
                let (key, value) = row?;
                let key = key.get(1..).ok_or("row without a table number")?;
                if let ControlFlow::Break(()) = visit(key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn commit(&self, batch: &WriteBatch, syncing: Syncing) -> Result<(), BackendError> {
        let mut rows = sled::Batch::default();
        for (table, key, value) in batch.iter() {
            match value {
                Some(value) => rows.insert(prefixed(table, key), value),
                None => rows.remove(prefixed(table, key)),
            }
        }
        self.with_handle(|db| {
            db.apply_batch(rows)?;
            if syncing == Syncing::Now {
                db.flush()?;
            }
            Ok(())
        })
    }

    fn close(self) {
        drop(self);
    }

    /// Dropping a `Db` after a failed write waits for ever for its flush thread, or aborts the process: so it is leaked, with
    /// the threads and file handles that it holds. The process is to exit soon anyway.
    fn abandon(self) {
        let _leaked = ManuallyDrop::new(self);
    }
}
