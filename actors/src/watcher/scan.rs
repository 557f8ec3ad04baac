//! Compares a folder with what is in memory of it, and carries the difference over.
//!
//! Each file is a thread of chunks; a row for each file keeps its hash and its chunks' hashes ([`super::rows`]). A changed file costs
//! the chunks that changed: chunks with a known hash stay, new ones are remembered, gone ones forgotten.
//!
//! A file is forgotten when it is gone, and not when it could not be looked at ([`super::listing`]). A row is marked before its file's
//! chunks change and unmarked with the last of them: where a crash has left a mark, the whole thread is forgotten and read anew,
//! because nobody knows which chunks came into being.

use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::io::Read as _;
use std::path::Path;

use mneme_base::{ContentHash, MemoryId, OpId, Provenance, SourceLocation, Timestamp, TrustTier};
use mneme_memory::domain::TEXT_BYTES_MAX;
use mneme_memory::{
    ForgetSelector, MemoryKind, Metadata, NewMemory, Operation, OperationKind, OperationOutcome, OperationResult,
    Refusal,
};
use mneme_text::chunk::{ChunkOptions, TextFormat, chunk};

use super::listing::{self, Found, Listing, RootId};
use super::rows::{FileRow, read_rows, row_of};
use super::{Arguments, WRITE_TIMEOUT, WatchFolder};
use crate::call::{ActorError, deadline_in};

/// Chunks that one transaction remembers: what a file of megabytes brings must not fill the journal's queue.
const CHUNKS_A_WRITE: usize = 256;
/// The title of a chunk is cut at this length (bytes): headings can be as long as paragraphs.
const TITLE_BYTES_MAX: usize = 1 << 10;

/// What came of looking through a folder.
#[derive(Debug)]
pub(super) struct Looked {
    /// How many of its files are in memory.
    pub(super) files: u64,
    /// Which folder it was, when it was not empty.
    pub(super) root: Option<RootId>,
    /// What could not be done.
    pub(super) problem: Option<String>,
}

/// The source of everything that was read from a folder, by which it can be revoked.
pub(super) fn source_of(folder: &Path) -> String {
    format!("file:{}", folder.display())
}

/// Brings the memory up to the folder. It may have so many files.
pub(super) async fn bring_up_to_date(
    arguments: &Arguments,
    folder: &WatchFolder,
    files_max: usize,
) -> Result<Looked, ActorError> {
    let known = read_rows(&arguments.memory, folder).await?;
    let (root, options) = (folder.folder.clone(), arguments.tuned.get().watcher.clone());
    let listed = tokio::task::spawn_blocking(move || listing::list(&root, &options)).await;
    let listing = listed.map_err(|_| ActorError::Stopped { actor: "watcher" })??;
    if listing.is_bare && !known.is_empty() && folder.root != Some(listing.root) {
        let problem = "is empty and not the folder that was read: is its disk mounted? What was read from it stays";
        return Err(ActorError::invalid("folder", problem));
    }
    for path in known.keys().filter(|path| listing.is_gone(path)) {
        forget(arguments, folder, path).await?;
    }
    let mut files = 0;
    let mut room = files_max.saturating_sub(known.len());
    let mut left_out = 0;
    for (path, file) in &listing.found {
        let before = known.get(path);
        if before.is_none() && room == 0 {
            left_out += 1;
            continue;
        }
        room -= usize::from(before.is_none());
        // One unreadable file must not keep the others out.
        let read = if is_same(before, file) { Ok(true) } else { bring_file(arguments, folder, path, before).await };
        match read {
            Ok(in_memory) => files += u64::from(in_memory),
            Err(error @ ActorError::Refused(Refusal::ReadOnly { .. } | Refusal::QuotaExceeded { .. })) => {
                return Err(error);
            }
            Err(error @ (ActorError::Invalid { .. } | ActorError::Refused(_))) => {
                tracing::warn!(path = %path.display(), %error, "file is passed over");
            }
            Err(error) => return Err(error),
        }
    }
    let problem = problem_of(&listing, left_out, arguments.tuned.get().watcher.files_max);
    Ok(Looked { files, root: (!listing.is_bare).then_some(listing.root), problem })
}

fn is_same(before: Option<&FileRow>, file: &Found) -> bool {
    before.is_some_and(|row| !row.unsettled && row.modified_ms == file.modified_ms && row.bytes == file.bytes)
}

fn problem_of(listing: &Listing, left_out: usize, files_max: usize) -> Option<String> {
    if let Some(first) = listing.unread.first() {
        let count = listing.unread.len();
        return Some(format!("{count} places cannot be read, {} first; what was read of them stays", first.display()));
    }
    if listing.is_cut {
        return Some(format!("has more files than can be looked through, watch.files_max is {files_max}"));
    }
    (left_out > 0).then(|| format!("has {left_out} files more than may be watched, watch.files_max is {files_max}"))
}

async fn write(arguments: &Arguments, kinds: Vec<OperationKind>) -> Result<Vec<OperationOutcome>, ActorError> {
    let operations = kinds.into_iter().map(|kind| Operation { op_id: OpId::generate(), kind }).collect();
    arguments.memory.apply_all(operations, deadline_in(WRITE_TIMEOUT)).await
}

/// The name of a file as a thread: everything that was ever read from it is in it.
fn thread_of(path: &Path) -> String {
    format!("file:{}", path.display())
}

fn forget_thread(folder: &WatchFolder, path: &Path) -> OperationKind {
    OperationKind::Forget(ForgetSelector::Thread { namespace: folder.namespace.clone(), thread: thread_of(path) })
}

async fn forget(arguments: &Arguments, folder: &WatchFolder, path: &Path) -> Result<(), ActorError> {
    let row = OperationKind::Documents(vec![row_of(folder, path, None)]);
    for outcome in write(arguments, vec![forget_thread(folder, path), row]).await? {
        outcome.result?;
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
    let mut row = FileRow { hash, modified_ms, bytes: text.len() as u64, ..FileRow::default() };
    let settled = before.filter(|before| !before.unsettled);
    if let Some(before) = settled.filter(|before| before.hash == hash) {
        row.chunks.clone_from(&before.chunks);
        arguments.memory.put_documents(vec![row_of(folder, path, Some(&row))], deadline_in(WRITE_TIMEOUT)).await?;
        return Ok(!row.chunks.is_empty());
    }
    let mut old: Vec<(ContentHash, MemoryId)> = settled.map(|before| before.chunks.clone()).unwrap_or_default();
    let mut kept = Vec::new();
    let mut fresh = Vec::new();
    for (position, memory) in memories_of(arguments, folder, path, &text, modified_ms).into_iter().enumerate() {
        let hash = ContentHash::of(memory.text.as_bytes());
        match old.iter().position(|(known, _)| *known == hash) {
            Some(index) => kept.push((position, old.swap_remove(index))),
            None => fresh.push((position, hash, memory)),
        }
    }
    let mark = FileRow { unsettled: true, ..before.cloned().unwrap_or_default() };
    let mut first = vec![OperationKind::Documents(vec![row_of(folder, path, Some(&mark))])];
    if before.is_some_and(|before| before.unsettled) {
        first.push(forget_thread(folder, path));
    }
    let mut chunks: Vec<Numbered> = kept;
    let known = chunks.len();
    if let Err(error) = remember_all(arguments, first, fresh, &mut chunks).await {
        // Nothing has come into being: the mark would only have what is there read anew.
        if chunks.len() == known && !before.is_some_and(|before| before.unsettled) {
            write(arguments, vec![OperationKind::Documents(vec![row_of(folder, path, before)])]).await?;
        }
        return Err(error);
    }
    chunks.sort_by_key(|(position, _)| *position);
    row.chunks = chunks.into_iter().map(|(_, chunk)| chunk).collect();
    // An old chunk may have become the same memory as a new one (exact duplicates share a memory): it must stay then.
    old.retain(|(_, id)| !row.chunks.iter().any(|(_, kept)| kept == id));
    let mut last = Vec::new();
    if !old.is_empty() {
        last.push(OperationKind::Forget(ForgetSelector::Ids(old.into_iter().map(|(_, id)| id).collect())));
    }
    last.push(OperationKind::Documents(vec![row_of(folder, path, Some(&row))]));
    for outcome in write(arguments, last).await? {
        outcome.result?;
    }
    Ok(!row.chunks.is_empty())
}

type Numbered = (usize, (ContentHash, MemoryId));

/// Remembers chunks, after and together with what comes first. A chunk that is refused is left out: the others are worth having.
async fn remember_all(
    arguments: &Arguments,
    first: Vec<OperationKind>,
    fresh: Vec<(usize, ContentHash, NewMemory)>,
    numbered: &mut Vec<Numbered>,
) -> Result<(), ActorError> {
    let mut before = first;
    let mut fresh = fresh.into_iter().peekable();
    while !before.is_empty() || fresh.peek().is_some() {
        let mut places = Vec::new();
        let lead = before.len();
        let mut kinds = std::mem::take(&mut before);
        for (position, hash, memory) in fresh.by_ref().take(CHUNKS_A_WRITE) {
            places.push((position, hash));
            kinds.push(OperationKind::Remember(memory));
        }
        let mut outcomes = write(arguments, kinds).await?.into_iter();
        for outcome in outcomes.by_ref().take(lead) {
            outcome.result?;
        }
        for ((position, hash), outcome) in places.into_iter().zip(outcomes) {
            match outcome.result {
                Ok(OperationResult::Remembered(receipt)) => numbered.push((position, (hash, receipt.id))),
                Ok(_) => {}
                Err(refusal @ (Refusal::ReadOnly { .. } | Refusal::QuotaExceeded { .. })) => return Err(refusal.into()),
                Err(refusal) => tracing::warn!(error = %refusal, "chunk of a file is passed over"),
            }
        }
    }
    Ok(())
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
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(ActorError::invalid("file", format!("{} grew past {bytes_max} bytes", path.display())));
    }
    if bytes.contains(&0) {
        return Err(ActorError::invalid("file", format!("{} is not text", path.display())));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((text, listing::modified_ms(&metadata)))
}

/// The start of a title, no longer than [`TITLE_BYTES_MAX`].
fn cut_title(mut title: String) -> String {
    if title.len() > TITLE_BYTES_MAX {
        title.truncate(title.floor_char_boundary(TITLE_BYTES_MAX));
    }
    title
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
        thread: Some(thread_of(path)),
        position: Some(position as u64),
        metadata: Metadata::from([(String::from("title"), cut_title(title(piece.heading_path())))]),
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
