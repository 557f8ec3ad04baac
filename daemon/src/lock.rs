//! One daemon a state folder: a lock file held with `flock` for as long as the daemon lives. A crash releases it.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use mneme_base::BootId;
use rustix::fs::FlockOperation;

/// A folder cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another daemon has it.
    #[error("state folder {} is in use by another daemon ({holder})", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// The lock file cannot be made.
    #[error("state folder {} cannot be locked", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub struct FolderLock {
    // The lock is the open file's; it ends with it.
    _file: std::fs::File,
}

impl FolderLock {
    /// Takes a folder, which must exist, and writes who we are into its lock file.
    pub fn take(folder: &Path, boot: BootId) -> Result<Self, LockError> {
        let io = |source| LockError::Io { folder: folder.to_path_buf(), source };
        let path = folder.join("mnemed.lock");
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(io)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = (&mut file).take(256).read_to_string(&mut holder);
            return Err(LockError::Held { folder: folder.to_path_buf(), holder: holder.trim().to_owned() });
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        write!(file, "pid {} boot {boot}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_holds_it_and_a_later_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let boot = BootId::from_bytes([7; 16]);
        let lock = FolderLock::take(folder.path(), boot).unwrap();
        let error = FolderLock::take(folder.path(), boot).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(lock);
        assert!(FolderLock::take(folder.path(), boot).is_ok());
    }
}
