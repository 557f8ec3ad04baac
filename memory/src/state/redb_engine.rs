//! The `redb` engine: a copy-on-write B-tree in one file, one named table per [`Table`].

use std::ops::{Bound, ControlFlow};
use std::path::Path;

use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition, TableError};

use crate::state::engine::{Backend, BackendError, Syncing};
use crate::state::{EngineKind, Table, Visit, WriteBatch};

/// The one file of the engine.
pub(crate) const FILE: &str = "state.redb";

const fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

pub(crate) struct RedbBackend(Database);

impl Backend for RedbBackend {
    const KIND: EngineKind = EngineKind::Redb;

    fn open(folder: &Path, cache_bytes: usize) -> Result<Self, BackendError> {
        Ok(Self(Builder::new().set_cache_size(cache_bytes).create(folder.join(FILE))?))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        match self.0.begin_read()?.open_table(definition(table)) {
            Ok(rows) => Ok(rows.get(key)?.map(|value| value.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn get_many(&self, table: Table, keys: &[&[u8]], visit: &mut dyn FnMut(usize, &[u8])) -> Result<(), BackendError> {
        let rows = match self.0.begin_read()?.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for (at, key) in keys.iter().enumerate() {
            if let Some(value) = rows.get(key)? {
                visit(at, value.value());
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError> {
        let rows = match self.0.begin_read()?.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for row in rows.range::<&[u8]>((from, to))? {
            let (key, value) = row?;
            if let ControlFlow::Break(()) = visit(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: &WriteBatch, syncing: Syncing) -> Result<(), BackendError> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(match syncing {
            Syncing::Now => Durability::Immediate,
            Syncing::Later => Durability::None,
        })?;
        let mut open = None;
        for (table, key, value) in batch.iter() {
            // Batches come in table order, so that each table is opened once.
            if open.as_ref().is_none_or(|(current, _)| *current != table) {
                drop(open.take());
                open = Some((table, transaction.open_table(definition(table))?));
            }
            if let Some((_, rows)) = &mut open {
                match value {
                    Some(value) => rows.insert(key, value)?,
                    None => rows.remove(key)?,
                };
            }
        }
        drop(open);
        transaction.commit()?;
        Ok(())
    }

    fn close(self) {
        drop(self);
    }

    /// A failed `redb` database refuses further work on its own and its drop does not wait for the disk.
    fn abandon(self) {
        drop(self);
    }
}
