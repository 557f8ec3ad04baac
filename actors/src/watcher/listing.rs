//! What lies in a watched folder, and what of it could not be seen.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::WatcherOptions;
use crate::call::ActorError;

/// How deep folders are followed.
const DEPTH_MAX: usize = 32;
/// So many times as many files are listed as may be watched: those that are known have to be found among them.
const LISTED_FACTOR: usize = 4;
/// Places that cannot be read are kept up to this number; with more, nothing counts as gone.
const UNREAD_MAX: usize = 1_000;

/// A file as it lies in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) modified_ms: i64,
    pub(super) bytes: u64,
}

/// Which folder a path leads to: another one, when a disk is mounted there or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootId {
    device: u64,
    inode: u64,
}

/// A folder's files.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) found: BTreeMap<PathBuf, Found>,
    /// Files and folders that are there, or may be, and could not be looked at.
    pub(super) unread: Vec<PathBuf>,
    /// There are more files than were listed.
    pub(super) is_cut: bool,
    /// There is nothing at all in the folder, not even what is not read.
    pub(super) is_bare: bool,
    pub(super) root: RootId,
}

impl Listing {
    /// Whether a file that was read is gone: it is not in the listing, and would be if it were there.
    pub(super) fn is_gone(&self, path: &Path) -> bool {
        !self.is_cut
            && self.unread.len() < UNREAD_MAX
            && !self.found.contains_key(path)
            && !self.unread.iter().any(|unread| path.starts_with(unread))
    }
}

/// When a file was last modified (milliseconds since 1970).
pub(super) fn modified_ms(metadata: &std::fs::Metadata) -> i64 {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    modified.map_or(0, |since| since.as_millis() as i64)
}

/// Lists the files that are to be read. Hidden files and folders, and links, are left out: a link could lead anywhere.
pub(super) fn list(root: &Path, options: &WatcherOptions) -> Result<Listing, ActorError> {
    let away = |error: std::io::Error| ActorError::invalid("folder", error.to_string());
    let metadata = fs_err::metadata(root).map_err(away)?;
    let mut listing = Listing {
        found: BTreeMap::new(),
        unread: Vec::new(),
        is_cut: false,
        is_bare: true,
        root: RootId { device: metadata.dev(), inode: metadata.ino() },
    };
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs_err::read_dir(&folder) {
            Ok(entries) => entries,
            // The root being away is told; a folder inside may have been deleted since it was listed.
            Err(error) if depth == 0 => return Err(away(error)),
            Err(error) => {
                listing.could_not(folder, &error);
                continue;
            }
        };
        for entry in entries {
            listing.is_bare = false;
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    listing.could_not(folder.clone(), &error);
                    break;
                }
            };
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) => {
                    listing.could_not(path, &error);
                    continue;
                }
            };
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((path, depth + 1));
            } else if kind.is_file() && wanted(&path, options) {
                match entry.metadata() {
                    Ok(metadata) => listing.take(path, &metadata, options),
                    Err(error) => listing.could_not(path, &error),
                }
            }
            if listing.is_cut {
                return Ok(listing);
            }
        }
    }
    Ok(listing)
}

impl Listing {
    fn could_not(&mut self, path: PathBuf, error: &std::io::Error) {
        if error.kind() == ErrorKind::NotFound {
            return;
        }
        tracing::warn!(path = %path.display(), %error, "cannot be looked at; what was read of it stays");
        if self.unread.len() < UNREAD_MAX {
            self.unread.push(path);
        }
    }

    fn take(&mut self, path: PathBuf, metadata: &std::fs::Metadata, options: &WatcherOptions) {
        if metadata.len() > options.file_bytes_max {
            tracing::warn!(path = %path.display(), bytes = metadata.len(), "file is too large and passed over");
        } else if path.to_str().is_none() {
            // It could be neither shown nor found again under the name that would be kept.
            tracing::warn!(path = %path.display(), "file has a name that is no text and is passed over");
        } else if self.found.len() >= options.files_max.saturating_mul(LISTED_FACTOR) {
            self.is_cut = true;
        } else {
            self.found.insert(path, Found { modified_ms: modified_ms(metadata), bytes: metadata.len() });
        }
    }
}

fn wanted(path: &Path, options: &WatcherOptions) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| options.extensions.contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_have_been_seen_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.md", "below/b.md", "shut/c.md"] {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "text").unwrap();
        }
        let options = WatcherOptions::default();
        let mut listing = list(folder.path(), &options).unwrap();
        assert_eq!(listing.found.len(), 3);
        let gone = |listing: &Listing, name: &str| listing.is_gone(&folder.path().join(name));
        assert!(gone(&listing, "deleted.md") && !gone(&listing, "a.md"));
        listing.could_not(folder.path().join("shut"), &std::io::Error::from(ErrorKind::PermissionDenied));
        listing.could_not(folder.path().join("away"), &std::io::Error::from(ErrorKind::NotFound));
        assert!(!gone(&listing, "shut/deleted.md"), "it may still be there");
        assert!(gone(&listing, "away/deleted.md") && gone(&listing, "deleted.md"));
        let few = WatcherOptions { files_max: 0, ..options };
        assert!(!gone(&list(folder.path(), &few).unwrap(), "deleted.md"), "it may be among those that were not listed");
    }
}
