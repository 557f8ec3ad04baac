//! The recall index as a file beside the state engine, so that a large store opens in seconds: the index of a million memories is
//! read in a fraction of the time that building it from the rows takes.
//!
//! The file is never the truth. A row of the store says which file belongs to it and up to which LSN it stands; what came later
//! is brought up from the journal, which is kept from then on (under a follower's name like any projection's). A file that is
//! missing, older, cut or flipped in one bit is removed, and the index is built from the rows.
//!
//! Writes go on while a file is written: see [`crate::index::stored`]. Forgotten content is in no file whose writing began after
//! it was forgotten; the purge removes the file before it reports, and writes a new one.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mneme_base::MemoryId;

use crate::durable::projection::Follower;
use crate::durable::record;
use crate::durable::transaction::Transaction;
use crate::durable::{DurableStore, corrupt, keys};
use crate::index::halves::HalfVectors;
use crate::index::sections::{Damage, SectionReader, SectionWriter, damage};
use crate::index::stored::{
    COLUMN_SECTIONS, Frame, column_bytes, length_bytes, name_sections, signature_bytes, write_frame, write_postings,
    write_view,
};
use crate::recall::{ExactVectors, IndexOptions, RecallIndex, View};
use crate::state::folder::{io_error, sync_folder};
use crate::state::{StateEngine, Table, WriteBatch};
use crate::store::StoreError;

/// Stores with fewer memories open fast enough without a file.
const ROWS_MIN: usize = 20_000;
/// A new file is worth its writing when so many changes would have to be brought up at the next opening: at least this many, and one
/// in [`CHANGES_SHARE`] memories.
const CHANGES_MIN: u64 = 5_000;
/// See [`CHANGES_MIN`]: bringing up two in a hundred costs less than reading the rest.
const CHANGES_SHARE: u64 = 50;
/// What is buffered between the index and the file (bytes).
const BUFFER_BYTES: usize = 1 << 20;
const PREFIX: &str = "index-";
const SUFFIX: &str = ".recall";

/// Exact vectors from the rows of the store.
#[derive(Debug)]
struct RowVectors(Arc<dyn StateEngine>);

impl ExactVectors for RowVectors {
    fn dots(&self, ids: &[MemoryId], view: usize, query: &[f32]) -> Vec<Option<f32>> {
        let keys: Vec<&[u8]> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
        let mut dots = vec![None; ids.len()];
        let read =
            self.0.get_many(Table::Embedding, &keys, &mut |at, row| dots[at] = record::dot_with(row, view, query));
        // A fault has closed the engine: the recall that asked meets it when it reads its memories.
        if read.is_err() { vec![None; ids.len()] } else { dots }
    }
}

/// Gives an index the store's rows as its exact vectors, where it keeps no copies of its own.
pub(super) fn with_rows(index: RecallIndex, engine: &Arc<dyn StateEngine>) -> RecallIndex {
    match index.options().half_vectors {
        HalfVectors::None => index.with_exact(Arc::new(RowVectors(Arc::clone(engine)))),
        HalfVectors::Memory | HalfVectors::File(_) => index,
    }
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{number:016x}{SUFFIX}"))
}

/// The row that names the file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileRow {
    number: u64,
    lsn: u64,
}

impl FileRow {
    fn encode(self) -> Vec<u8> {
        [self.number.to_le_bytes(), self.lsn.to_le_bytes()].concat()
    }

    fn read(engine: &dyn StateEngine) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = engine.get(Table::Meta, keys::INDEX_FILE)? else { return Ok(None) };
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Ok(number(0).zip(number(8)).map(|(number, lsn)| Self { number, lsn }))
    }
}

/// Reads the index that belongs to the rows, up to the LSN that is returned with it. `None` where it has to be built: a file that
/// is not as it should be is removed and said in the log.
pub(super) fn load(
    engine: &dyn StateEngine,
    folder: &Path,
    options: &IndexOptions,
) -> Result<Option<(RecallIndex, u64)>, StoreError> {
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    let row = FileRow::read(engine)?;
    remove_others(folder, row.map(|row| row.number));
    let Some(row) = row else { return Ok(None) };
    // Copies of the vectors would have to be made from the rows: then the rest may be as well.
    if options.half_vectors != HalfVectors::None {
        return Ok(None);
    }
    let path = path_of(folder, row.number);
    let index = fs_err::File::open(&path)
        .map_err(Damage::from)
        .and_then(|file| SectionReader::open(file.into_parts().0))
        .and_then(|reader| check_owner(&reader, row).map(|()| reader))
        .and_then(|reader| RecallIndex::restore(options.clone(), &reader));
    match index {
        Ok(index) => Ok(Some((index, row.lsn))),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "index file is not used, the index is built from the rows");
            remove(&path);
            // The next step of upkeep writes a new one.
            let mut batch = WriteBatch::default();
            batch.delete(Table::Meta, keys::INDEX_FILE);
            engine.commit(&batch)?;
            Ok(None)
        }
    }
}

/// The number of the section that says whose file it is.
const OWNER: u64 = 0;

fn check_owner(reader: &SectionReader, row: FileRow) -> Result<(), Damage> {
    let numbers: Vec<u64> = reader.numbers(OWNER, 2)?;
    if numbers == [row.number, row.lsn] { Ok(()) } else { damage("belongs to another store or another time") }
}

/// Removes files that no row names: of a crash between two steps, or of an older state.
fn remove_others(folder: &Path, keep: Option<u64>) {
    let keep = keep.map(|number| path_of(folder, number));
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if ours && Some(&path) != keep.as_ref() {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs_err::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "an index file could not be removed");
    }
}

impl DurableStore {
    /// Whether the recall index was read from its file when the store was opened, and not built from the rows.
    pub fn opened_from_index_file(&self) -> bool {
        self.opened_from_index_file
    }

    /// Brings an index that stands at `lsn` up to the present from the journal. Returns the memories that were brought up.
    pub(super) fn catch_up(&self, lsn: u64) -> Result<u64, StoreError> {
        let mut after = lsn;
        let mut count = 0;
        loop {
            let rows = self.journal_rows(after)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            let mut ids: Vec<MemoryId> =
                rows.iter().flat_map(|(_, row)| &row.changes).map(|(_, _, id)| MemoryId::from_bytes(*id)).collect();
            ids.sort_unstable();
            ids.dedup();
            count += ids.len() as u64;
            for id in ids {
                self.bring_up(id)?;
            }
        }
        Ok(count)
    }

    /// Makes the index say of one memory what the rows say.
    fn bring_up(&self, id: MemoryId) -> Result<(), StoreError> {
        let memory = self.engine.get(Table::Memory, id.as_bytes())?;
        let vectors = self.engine.get(Table::Embedding, id.as_bytes())?;
        let mut index = self.index_mut();
        let Some(memory) = memory else {
            index.remove(id);
            index.compact_if_overgrown();
            return Ok(());
        };
        index.upsert(&record::decode_memory(id, &memory).map_err(corrupt(&self.folder))?);
        if let Some(vectors) = vectors {
            let (_, embeddings) = record::decode_embeddings(&vectors).map_err(corrupt(&self.folder))?;
            index.set_embeddings(id, &embeddings);
        }
        Ok(())
    }

    /// Writes a new index file when the last one is far behind. Returns the bytes written.
    pub(super) fn refresh_index_file(&self) -> Result<u64, StoreError> {
        let memories = self.index().len();
        if memories < self.options().index_file_rows_min.unwrap_or(ROWS_MIN) {
            self.forgo_index_file()?;
            return Ok(0);
        }
        if let Some(row) = FileRow::read(self.engine.as_ref())? {
            let behind = self.lsn().0.saturating_sub(row.lsn);
            if behind < CHANGES_MIN.max(memories as u64 / CHANGES_SHARE) {
                return Ok(0);
            }
        }
        self.write_index_file()
    }

    /// Writes the index as it is now, while reads and writes go on, and makes it the one that the next opening reads. Returns the
    /// bytes written; 0 where the index keeps half-precision copies, which no file holds, or was compacted meanwhile.
    pub fn write_index_file(&self) -> Result<u64, StoreError> {
        self.check_open()?;
        if self.folder.as_os_str().is_empty() || self.options().index.half_vectors != HalfVectors::None {
            return Ok(0);
        }
        self.check_disk()?;
        let (frame, lsn) = self.follow_with_index()?;
        let row = FileRow { number: fresh_number(lsn), lsn };
        let path = path_of(&self.folder, row.number);
        let written = self.write_sections(&path, &frame, row);
        let failed = |error| io_error("wrote the index file", error);
        match written {
            Ok(Some(bytes)) => {
                self.adopt(row)?;
                remove_others(&self.folder, Some(row.number));
                self.truncate_journal()?;
                Ok(bytes)
            }
            Ok(None) => {
                remove(&path);
                Ok(0)
            }
            // A file that could not be written is no fault of the store: the rows are what counts.
            Err(error) => {
                remove(&path);
                let error = failed(error);
                tracing::warn!(%error, "no index file this time");
                Ok(0)
            }
        }
    }

    /// Has the journal kept from now on, and says what is to be written and for which LSN.
    fn follow_with_index(&self) -> Result<(Frame, u64), StoreError> {
        let mut writer = self.writer();
        if !writer.projections.iter().any(|name| name == keys::INDEX_FOLLOWER) {
            let corrupt = corrupt(&self.folder);
            let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
            let lsn = writer.counters.lsn;
            transaction.batch.put(Table::Meta, follower_key(), Follower::new(lsn).encode());
            transaction.state.projections.push(keys::INDEX_FOLLOWER.to_owned());
            self.commit(&mut writer, transaction)?;
        }
        // The writer is held: everything up to its LSN is in the index, and nothing later.
        Ok((self.index().frame(), writer.counters.lsn))
    }

    /// Writes and syncs the file; `None` when rows were numbered anew meanwhile.
    fn write_sections(&self, path: &Path, frame: &Frame, row: FileRow) -> std::io::Result<Option<u64>> {
        let file = fs_err::OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut out = SectionWriter::new(BufWriter::with_capacity(BUFFER_BYTES, file))?;
        out.begin(OWNER);
        out.write(&row.encode())?;
        write_frame(frame, &mut out)?;
        let look = |take: &mut dyn FnMut(&RecallIndex)| {
            let index = self.index();
            index.still(frame).then(|| take(&index))
        };
        let mut sections: Vec<(u64, Vec<u8>)> = Vec::new();
        for section in COLUMN_SECTIONS {
            if look(&mut |index| sections.push((section, column_bytes(&index.columns, section, frame)))).is_none() {
                return Ok(None);
            }
            write_all(&mut sections, &mut out)?;
        }
        let rest = look(&mut |index| {
            sections.extend(name_sections(&index.columns, frame));
            sections.push(signature_bytes(&index.duplicates, frame));
            sections.push(length_bytes(&index.text, frame));
        });
        if rest.is_none() {
            return Ok(None);
        }
        write_all(&mut sections, &mut out)?;
        let text = |take: &mut dyn FnMut(&crate::index::text::TextIndex)| look(&mut |index| take(&index.text));
        if write_postings(frame, &mut out, &text)?.is_none() {
            return Ok(None);
        }
        for which in [View::Own, View::Context] {
            let view =
                |take: &mut dyn FnMut(&crate::index::vectors::VectorView)| look(&mut |index| take(index.view(which)));
            if write_view(which as usize, frame, &mut out, &view)?.is_none() {
                return Ok(None);
            }
        }
        let (mut out, bytes) = out.finish()?;
        out.flush()?;
        out.get_ref().sync_all()?;
        sync_folder(&self.folder)?;
        Ok(Some(bytes))
    }

    /// Makes a synced file the one that belongs to the rows.
    fn adopt(&self, row: FileRow) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, keys::INDEX_FILE, row.encode());
        batch.put(Table::Meta, follower_key(), Follower::new(row.lsn).encode());
        let _writer = self.writer();
        self.engine.commit(&batch)
    }

    /// Removes the file of a store that has become small, and keeps no journal for it any more.
    fn forgo_index_file(&self) -> Result<(), StoreError> {
        if !self.writer().projections.iter().any(|name| name == keys::INDEX_FOLLOWER) {
            return Ok(());
        }
        self.drop_index_file()?;
        self.detach(keys::INDEX_FOLLOWER)
    }

    /// Removes the index file: it may hold what has been forgotten since. Returns whether there was one.
    pub(super) fn drop_index_file(&self) -> Result<bool, StoreError> {
        let had = FileRow::read(self.engine.as_ref())?.is_some();
        if had {
            let mut batch = WriteBatch::default();
            batch.delete(Table::Meta, keys::INDEX_FILE);
            let _writer = self.writer();
            self.engine.commit(&batch)?;
        }
        if !self.folder.as_os_str().is_empty() {
            remove_others(&self.folder, None);
            // No fault of the store; but until the folder is synced a power cut can bring the file back, with what it held.
            let failed =
                |error| StoreError::NotRewritten { source: Box::new(io_error("removed an index file", error)) };
            sync_folder(&self.folder).map_err(failed)?;
        }
        Ok(had)
    }
}

fn follower_key() -> Vec<u8> {
    keys::meta(keys::PROJECTION_PREFIX, keys::INDEX_FOLLOWER.as_bytes())
}

/// A number that no earlier file or history had: the time in nanoseconds, mixed with the LSN where the clock stands still.
pub(super) fn fresh_number(lsn: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64).wrapping_add(lsn)
}

fn write_all(sections: &mut Vec<(u64, Vec<u8>)>, out: &mut SectionWriter<impl Write>) -> std::io::Result<()> {
    for (section, bytes) in sections.drain(..) {
        out.begin(section);
        out.write(&bytes)?;
    }
    Ok(())
}
