//! What both disk engines share: closing after a fault, rewriting into fresh files, copying.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::state::folder::{self, Current};
use crate::state::{EngineKind, FORMAT, StateEngine, Table, Visit, WriteBatch};
use crate::store::StoreError;

/// What a backend failed with.
pub(crate) type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Rows that a rewrite or copy moves in one unsynced batch: bounds its memory (rows are at most some 100 KiB).
const COPY_ROWS: usize = 2_000;
/// Bytes that a rewrite or copy moves in one unsynced batch.
const COPY_BYTES: usize = 8 << 20;
/// A rewrite or copy is broken off when less than this is left on the disk (bytes): what is committed meanwhile must not be what
/// meets the full disk.
const FREE_BYTES_MIN: u64 = 32 << 20;
/// The cache of a backend that is only written to (bytes).
const COPY_CACHE_BYTES: usize = 32 << 20;

/// When a commit has to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syncing {
    /// When it returns.
    Now,
    /// With the next synced commit: only for files that nothing refers to yet.
    Later,
}

/// One storage library. It need not survive a fault: [`Engine`] calls nothing but `abandon` after one.
pub(crate) trait Backend: Sized + Send + Sync + 'static {
    const KIND: EngineKind;

    fn open(folder: &Path, cache_bytes: usize) -> Result<Self, BackendError>;
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError>;
    fn get_many(&self, table: Table, keys: &[&[u8]], visit: &mut dyn FnMut(usize, &[u8])) -> Result<(), BackendError> {
        for (at, key) in keys.iter().enumerate() {
            if let Some(value) = self.get(table, key)? {
                visit(at, &value);
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
    ) -> Result<(), BackendError>;
    fn commit(&self, batch: &WriteBatch, syncing: Syncing) -> Result<(), BackendError>;
    /// Closes in good order.
    fn close(self);
    /// Gives up after a fault, without waiting for anything.
    fn abandon(self);
}

/// Some maps panic on a range that ends before it starts; such a range has no rows.
pub(crate) fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
    }
}

/// The files in use.
struct Live<B: Backend> {
    /// `None` only after a fault during a swap.
    backend: Option<B>,
    generation: u64,
}

/// Rows that changed while a rewrite copies; `None` when none is under way.
type Dirty = Option<BTreeSet<(Table, Vec<u8>)>>;

/// A disk engine over a backend.
pub(crate) struct Engine<B: Backend> {
    folder: PathBuf,
    cache_bytes: usize,
    live: RwLock<Live<B>>,
    /// Held for a commit, and for the last step of a rewrite or copy.
    writer: Mutex<Dirty>,
    /// Held for a whole rewrite or copy: one at a time.
    copying: Mutex<()>,
    fault: OnceLock<String>,
    /// Leaked with the backend after a fault: its threads may still hold the files.
    lock: Option<File>,
}

impl<B: Backend> fmt::Debug for Engine<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("kind", &B::KIND).field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A failure that left the store as it was: it is told, and no reason to close.
fn not_rewritten(error: StoreError) -> StoreError {
    match error {
        error @ (StoreError::Closed { .. } | StoreError::NoRoom { .. }) => error,
        error => StoreError::NotRewritten { source: Box::new(error) },
    }
}

/// Whether so many bytes can be written and [`FREE_BYTES_MIN`] stay free.
fn check_room(folder: &Path, bytes: u64) -> Result<(), StoreError> {
    let needed_bytes = bytes.saturating_add(FREE_BYTES_MIN);
    match folder::free_bytes(folder) {
        Some(free_bytes) if free_bytes < needed_bytes => Err(StoreError::NoRoom { needed_bytes, free_bytes }),
        _ => Ok(()),
    }
}

/// Runs a call into a storage library. Some of them panic on damaged files; a panic is a fault like any other.
fn guarded<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("without a message")).into())
    })
}

impl<B: Backend> Engine<B> {
    /// Opens the current generation of a folder, or makes the first one.
    pub(crate) fn open(folder: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        fs_err::create_dir_all(folder).map_err(|error| folder::io_error("created its folder", error))?;
        let lock = folder::lock(folder)?;
        let current = folder::find_current(folder)?;
        if current.is_none() {
            folder::making(folder)?;
        }
        folder::remove_leftovers(folder, current.map(|current| current.generation))?;
        let generation = current.map_or(1, |current| current.generation);
        let backend = Self::open_generation(folder, generation, cache_bytes)?;
        // A new store, or one that has lost the name of its files: what has opened well gets it.
        if !folder::is_named(folder) {
            Self::sync_generation(folder, generation)?;
            Self::publish(folder, generation)?;
        }
        folder::made(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            cache_bytes,
            live: RwLock::new(Live { backend: Some(backend), generation }),
            writer: Mutex::new(None),
            copying: Mutex::new(()),
            fault: OnceLock::new(),
            lock: Some(lock),
        })
    }

    /// Makes an engine in a folder that has to be empty or missing.
    pub(crate) fn create_empty(folder: &Path) -> Result<Self, StoreError> {
        fs_err::create_dir_all(folder).map_err(|error| folder::io_error("created its folder", error))?;
        let mut entries = fs_err::read_dir(folder).map_err(|error| folder::io_error("looked into a folder", error))?;
        if entries.next().is_some() {
            let error = std::io::Error::new(
                std::io::ErrorKind::DirectoryNotEmpty,
                format!("{} is not empty", folder.display()),
            );
            return Err(folder::io_error("made a copy", error));
        }
        Self::open(folder, COPY_CACHE_BYTES)
    }

    fn open_generation(folder: &Path, generation: u64, cache_bytes: usize) -> Result<B, StoreError> {
        let path = folder::generation_folder(folder, generation);
        fs_err::create_dir_all(&path).map_err(|error| folder::io_error("created a generation", error))?;
        guarded(|| B::open(&path, cache_bytes)).map_err(|source| StoreError::Io { doing: "opened its files", source })
    }

    fn sync_generation(folder: &Path, generation: u64) -> Result<(), StoreError> {
        folder::sync_tree(&folder::generation_folder(folder, generation))
            .and_then(|()| folder::sync_folder(folder))
            .map_err(|error| folder::io_error("synced a generation", error))
    }

    /// Makes a synced generation the current one. Once this has begun, only the disk knows which one is.
    fn publish(folder: &Path, generation: u64) -> Result<(), StoreError> {
        folder::write_current(folder, Current { format: FORMAT, engine: B::KIND, generation })
    }

    fn live(&self) -> RwLockReadGuard<'_, Live<B>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Dirty> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> Option<StoreError> {
        self.fault.get().map(|reason| StoreError::Closed { reason: reason.clone() })
    }

    /// Closes the engine for good and reports the fault.
    fn close_after(&self, error: StoreError) -> StoreError {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        if self.fault.set(reason.clone()).is_ok() {
            tracing::error!(engine = %B::KIND, reason, "state engine is closed after a fault");
        }
        error
    }

    /// Removes what a rewrite that failed before its end has written. Says what failed: the old files are still those that count,
    /// unless reading them was what failed.
    fn gave_up(&self, generation: u64, error: StoreError) -> StoreError {
        if let Err(leftover) = folder::remove_leftovers(&self.folder, Some(generation)) {
            tracing::warn!(error = %leftover, "files of a rewrite that failed stay until the next one");
        }
        if self.closed().is_some() { error } else { not_rewritten(error) }
    }

    /// Runs a call on the live backend; a failure closes the engine.
    fn with_backend<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&B) -> Result<T, BackendError>,
    ) -> Result<T, StoreError> {
        let live = self.live();
        if let Some(error) = self.closed() {
            return Err(error);
        }
        let backend = live.backend.as_ref().expect("a backend is only missing after a fault");
        guarded(|| call(backend)).map_err(|source| self.close_after(StoreError::Io { doing, source }))
    }

    /// Copies every row into `target` in unsynced batches, while commits go on; the rows that they touch are left in the
    /// dirty set for [`Self::copy_dirty`].
    fn copy_rows(&self, folder: &Path, target: &B) -> Result<u64, StoreError> {
        let mut copied = 0;
        for table in Table::ALL {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let mut batch = WriteBatch::default();
                let mut bytes = 0;
                let mut last = None;
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                self.with_backend("read rows to copy", |backend| {
                    backend.scan(table, from, Bound::Unbounded, &mut |key, value| {
                        bytes += key.len() + value.len();
                        batch.put(table, key, value);
                        last = Some(key.to_vec());
                        if batch.len() < COPY_ROWS && bytes < COPY_BYTES {
                            ControlFlow::Continue(())
                        } else {
                            ControlFlow::Break(())
                        }
                    })
                })?;
                if batch.is_empty() {
                    break;
                }
                check_room(folder, bytes as u64)?;
                copied += batch.len() as u64;
                after = last;
                guarded(|| target.commit(&batch, Syncing::Later))
                    .map_err(|source| StoreError::Io { doing: "copied rows", source })?;
            }
        }
        Ok(copied)
    }

    /// Brings the rows that changed during the copy over and syncs. The caller holds the writer.
    fn copy_dirty(&self, target: &B, dirty: &BTreeSet<(Table, Vec<u8>)>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (table, key) in dirty {
            match self.with_backend("read rows to copy", |backend| backend.get(*table, key))? {
                Some(value) => batch.put(*table, key.clone(), value),
                None => batch.delete(*table, key.clone()),
            }
        }
        guarded(|| target.commit(&batch, Syncing::Now))
            .map_err(|source| StoreError::Io { doing: "copied rows", source })
    }

    /// Fills a new generation below `folder` with every row, synced but not yet published. On success the writer is still held, so
    /// that nothing is committed between the copy and what the caller does next. On failure the store is as it was.
    fn copy_into(
        &self,
        folder: &Path,
        generation: u64,
        cache_bytes: usize,
    ) -> Result<(B, u64, MutexGuard<'_, Dirty>), StoreError> {
        *self.writer() = Some(BTreeSet::new());
        let attempt = Self::open_generation(folder, generation, cache_bytes).and_then(|target| {
            let result = self.copy_rows(folder, &target).and_then(|copied| {
                let mut writer = self.writer();
                let dirty = writer.take().unwrap_or_default();
                self.copy_dirty(&target, &dirty)?;
                Self::sync_generation(folder, generation)?;
                Ok((copied, writer))
            });
            match result {
                Ok((copied, writer)) => Ok((target, copied, writer)),
                Err(error) => {
                    target.abandon();
                    Err(error)
                }
            }
        });
        if attempt.is_err() {
            *self.writer() = None;
        }
        attempt
    }
}

impl<B: Backend> StateEngine for Engine<B> {
    fn kind(&self) -> EngineKind {
        B::KIND
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with_backend("read a row", |backend| backend.get(table, key))
    }

    fn get_many(&self, table: Table, keys: &[&[u8]], visit: &mut dyn FnMut(usize, &[u8])) -> Result<(), StoreError> {
        self.with_backend("read rows", |backend| backend.get_many(table, keys, visit))
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if is_empty_range(from, to) {
            return Ok(());
        }
        self.with_backend("read rows", |backend| backend.scan(table, from, to, visit))
    }

    fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut writer = self.writer();
        if let Some(dirty) = writer.as_mut() {
            dirty.extend(batch.iter().map(|(table, key, _)| (table, key.to_vec())));
        }
        self.with_backend("wrote and synced a batch", |backend| backend.commit(batch, Syncing::Now))
    }

    fn rewrite(&self) -> Result<u64, StoreError> {
        let _one_at_a_time = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.closed() {
            return Err(error);
        }
        let before = self.disk_bytes();
        let generation = self.live().generation;
        // What a rewrite that failed has left would get into this one.
        folder::remove_leftovers(&self.folder, Some(generation)).map_err(not_rewritten)?;
        let copied = self.copy_into(&self.folder, generation + 1, self.cache_bytes);
        let (fresh, _rows, writer) = copied.map_err(|error| self.gave_up(generation, error))?;
        // A failure from here on may have come after the rename that makes the new generation current, so that this process and
        // the disk disagree about which files count: it closes the engine, like a failed commit.
        Self::publish(&self.folder, generation + 1).map_err(|error| self.close_after(error))?;
        let old = {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            live.generation = generation + 1;
            live.backend.replace(fresh)
        };
        drop(writer);
        if let Some(old) = old {
            guarded(|| {
                old.close();
                Ok(())
            })
            .map_err(|source| self.close_after(StoreError::Io { doing: "closed its old files", source }))?;
        }
        // The new files are in use; the old ones are removed by the next rewrite or opening.
        fs_err::remove_dir_all(folder::generation_folder(&self.folder, generation))
            .and_then(|()| folder::sync_folder(&self.folder))
            .map_err(|error| not_rewritten(folder::io_error("removed its old files", error)))?;
        Ok(before.saturating_sub(self.disk_bytes()))
    }

    fn copy_to(&self, folder: &Path) -> Result<u64, StoreError> {
        let _one_at_a_time = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.closed() {
            return Err(error);
        }
        // Makes the folder and its lock file, with an empty first generation that the copy then replaces.
        drop(Self::create_empty(folder)?);
        let lock = folder::lock(folder)?;
        let (copy, rows, writer) = self.copy_into(folder, 2, COPY_CACHE_BYTES)?;
        drop(writer);
        Self::publish(folder, 2)?;
        guarded(|| {
            copy.close();
            Ok(())
        })
        .map_err(|source| StoreError::Io { doing: "closed a copy", source })?;
        folder::remove_leftovers(folder, Some(2))?;
        drop(lock);
        Ok(rows)
    }

    fn disk_bytes(&self) -> u64 {
        folder::bytes_below(&self.folder)
    }

    fn fault(&self) -> Option<String> {
        self.fault.get().cloned()
    }
}

impl<B: Backend> Drop for Engine<B> {
    fn drop(&mut self) {
        let backend = self.live.get_mut().unwrap_or_else(PoisonError::into_inner).backend.take();
        let faulty = self.fault.get().is_some();
        let closed_well = match backend {
            Some(backend) if faulty => {
                backend.abandon();
                false
            }
            Some(backend) => {
                let close = || {
                    backend.close();
                    Ok(())
                };
                guarded(close).is_ok()
            }
            None => true,
        };
        // Closed in good order: the lock goes with its file, and others may have the folder. Otherwise it stays until the
        // process ends.
        if faulty || !closed_well {
            std::mem::forget(self.lock.take());
        }
    }
}
