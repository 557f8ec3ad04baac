//! The state engine in memory: for tests and for stores that need not survive the process.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use crate::state::engine::Engine;
use crate::state::redb_engine::RedbBackend;
use crate::state::{EngineKind, StateEngine, Table, Visit, WriteBatch};
use crate::store::StoreError;

/// The rows of a table.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows in sorted maps.
#[derive(Default)]
pub struct RamEngine {
    tables: RwLock<BTreeMap<Table, Rows>>,
}

impl fmt::Debug for RamEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamEngine").finish_non_exhaustive()
    }
}

impl StateEngine for RamEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Memory
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Ok(tables.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if crate::state::engine::is_empty_range(from, to) {
            return Ok(());
        }
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = tables.get(&table) {
            for (key, value) in rows.range::<[u8], _>((from, to)) {
                if let ControlFlow::Break(()) = visit(key, value) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for (table, key, value) in batch.iter() {
            let rows = tables.entry(table).or_default();
            match value {
                Some(value) => rows.insert(key.to_vec(), value.to_vec()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn rewrite(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// The copy is a store of the default disk engine: a copy in memory would be of no use.
    fn copy_to(&self, folder: &Path) -> Result<u64, StoreError> {
        let copy = Engine::<RedbBackend>::create_empty(folder)?;
        let mut batch = WriteBatch::default();
        {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            for (table, rows) in tables.iter() {
                for (key, value) in rows {
                    batch.put(*table, key.clone(), value.clone());
                }
            }
        }
        copy.commit(&batch)?;
        Ok(batch.len() as u64)
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn fault(&self) -> Option<String> {
        None
    }
}
