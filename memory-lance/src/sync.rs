//! Makes what Lance wrote survive a power cut: Lance itself never syncs a local file.
//!
//! Lance's files never change once they have their name, so that each is synced once; a note that says which version is the newest does,
//! and is not needed. Folders are synced every time: a file that was
//! removed must stay removed, because it may hold what was forgotten.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::shared::StorageError;

/// Which files of a folder are known to be on the disk.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    files: BTreeSet<PathBuf>,
}

impl Synced {
    #[cfg(test)]
    pub(crate) fn knows_any(&self) -> bool {
        !self.files.is_empty()
    }

    /// Syncs every file below a folder that was not synced yet, then the folders, and the one that it lies in.
    pub(crate) fn sync(&mut self, folder: &Path) -> Result<(), StorageError> {
        let (mut files, mut folders) = (BTreeSet::new(), Vec::new());
        let listed = list(folder, &mut files, &mut folders);
        listed.map_err(|source| StorageError::Io { doing: "list", path: folder.into(), source })?;
        folders.extend(folder.parent().map(Path::to_owned));
        for path in files.difference(&self.files).chain(&folders) {
            match fs_err::File::open(path).and_then(|file| file.sync_all()) {
                // Cleaned up meanwhile, as temporary files are.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StorageError::NotDurable { path: path.clone(), source }),
                Ok(()) => {}
            }
        }
        self.files = files;
        Ok(())
    }
}

fn list(folder: &Path, files: &mut BTreeSet<PathBuf>, folders: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs_err::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(kind) if kind.is_dir() => list(&entry.path(), files, folders)?,
            Ok(_) => {
                files.insert(entry.path());
            }
            Err(error) => return Err(error),
        }
    }
    // After what is in it: a name must not be durable before its content.
    folders.push(folder.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_once_synced_and_forgotten_when_they_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("place");
        let mut synced = Synced::default();
        synced.sync(&place).unwrap();
        assert!(synced.files.is_empty(), "a place that does not exist has nothing to sync");
        fs_err::create_dir_all(place.join("data")).unwrap();
        fs_err::write(place.join("data/one"), b"1").unwrap();
        fs_err::write(place.join("two"), b"2").unwrap();
        synced.sync(&place).unwrap();
        assert_eq!(synced.files.len(), 2);
        fs_err::remove_file(place.join("two")).unwrap();
        synced.sync(&place).unwrap();
        assert_eq!(synced.files, BTreeSet::from([place.join("data/one")]));
    }
}
