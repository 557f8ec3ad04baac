//! A state engine that fails, waits and counts when it is told to.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use mneme_memory::StoreError;
use mneme_memory::state::{EngineKind, RamEngine, StateEngine, Table, Visit, WriteBatch};

use crate::support::HANG;

/// An engine that fails when it is told to.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    pub(crate) rows: RamEngine,
    pub(crate) broken: AtomicBool,
    pub(crate) fault: Mutex<Option<String>>,
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) scans: AtomicU64,
    pub(crate) pause: Mutex<Option<Pause>>,
}

/// Makes the next read of a memory tell that it has begun, and wait until it may go on.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) begun: SyncSender<()>,
    pub(crate) go_on: Receiver<()>,
    pub(crate) waited_in_vain: Arc<AtomicBool>,
}

impl StateEngine for Failing {
    fn kind(&self) -> EngineKind {
        EngineKind::Memory
    }
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let pause = if table == Table::Memory { self.pause.lock().unwrap().take() } else { None };
        if let Some(Pause { begun, go_on, waited_in_vain }) = pause {
            begun.send(()).unwrap();
            waited_in_vain.store(go_on.recv_timeout(HANG).is_err(), Ordering::SeqCst);
        }
        self.rows.get(table, key)
    }
    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        self.scans.fetch_add(1, Ordering::SeqCst);
        self.rows.scan(table, from, to, visit)
    }
    fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        if self.broken.load(Ordering::SeqCst) {
            *self.fault.lock().unwrap() = Some("the disk is gone".into());
            return Err(StoreError::Io { doing: "wrote a batch", source: "the disk is gone".into() });
        }
        self.rows.commit(batch)
    }
    fn rewrite(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
    fn copy_to(&self, folder: &Path) -> Result<u64, StoreError> {
        self.rows.copy_to(folder)
    }
    fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::SeqCst)
    }
    fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap().clone()
    }
}
