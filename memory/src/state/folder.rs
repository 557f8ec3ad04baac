//! What a state engine's folder holds, and how one generation of files takes the place of another.
//!
//! ```text
//! lock            held (flock) while the engine is open
//! current.json    {"format":1,"engine":"redb","generation":3}: written whole, renamed into place, synced
//! generation-3/   the engine's own files
//! ```
//! A rewrite fills `generation-4` beside it, syncs it, and then renames a new `current.json` into place: that rename is the
//! moment of change. Folders that `current.json` does not name are leftovers of a crash and are removed at the next open.
//!
//! `current.json` can go missing, by hand or by a copy that was broken off. Then nothing says which files count, and nothing is
//! removed: `generation-1` alone is taken, because no rewrite ever fills it; anything else is told as damage. Only while
//! `making` is there, a store's very first files are half made, and may be made again.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::state::redb_engine::FILE as REDB_FILE;
use crate::state::{EngineKind, FORMAT};
use crate::store::StoreError;

const LOCK_FILE: &str = "lock";
const CURRENT_FILE: &str = "current.json";
/// Is there while the first generation is made: what lies beside it was never used.
const MAKING_FILE: &str = "making";
const GENERATION_PREFIX: &str = "generation-";
/// `current.json` is a line; a longer one is not ours (bytes).
const CURRENT_BYTES_MAX: u64 = 4 << 10;

/// The content of `current.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    pub(crate) format: u32,
    pub(crate) engine: EngineKind,
    pub(crate) generation: u64,
}

pub(crate) fn generation_folder(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{GENERATION_PREFIX}{generation}"))
}

/// Wraps a failure of the file system.
pub(crate) fn io_error(doing: &'static str, error: std::io::Error) -> StoreError {
    StoreError::Io { doing, source: Box::new(error) }
}

/// Takes the folder for this process. The lock goes with the returned file.
pub(crate) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK_FILE);
    let file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| io_error("opened its lock file", error))?
        .into_parts()
        .0;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error("locked its folder", error)),
    }
}

/// The engine that a folder was made with; `None` when it is empty or missing.
pub(crate) fn engine_of(folder: &Path) -> Result<Option<EngineKind>, StoreError> {
    Ok(find_current(folder)?.map(|current| current.engine))
}

/// The generation that counts: the one that `current.json` names, or `generation-1` where that file is missing and nothing else is
/// there. `None` for a folder without a store.
pub(crate) fn find_current(folder: &Path) -> Result<Option<Current>, StoreError> {
    let corrupt = |problem: String| StoreError::Corrupt { path: folder.to_owned(), problem };
    if let Some(current) = read_current(folder)? {
        let path = generation_folder(folder, current.generation);
        return match engine_in(&path) {
            Some(engine) if engine == current.engine => Ok(Some(current)),
            _ => Err(corrupt(format!(
                "{CURRENT_FILE} names {}, which holds no files of {}",
                path.display(),
                current.engine
            ))),
        };
    }
    if folder.join(MAKING_FILE).exists() {
        return Ok(None);
    }
    let generations = generations(folder).map_err(|error| io_error("looked for its generations", error))?;
    match generations.as_slice() {
        [] => Ok(None),
        [only] => match (engine_in(only), *only == generation_folder(folder, 1)) {
            (Some(engine), true) => {
                tracing::warn!(folder = %folder.display(), "{CURRENT_FILE} is missing; the only generation is taken");
                Ok(Some(Current { format: FORMAT, engine, generation: 1 }))
            }
            // Its very first files were not even begun.
            (None, true) => Ok(None),
            _ => Err(corrupt(format!(
                "{CURRENT_FILE} is missing and {} may be half a copy; nothing was removed",
                only.display()
            ))),
        },
        many => Err(corrupt(format!(
            "{CURRENT_FILE} is missing and {} generations are there; nothing was removed",
            many.len()
        ))),
    }
}

/// The engine whose files are in a generation; `None` where there are none.
fn engine_in(generation: &Path) -> Option<EngineKind> {
    let is_redb = fs_err::metadata(generation.join(REDB_FILE)).is_ok_and(|metadata| metadata.len() > 0);
    if is_redb {
        return Some(EngineKind::Redb);
    }
    let mut names = fs_err::read_dir(generation).ok()?.flatten().map(|entry| entry.file_name());
    // Every other file is sled's: its names are its own affair.
    names.any(|name| name != REDB_FILE).then_some(EngineKind::Sled)
}

fn generations(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(GENERATION_PREFIX)) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Says that a store's first files are being made: until [`made`], what a crash leaves of them may be removed.
pub(crate) fn making(folder: &Path) -> Result<(), StoreError> {
    let mark = || {
        fs_err::File::create(folder.join(MAKING_FILE))?.sync_all()?;
        sync_folder(folder)
    };
    mark().map_err(|error| io_error("began its first files", error))
}

/// Says that `current.json` is there.
pub(crate) fn made(folder: &Path) -> Result<(), StoreError> {
    match fs_err::remove_file(folder.join(MAKING_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| io_error("ended its first files", error)),
    }
}

/// Bytes that may still be written to the disk of a folder; `None` where nobody says.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether there is a `current.json`.
pub(crate) fn is_named(folder: &Path) -> bool {
    folder.join(CURRENT_FILE).exists()
}

/// Reads `current.json`; `None` when there is none.
fn read_current(folder: &Path) -> Result<Option<Current>, StoreError> {
    let path = folder.join(CURRENT_FILE);
    let bytes = match fs_err::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("looked for its current generation", error)),
        Ok(metadata) if metadata.len() > CURRENT_BYTES_MAX => {
            let problem = format!("{} bytes, at most {CURRENT_BYTES_MAX} are expected", metadata.len());
            return Err(StoreError::Corrupt { path, problem });
        }
        Ok(_) => fs_err::read(&path).map_err(|error| io_error("read its current generation", error))?,
    };
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { path: path.clone(), problem: error.to_string() };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(corrupt)?;
    // The format is looked at first: a newer format may have other fields.
    if let Some(found) = value.get("format").and_then(serde_json::Value::as_u64)
        && found > u64::from(FORMAT)
    {
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        return Err(StoreError::FormatTooNew { path: folder.to_owned(), found, supported: FORMAT });
    }
    serde_json::from_value(value).map(Some).map_err(corrupt)
}

/// Makes a generation the current one: the moment at which a rewrite counts.
pub(crate) fn write_current(folder: &Path, current: Current) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(&current).expect("a plain struct serialises");
    write_whole(&folder.join(CURRENT_FILE), &bytes).map_err(|error| io_error("wrote its current generation", error))
}

/// Writes a file so that after a crash it is either the old one or the new one: temporary file, fsync, rename, fsync of
/// the folder.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs_err::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        sync_folder(parent)?;
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    fs_err::File::open(folder)?.sync_all()
}

/// Syncs every file and folder below a folder.
pub(crate) fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fs_err::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Bytes of the files below a folder; what vanishes meanwhile counts nothing.
pub(crate) fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs_err::read_dir(folder) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    bytes
}

/// Removes generations that are not the current one: half-written or replaced ones of a crash.
pub(crate) fn remove_leftovers(folder: &Path, current: Option<u64>) -> Result<(), StoreError> {
    let keep = current.map(|generation| generation_folder(folder, generation));
    let failed = |error| io_error("removed leftovers of a crash", error);
    for path in generations(folder).map_err(failed)? {
        if Some(&path) != keep.as_ref() {
            tracing::warn!(folder = %path.display(), "removes a leftover generation of the state engine");
            fs_err::remove_dir_all(&path).map_err(failed)?;
        }
    }
    Ok(())
}
