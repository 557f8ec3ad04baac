//! The rows by which the watcher knows what it has read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mneme_base::{ContentHash, MemoryId};
use mneme_memory::Document;
use serde::{Deserialize, Serialize};

use super::{WRITE_TIMEOUT, WatchFolder};
use crate::call::{ActorError, deadline_in};
use crate::memory::MemoryHandle;

/// The collection of files that were read.
const FILES: &str = "watch_files";
/// Rows that are read, or removed, at once: as many as one operation may write.
const ROWS_PAGE: usize = 1_000;
/// A part of a key that is longer than this stands there as its hash (bytes): keys are bounded, paths nearly not.
const KEY_PART_BYTES_MAX: usize = 480;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRow {
    pub(super) hash: ContentHash,
    pub(super) modified_ms: i64,
    pub(super) bytes: u64,
    pub(super) chunks: Vec<(ContentHash, MemoryId)>,
    /// The file's chunks are being changed: those of the row may not be all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unsettled: bool,
    /// The path, where the key has only its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
}

impl Default for FileRow {
    /// A file of which nothing is known.
    fn default() -> Self {
        let hash = ContentHash::of(b"");
        Self { hash, modified_ms: i64::MIN, bytes: 0, chunks: Vec::new(), unsettled: false, path: None }
    }
}

/// A path as a part of a key, and whether the path can be read from it.
fn key_part(path: &Path) -> (String, bool) {
    let text = path.display().to_string();
    if text.len() <= KEY_PART_BYTES_MAX {
        (text, true)
    } else {
        (format!("#{}", ContentHash::of(text.as_bytes())), false)
    }
}

/// The key of a watched folder.
pub(super) fn key_of(folder: &Path) -> String {
    key_part(folder).0
}

fn prefix_of(folder: &WatchFolder) -> String {
    // A line end cannot be told from a path's own characters by the eye, but it ends the folder's part of the key for sure.
    format!("{}\n", key_of(&folder.folder))
}

/// The document of a file's row; of its removal without one.
pub(super) fn row_of(folder: &WatchFolder, path: &Path, row: Option<&FileRow>) -> Document {
    let (part, is_whole) = key_part(path);
    let value = row.map(|row| {
        let row = FileRow { path: (!is_whole).then(|| path.to_owned()), ..row.clone() };
        serde_json::to_vec(&row).expect("a row is plain data")
    });
    Document { collection: FILES.into(), key: format!("{}{part}", prefix_of(folder)), value }
}

/// Drops what is known of a folder's files; the memories stay.
pub(super) async fn drop_rows(memory: &MemoryHandle, folder: &WatchFolder) -> Result<(), ActorError> {
    let paths = read_rows(memory, folder).await?;
    let mut rows: Vec<Document> = paths.keys().map(|path| row_of(folder, path, None)).collect();
    while !rows.is_empty() {
        let page = rows.split_off(rows.len().saturating_sub(ROWS_PAGE));
        memory.put_documents(page, deadline_in(WRITE_TIMEOUT)).await?;
    }
    Ok(())
}

/// What is known of a folder's files.
pub(super) async fn read_rows(
    memory: &MemoryHandle,
    folder: &WatchFolder,
) -> Result<BTreeMap<PathBuf, FileRow>, ActorError> {
    let prefix = prefix_of(folder);
    let mut rows = BTreeMap::new();
    let mut after = None;
    loop {
        let page = memory.documents(FILES, prefix.clone(), after, ROWS_PAGE, deadline_in(WRITE_TIMEOUT)).await?;
        let is_last = page.len() < ROWS_PAGE;
        after = page.last().map(|row| row.key.clone());
        for row in page {
            let path = row.key.strip_prefix(&prefix).unwrap_or_default();
            let parsed: Option<FileRow> = row.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
            if let Some(parsed) = parsed {
                rows.insert(parsed.path.clone().unwrap_or_else(|| PathBuf::from(path)), parsed);
            }
        }
        if is_last {
            return Ok(rows);
        }
    }
}
