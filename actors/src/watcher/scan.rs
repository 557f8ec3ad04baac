//! Compares a folder with what is in memory of it, and carries the difference over.
//!
//! Each file is a thread of chunks; a row for each file keeps its hash and its chunks' hashes. A changed file costs the chunks
//! that changed: chunks with a known hash stay, new ones are remembered, gone ones forgotten.

use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mneme_base::{ContentHash, MemoryId, OpId, Provenance, SourceLocation, Timestamp, TrustTier};
use mneme_memory::domain::TEXT_BYTES_MAX;
use mneme_memory::{
    Document, ForgetSelector, MemoryKind, Metadata, NewMemory, Operation, OperationKind, OperationResult,
};
use mneme_text::chunk::{ChunkOptions, TextFormat, chunk};
use serde::{Deserialize, Serialize};

use super::{Arguments, WatchFolder, WatcherOptions};
use crate::call::{ActorError, deadline_in};
use crate::memory::MemoryHandle;

/// The collection of files that were read.
const FILES: &str = "watch_files";
/// Rows that are read at once.
const ROWS_PAGE: usize = 1_000;
/// How deep folders are followed.
const DEPTH_MAX: usize = 32;
/// How long one file's changes may take to become durable.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRow {
    hash: ContentHash,
    modified_ms: i64,
    bytes: u64,
    chunks: Vec<(ContentHash, MemoryId)>,
}

/// A file as it lies in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    modified_ms: i64,
    bytes: u64,
}

/// The source of everything that was read from a folder, by which it can be revoked.
pub(super) fn source_of(folder: &Path) -> String {
    format!("file:{}", folder.display())
}

/// Brings the memory up to the folder. Returns how many of its files are in memory.
pub(super) async fn bring_up_to_date(arguments: &Arguments, folder: &WatchFolder) -> Result<u64, ActorError> {
    let known = read_rows(&arguments.memory, folder).await?;
    let (root, options) = (folder.folder.clone(), arguments.tuned.get().watcher.clone());
    let listed = tokio::task::spawn_blocking(move || list(&root, &options)).await;
    let found = listed.map_err(|_| ActorError::Stopped { actor: "watcher" })??;
    for (path, row) in &known {
        if !found.contains_key(path) {
            forget(arguments, folder, path, row).await?;
        }
    }
    let mut files = 0;
    for (path, file) in &found {
        let before = known.get(path);
        let same = before.is_some_and(|row| row.modified_ms == file.modified_ms && row.bytes == file.bytes);
        // One unreadable file must not keep the others out.
        let read = if same { Ok(true) } else { bring_file(arguments, folder, path, before).await };
        match read {
            Ok(in_memory) => files += u64::from(in_memory),
            Err(error @ (ActorError::Invalid { .. } | ActorError::Refused(_))) => {
                tracing::warn!(path = %path.display(), %error, "file is passed over");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Drops what is known of a folder's files; the memories stay.
pub(super) async fn drop_rows(memory: &MemoryHandle, folder: &WatchFolder) -> Result<(), ActorError> {
    let paths = read_rows(memory, folder).await?;
    let rows: Vec<Document> = paths.keys().map(|path| row_of(folder, path, None)).collect();
    if rows.is_empty() { Ok(()) } else { memory.put_documents(rows, deadline_in(WRITE_TIMEOUT)).await }
}

fn prefix_of(folder: &WatchFolder) -> String {
    // A line end cannot be told from a path's own characters by the eye, but it ends the folder's part of the key for sure.
    format!("{}\n", folder.folder.display())
}

fn row_of(folder: &WatchFolder, path: &Path, row: Option<&FileRow>) -> Document {
    let value = row.map(|row| serde_json::to_vec(row).expect("a row is plain data"));
    Document { collection: FILES.into(), key: format!("{}{}", prefix_of(folder), path.display()), value }
}

async fn read_rows(memory: &MemoryHandle, folder: &WatchFolder) -> Result<BTreeMap<PathBuf, FileRow>, ActorError> {
    let prefix = prefix_of(folder);
    let mut rows = BTreeMap::new();
    let mut after = None;
    loop {
        let page = memory.documents(FILES, prefix.clone(), after, ROWS_PAGE, deadline_in(WRITE_TIMEOUT)).await?;
        let is_last = page.len() < ROWS_PAGE;
        after = page.last().map(|row| row.key.clone());
        for row in page {
            let path = row.key.strip_prefix(&prefix).unwrap_or_default();
            let parsed = row.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
            if let Some(parsed) = parsed {
                rows.insert(PathBuf::from(path), parsed);
            }
        }
        if is_last {
            return Ok(rows);
        }
    }
}

/// Lists the files that are to be read. Hidden files and folders, and links, are left out: a link could lead anywhere.
fn list(root: &Path, options: &WatcherOptions) -> Result<BTreeMap<PathBuf, Found>, ActorError> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs_err::read_dir(&folder) {
            Ok(entries) => entries,
            // The root being away is told; a folder inside may have been deleted between listing and reading.
            Err(error) if depth == 0 => return Err(ActorError::invalid("folder", error.to_string())),
            Err(_) => continue,
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((path, depth + 1));
            } else if kind.is_file() && wanted(&path, options) {
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.len() > options.file_bytes_max {
                    tracing::warn!(path = %path.display(), bytes = metadata.len(), "file is too large and passed over");
                    continue;
                }
                if found.len() >= options.files_max {
                    tracing::warn!(
                        files_max = options.files_max,
                        "more files than may be watched; the rest is passed over"
                    );
                    return Ok(found);
                }
                let modified_ms = metadata
                    .modified()
                    .ok()
                    .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                    .map_or(0, |since| since.as_millis() as i64);
                found.insert(path, Found { modified_ms, bytes: metadata.len() });
            }
        }
    }
    Ok(found)
}

fn wanted(path: &Path, options: &WatcherOptions) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| options.extensions.contains(&extension))
}

async fn forget(arguments: &Arguments, folder: &WatchFolder, path: &Path, row: &FileRow) -> Result<(), ActorError> {
    let ids: Vec<MemoryId> = row.chunks.iter().map(|(_, id)| *id).collect();
    let mut operations = Vec::new();
    if !ids.is_empty() {
        operations.push(OperationKind::Forget(ForgetSelector::Ids(ids)));
    }
    operations.push(OperationKind::Documents(vec![row_of(folder, path, None)]));
    let operations = operations.into_iter().map(|kind| Operation { op_id: OpId::generate(), kind }).collect();
    for outcome in arguments.memory.apply_all(operations, deadline_in(WRITE_TIMEOUT)).await? {
        // A chunk that the user has forgotten in the meantime is gone already.
        if let Err(refusal) = outcome.result
            && !matches!(refusal, mneme_memory::Refusal::NotFound { .. })
        {
            return Err(refusal.into());
        }
    }
    Ok(())
}

/// Reads a file and carries its changes over. `false` when it has no text for the memory.
async fn bring_file(
    arguments: &Arguments,
    folder: &WatchFolder,
    path: &Path,
    before: Option<&FileRow>,
) -> Result<bool, ActorError> {
    let (to_read, bytes_max) = (path.to_path_buf(), arguments.tuned.get().watcher.file_bytes_max);
    let read = tokio::task::spawn_blocking(move || read_text(&to_read, bytes_max)).await;
    let (text, modified_ms) = read.map_err(|_| ActorError::Stopped { actor: "watcher" })??;
    let hash = ContentHash::of(text.as_bytes());
    let mut row = FileRow { hash, modified_ms, bytes: text.len() as u64, chunks: Vec::new() };
    if let Some(before) = before.filter(|before| before.hash == hash) {
        row.chunks.clone_from(&before.chunks);
        let in_memory = !row.chunks.is_empty();
        let rows = vec![row_of(folder, path, Some(&row))];
        arguments.memory.put_documents(rows, deadline_in(WRITE_TIMEOUT)).await?;
        return Ok(in_memory);
    }
    let mut old: Vec<(ContentHash, MemoryId)> = before.map(|before| before.chunks.clone()).unwrap_or_default();
    let mut kept = Vec::new();
    let mut fresh = Vec::new();
    for (position, memory) in memories_of(arguments, folder, path, &text, modified_ms).into_iter().enumerate() {
        let hash = ContentHash::of(memory.text.as_bytes());
        match old.iter().position(|(known, _)| *known == hash) {
            Some(index) => kept.push((position, old.swap_remove(index))),
            None => fresh.push((position, hash, memory)),
        }
    }
    let ids = remember_all(arguments, fresh).await?;
    let mut chunks: Vec<(usize, (ContentHash, MemoryId))> = kept.into_iter().chain(ids).collect();
    chunks.sort_by_key(|(position, _)| *position);
    row.chunks = chunks.into_iter().map(|(_, chunk)| chunk).collect();
    // An old chunk may have become the same memory as a new one (exact duplicates share a memory): it must stay then.
    old.retain(|(_, id)| !row.chunks.iter().any(|(_, kept)| kept == id));
    if !old.is_empty() {
        let gone = FileRow { chunks: old, ..row.clone() };
        forget(arguments, folder, path, &gone).await?;
    }
    let in_memory = !row.chunks.is_empty();
    arguments.memory.put_documents(vec![row_of(folder, path, Some(&row))], deadline_in(WRITE_TIMEOUT)).await?;
    Ok(in_memory)
}

type Numbered = (usize, (ContentHash, MemoryId));

async fn remember_all(
    arguments: &Arguments,
    fresh: Vec<(usize, ContentHash, NewMemory)>,
) -> Result<Vec<Numbered>, ActorError> {
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    let places: Vec<(usize, ContentHash)> = fresh.iter().map(|(position, hash, _)| (*position, *hash)).collect();
    let operations = fresh
        .into_iter()
        .map(|(_, _, memory)| Operation { op_id: OpId::generate(), kind: OperationKind::Remember(memory) })
        .collect();
    let outcomes = arguments.memory.apply_all(operations, deadline_in(WRITE_TIMEOUT)).await?;
    let mut numbered = Vec::with_capacity(places.len());
    for ((position, hash), outcome) in places.into_iter().zip(outcomes) {
        if let OperationResult::Remembered(receipt) = outcome.result? {
            numbered.push((position, (hash, receipt.id)));
        }
    }
    Ok(numbered)
}

/// Reads a file that may be cut or replaced meanwhile; no more than the limit is held.
fn read_text(path: &Path, bytes_max: u64) -> Result<(String, i64), ActorError> {
    let failed = |error: std::io::Error| ActorError::invalid("file", error.to_string());
    // A link or a pipe may have taken the file's place since it was listed: neither is followed or waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs_err::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(ActorError::invalid("file", format!("{} is not a file", path.display())));
    }
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(ActorError::invalid("file", format!("{} grew past {bytes_max} bytes", path.display())));
    }
    if bytes.contains(&0) {
        return Err(ActorError::invalid("file", format!("{} is not text", path.display())));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((text, modified.map_or(0, |since| since.as_millis() as i64)))
}

fn memories_of(
    arguments: &Arguments,
    folder: &WatchFolder,
    path: &Path,
    text: &str,
    modified_ms: i64,
) -> Vec<NewMemory> {
    let tunables = arguments.tuned.get();
    let options = ChunkOptions {
        tokens_max: tunables.watcher.chunk_tokens,
        overlap_tokens: tunables.watcher.chunk_overlap_tokens,
        format: TextFormat::from_extension(&path.extension().unwrap_or_default().to_string_lossy()),
        ..ChunkOptions::default()
    };
    let name = path.strip_prefix(&folder.folder).unwrap_or(path).display().to_string();
    let title = |heading: String| if heading.is_empty() { name.clone() } else { format!("{name}: {heading}") };
    let memory = |(position, piece): (usize, mneme_text::chunk::Chunk<'_>)| NewMemory {
        namespace: folder.namespace.clone(),
        kind: MemoryKind::Chunk,
        text: piece.text.to_owned(),
        speaker: None,
        thread: Some(format!("file:{}", path.display())),
        position: Some(position as u64),
        metadata: Metadata::from([(String::from("title"), title(piece.heading_path()))]),
        provenance: Provenance {
            client: String::from("watch"),
            session: None,
            source: source_of(&folder.folder),
            trust: TrustTier::Observed,
            location: Some(SourceLocation {
                path: path.display().to_string(),
                line_first: piece.line_first as u32,
                line_last: piece.line_last as u32,
            }),
        },
        valid_from: Some(Timestamp::from_millis(modified_ms)),
        valid_to: None,
    };
    chunk(text, &options)
        .into_iter()
        .filter(|piece| !piece.text.trim().is_empty() && piece.text.len() <= TEXT_BYTES_MAX)
        .enumerate()
        .map(memory)
        .collect()
}
