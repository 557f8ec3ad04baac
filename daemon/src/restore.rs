//! Puts a backup in the place of the store, while no daemon runs. What was there is moved aside and never removed.

use std::path::{Path, PathBuf};

use mneme_base::{BootId, Clock as _, SystemClock};
use mneme_config::Config;
use mneme_memory::StoreError;
use serde::Serialize;

use crate::listen::make_private;
use crate::lock::{FolderLock, LockError};

/// The store's folder inside the state folder.
pub(crate) const STORE_FOLDER: &str = "memory";
/// Where the copy is made and checked before it takes the store's place.
const RESTORING_FOLDER: &str = "memory.restoring";

/// A backup could not be restored. The store is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A daemon uses the state folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The backup is not whole, or the copy could not be made.
    #[error("backup {} cannot be restored", folder.display())]
    Backup {
        /// The backup.
        folder: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A folder could not be made, moved or removed.
    #[error("folder {} cannot be put in its place", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RestoreError {
    /// What to do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Lock(LockError::Held { .. }) => Some("stop the daemon first: 'mneme service stop'"),
            Self::Backup { .. } => Some("the store is as it was; 'mneme backup FOLDER' makes such a folder"),
            _ => None,
        }
    }
}

/// What was restored.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// How many memories.
    pub memories: u64,
    /// Where the store is.
    pub folder: PathBuf,
    /// Where the former store is kept, if there was one.
    pub kept: Option<PathBuf>,
}

/// Puts two folders each in the place of the other.
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Restores a backup that `mneme backup` has made.
pub fn restore(config: &Config, backup: &Path) -> Result<Restored, RestoreError> {
    let state_dir = &config.paths.state_dir;
    let failed = |folder: &Path| {
        let folder = folder.to_path_buf();
        move |source| RestoreError::Folder { folder, source }
    };
    make_private(state_dir).map_err(failed(state_dir))?;
    let now = SystemClock.now();
    let _lock = FolderLock::take(state_dir, BootId::generate(now))?;
    let (store, copy) = (state_dir.join(STORE_FOLDER), state_dir.join(RESTORING_FOLDER));
    let aside = |what: &str| state_dir.join(format!("{STORE_FOLDER}.{what}-{}", now.as_millis()));
    // Of a restore that was broken off: half a copy, or the former store.
    if copy.exists() {
        fs_err::rename(&copy, aside("left")).map_err(failed(&copy))?;
    }
    make_private(&copy).map_err(failed(&copy))?;
    let memories = mneme_memory::durable::restore(backup, &copy).map_err(|source| {
        let _ = fs_err::remove_dir_all(&copy);
        RestoreError::Backup { folder: backup.to_path_buf(), source }
    })?;
    let kept = store.exists().then(|| aside("before"));
    match &kept {
        // At no moment is there no store: a daemon that started then would make an empty one.
        Some(kept) => {
            exchange(&copy, &store).map_err(failed(&store))?;
            fs_err::rename(&copy, kept).map_err(failed(&copy))?;
        }
        None => fs_err::rename(&copy, &store).map_err(failed(&copy))?,
    }
    fs_err::File::open(state_dir).and_then(|folder| folder.sync_all()).map_err(failed(state_dir))?;
    Ok(Restored { memories, folder: store, kept })
}
