//! One table in a Lance dataset: append, keyed upsert, delete, scan, versions, `as_of`. Upkeep is in [`crate::upkeep`].
//!
//! **One writer.** Lance's merge is no unique constraint, so that two writers could insert one key twice: a table is written by one
//! [`ArrowStorage`] only. **Nothing is durable before [`ArrowStorage::sync`]**: Lance never syncs what it writes to a local disk.
//!
//! Caches are small and shared, a batch has at most [`BATCH_ROWS`] rows, scans read ahead by [`READ_AHEAD_BYTES`], compaction takes few
//! fragments at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Float32Array, RecordBatch, RecordBatchIterator};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::{MergeInsertBuilder, WhenMatched, WhenNotMatched, WriteMode, WriteParams};
use mneme_base::Timestamp;

use crate::repair;
use crate::schema::{SchemaVersion, TABLE_KEY, Table, VERSION_KEY, newest};
use crate::shared::{CALL, STEP, Shared, StorageError, TableVersion, local_path, make_private};
use crate::sync::Synced;

/// Rows of one batch of a scan or write, at most.
pub const BATCH_ROWS: usize = 1_000;
/// Rows of a fragment after compaction: large enough for scans, small enough to be rewritten in bounded memory.
pub(crate) const FRAGMENT_ROWS: usize = 256 * 1_024;
/// Rows of one batch of a scan: at the largest that a memory can be (64 KiB of text, 256 KiB of metadata) they fit into what is read
/// ahead, without which Lance would wait for ever.
pub(crate) const SCAN_ROWS: usize = 250;
/// What a scan or a compaction reads ahead (bytes). Lance's own default is gigabytes.
pub(crate) const READ_AHEAD_BYTES: u64 = 128 << 20;
/// What has to stay free beside a rewritten table (bytes).
const ROOM_MARGIN_BYTES: u64 = 64 << 20;
/// Keys of one delete predicate.
const DELETE_KEYS: usize = 500;

/// One table in one dataset. Calls block; they must not be made from within an asynchronous task.
pub struct ArrowStorage {
    pub(crate) shared: Shared,
    uri: String,
    pub(crate) version: SchemaVersion,
    pub(crate) dataset: Option<Dataset>,
    synced: Synced,
}

impl std::fmt::Debug for ArrowStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrowStorage")
            .field("uri", &self.uri)
            .field("table", &self.version.table)
            .finish_non_exhaustive()
    }
}

impl ArrowStorage {
    /// Opens the table below a place, a folder or a URI; it is made with the first row. A head that cannot be read is moved to
    /// `quarantine/` and the version before it is opened. With `check`, every fragment of the head is read once, as after an
    /// unclean shutdown, and the indices, which are not read by that, are dropped: upkeep makes them anew. A table of an older
    /// schema is removed: its rows come anew, from the store.
    pub fn open(shared: Shared, place: &str, table: Table, check: bool) -> Result<Self, StorageError> {
        Self::open_as(shared, place, newest(table), check)
    }

    fn open_as(shared: Shared, place: &str, version: SchemaVersion, check: bool) -> Result<Self, StorageError> {
        let uri = format!("{}/{}.lance", place.trim_end_matches('/'), version.table.name());
        let mut storage = Self { shared, uri, version, dataset: None, synced: Synced::default() };
        storage.dataset = storage.open_head(check)?;
        if storage.has_older_schema()? {
            tracing::info!(uri = storage.uri, "lance table has an older schema, it is made anew");
            storage.remove()?;
        }
        if check {
            storage.drop_indices()?;
        }
        Ok(storage)
    }

    fn open_head(&self, check: bool) -> Result<Option<Dataset>, StorageError> {
        let mut again = true;
        loop {
            let work = async {
                let builder = DatasetBuilder::from_uri(&self.uri).with_session(Arc::clone(&self.shared.session));
                let dataset = builder.load().await?;
                if check {
                    dataset.validate().await?;
                    let mut scanner = dataset.scan();
                    scanner.batch_size(SCAN_ROWS).io_buffer_size(READ_AHEAD_BYTES);
                    let mut stream = scanner.try_into_stream().await?;
                    while stream.try_next().await?.is_some() {}
                }
                Ok::<_, lance::Error>(dataset)
            };
            // Lance panics on some torn manifests; that is damage like any other.
            let attempt = catch_unwind(AssertUnwindSafe(|| self.shared.wait("opened a dataset", STEP, work)))
                .unwrap_or(Err(StorageError::Panicked));
            let error = match attempt {
                Ok(dataset) => return Ok(Some(dataset)),
                Err(StorageError::Lance { source, .. }) if matches!(*source, lance::Error::DatasetNotFound { .. }) => {
                    if local_path(&self.uri).is_none_or(repair::is_empty) {
                        return Ok(None);
                    }
                    StorageError::Lance { doing: "opened a dataset", source }
                }
                Err(error) => error,
            };
            let Some(folder) = local_path(&self.uri) else { return Err(error) };
            if repair::is_empty(folder) {
                return Ok(None);
            }
            if !may_be_damage(&error) {
                return Err(error);
            }
            // What fails twice in a row is damaged; once may be the system's bad moment, such as too many open files.
            if std::mem::take(&mut again) {
                continue;
            }
            again = true;
            let failed = |source| StorageError::Io { doing: "repair the head of", path: folder.into(), source };
            match repair::quarantine_head(folder).map_err(failed)? {
                Some(manifest) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(uri = self.uri, error, manifest = %manifest.display(), "head of a lance dataset is damaged, moved to quarantine");
                }
                // Nothing that can be read is left: it is made anew and filled from the store.
                None => return Ok(None),
            }
        }
    }

    /// Whether the dataset has a schema from before ours. One that is not ours or newer is an error, and is left as it is.
    fn has_older_schema(&self) -> Result<bool, StorageError> {
        let Some(dataset) = &self.dataset else { return Ok(false) };
        let metadata = &dataset.schema().metadata;
        let version = metadata.get(VERSION_KEY).and_then(|text| text.parse::<u32>().ok());
        let ours = metadata.get(TABLE_KEY).is_some_and(|table| table == self.version.table.name());
        match version {
            Some(found) if ours && found > self.version.version => {
                Err(StorageError::SchemaTooNew { uri: self.uri.clone(), found, supported: self.version.version })
            }
            Some(found) if ours => Ok(found < self.version.version),
            _ => Err(StorageError::NotOurs { uri: self.uri.clone() }),
        }
    }

    /// Whether it holds a dataset at all.
    pub fn exists(&self) -> bool {
        self.dataset.is_some()
    }

    /// Where it is.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Adds rows whose keys are known not to be there, as one version.
    pub fn append(&mut self, batches: Vec<RecordBatch>) -> Result<(), StorageError> {
        if batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(());
        }
        self.write(batches)
    }

    /// Makes the dataset without a row, where there is none.
    pub fn create(&mut self) -> Result<(), StorageError> {
        if self.exists() { Ok(()) } else { self.write(Vec::new()) }
    }

    fn write(&mut self, batches: Vec<RecordBatch>) -> Result<(), StorageError> {
        let schema = batches.first().map_or_else(|| self.version.schema(0), RecordBatch::schema);
        let rows = RecordBatchIterator::new(batches.into_iter().map(Ok), schema);
        let params = WriteParams {
            max_rows_per_file: FRAGMENT_ROWS,
            session: Some(Arc::clone(&self.shared.session)),
            skip_auto_cleanup: true,
            ..WriteParams::default()
        };
        if let Some(dataset) = &mut self.dataset {
            return self.shared.wait("appended rows", CALL, dataset.append(rows, Some(params)));
        }
        if let Some(folder) = local_path(&self.uri) {
            let failed = |source| StorageError::Io { doing: "make", path: folder.into(), source };
            make_private(folder).map_err(failed)?;
        }
        let params = WriteParams { mode: WriteMode::Create, ..params };
        let work = Dataset::write(rows, self.uri.as_str(), Some(params));
        self.dataset = Some(self.shared.wait("made a dataset", CALL, work)?);
        Ok(())
    }

    /// The dimensions of its vectors; `None` without a dataset or where the table has none.
    pub fn dimensions(&self) -> Option<usize> {
        let field = self.dataset.as_ref()?.schema().field("vector")?;
        match field.data_type() {
            arrow::datatypes::DataType::FixedSizeList(_, size) => usize::try_from(size).ok(),
            _ => None,
        }
    }

    /// Puts rows in the place of those with the same `id`, or adds them. Keys are distinct within the batch.
    pub fn upsert(&mut self, batch: RecordBatch) -> Result<(), StorageError> {
        let Some(dataset) = &self.dataset else { return self.append(vec![batch]) };
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let dataset = Arc::new(dataset.clone());
        let work = async {
            let job = MergeInsertBuilder::try_new(dataset, vec!["id".to_owned()])?
                .when_matched(WhenMatched::UpdateAll)
                .when_not_matched(WhenNotMatched::InsertAll)
                .skip_auto_cleanup(true)
                .try_build()?;
            job.execute_batches(vec![batch]).await
        };
        let (merged, _) = self.shared.wait("merged rows", CALL, work)?;
        self.dataset = Some(merged.as_ref().clone());
        Ok(())
    }

    /// Deletes rows by `id`; keys that are not there are fine. The bytes stay in the files until they are compacted and cleaned up.
    pub fn delete(&mut self, ids: &[String]) -> Result<(), StorageError> {
        let Some(dataset) = &mut self.dataset else { return Ok(()) };
        for some in ids.chunks(DELETE_KEYS) {
            // Ids are hexadecimal with hyphens; a quote in one would be an attack, and is doubled all the same.
            let list: Vec<String> = some.iter().map(|id| format!("'{}'", id.replace('\'', "''"))).collect();
            let predicate = format!("id IN ({})", list.join(","));
            self.shared.wait("deleted rows", CALL, dataset.delete(&predicate))?;
        }
        Ok(())
    }

    /// Visits every row in batches, or those that an SQL predicate lets through.
    pub fn scan(&self, filter: Option<&str>, visit: &mut dyn FnMut(RecordBatch)) -> Result<(), StorageError> {
        match &self.dataset {
            Some(dataset) => self.scan_version(dataset, filter, visit),
            None => Ok(()),
        }
    }

    fn scan_version(
        &self,
        dataset: &Dataset,
        filter: Option<&str>,
        visit: &mut dyn FnMut(RecordBatch),
    ) -> Result<(), StorageError> {
        self.shared.wait("scanned rows", STEP, async {
            let mut scanner = dataset.scan();
            scanner.batch_size(SCAN_ROWS).io_buffer_size(READ_AHEAD_BYTES);
            if let Some(filter) = filter {
                scanner.filter(filter)?;
            }
            let mut stream = scanner.try_into_stream().await?;
            while let Some(batch) = stream.try_next().await? {
                visit(batch);
            }
            Ok(())
        })
    }

    /// Visits the rows as they were at a moment: those of the last version committed by then. Says which that was; `None` when there
    /// was none, or when it has been cleaned up.
    pub fn as_of(&self, at: Timestamp, visit: &mut dyn FnMut(RecordBatch)) -> Result<Option<u64>, StorageError> {
        let Some(dataset) = &self.dataset else { return Ok(None) };
        let Some(version) = self.versions()?.into_iter().filter(|version| version.at <= at).map(|v| v.version).max()
        else {
            return Ok(None);
        };
        let then = self.shared.wait("opened a version", CALL, dataset.checkout_version(version))?;
        self.scan_version(&then, None, visit)?;
        Ok(Some(version))
    }

    /// The `k` rows nearest to a vector by cosine, as `(id, distance)`, through the index where there is one.
    pub fn nearest(&self, column: &str, query: &[f32], k: usize) -> Result<RecordBatch, StorageError> {
        let Some(dataset) = &self.dataset else {
            return Ok(RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())));
        };
        let key = Float32Array::from(query.to_vec());
        self.shared.wait("searched vectors", CALL, async {
            let mut scanner = dataset.scan();
            scanner.nearest(column, &key, k)?.project(&["id", "_distance"])?;
            scanner.nprobes(32).refine(4);
            scanner.try_into_batch().await
        })
    }

    /// Every version that can still be read, oldest first.
    pub fn versions(&self) -> Result<Vec<TableVersion>, StorageError> {
        let Some(dataset) = &self.dataset else { return Ok(Vec::new()) };
        let versions = self.shared.wait("listed versions", CALL, dataset.versions())?;
        let version = |version: &lance::dataset::Version| TableVersion {
            version: version.version,
            at: Timestamp::from_millis(version.timestamp.timestamp_millis()),
        };
        Ok(versions.iter().map(version).collect())
    }

    /// The version that is the head; 0 without a dataset.
    pub fn head(&self) -> u64 {
        self.dataset.as_ref().map_or(0, |dataset| dataset.version().version)
    }

    /// How many rows it has.
    pub fn count(&self) -> Result<u64, StorageError> {
        let Some(dataset) = &self.dataset else { return Ok(0) };
        let rows = self.shared.wait("counted rows", CALL, dataset.count_rows(None))?;
        Ok(rows as u64)
    }

    /// A setting that is committed with the dataset.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.dataset.as_ref()?.config().get(key).map(String::as_str)
    }

    /// Commits settings as a version of their own.
    pub fn set(&mut self, settings: &[(&str, &str)]) -> Result<(), StorageError> {
        let Some(dataset) = &mut self.dataset else { return Ok(()) };
        let update = async { dataset.update_config(settings.iter().copied()).await };
        self.shared.wait("committed a setting", CALL, update)?;
        Ok(())
    }

    /// Refuses to grow on a local disk that is nearly full, while there is room to refuse in.
    pub fn check_disk(&self) -> Result<(), StorageError> {
        let watermark_bytes = self.shared.options().disk_watermark_bytes;
        match self.free_bytes()? {
            Some(free_bytes) if free_bytes < watermark_bytes => {
                Err(StorageError::DiskLow { free_bytes, watermark_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a rewrite that would fill a local disk: for a while there are two copies of the table. So much stays free beside it.
    pub(crate) fn check_room(&self, reserve_bytes: u64) -> Result<(), StorageError> {
        let (Some(folder), Some(free_bytes)) = (local_path(&self.uri), self.free_bytes()?) else { return Ok(()) };
        let failed = |source| StorageError::Io { doing: "list", path: folder.into(), source };
        let held_bytes = bytes_below(folder).map_err(failed)?;
        let needed_bytes = held_bytes.saturating_add(reserve_bytes).saturating_add(ROOM_MARGIN_BYTES);
        if free_bytes < needed_bytes { Err(StorageError::NoRoom { free_bytes, needed_bytes }) } else { Ok(()) }
    }

    /// What is free on the disk of a local table.
    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let Some(mut folder) = local_path(&self.uri) else { return Ok(None) };
        while !folder.exists()
            && let Some(parent) = folder.parent()
        {
            folder = parent;
        }
        let failed = |error: rustix::io::Errno| StorageError::Io {
            doing: "ask for the free room of",
            path: folder.into(),
            source: error.into(),
        };
        let disk = rustix::fs::statvfs(folder).map_err(failed)?;
        Ok(Some(disk.f_bavail.saturating_mul(disk.f_frsize)))
    }

    /// Makes everything that was committed survive a power cut. On an object store it is durable already.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        match local_path(&self.uri) {
            Some(folder) => self.synced.sync(folder),
            None => Ok(()),
        }
    }

    /// Removes the dataset: the next rows make it anew, maybe in another shape.
    pub fn remove(&mut self) -> Result<(), StorageError> {
        let dataset = self.dataset.take();
        // Names of manifests count from the start again: what has such a name now was not synced.
        self.synced = Synced::default();
        if let Some(folder) = local_path(&self.uri) {
            let failed = |source| StorageError::Io { doing: "remove", path: folder.into(), source };
            return match fs_err::remove_dir_all(folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(failed(error)),
                // What was removed for a reason must not come back.
                Ok(()) => self.synced.sync(folder),
            };
        }
        let Some(dataset) = dataset else { return Ok(()) };
        self.shared.wait("removed a dataset", CALL, async {
            let store = dataset.object_store(None).await?;
            store.remove_dir_all(dataset.branch_location().path.clone()).await
        })
    }
}

/// Whether an error can come from damaged files. What was written by a newer Lance, and what this process may not or cannot open, is
/// left as it is.
fn may_be_damage(error: &StorageError) -> bool {
    let refused =
        matches!(error, StorageError::Lance { source, .. } if matches!(**source, lance::Error::NotSupported { .. }));
    !refused && !matches!(error, StorageError::Hung { .. }) && !is_of_the_system(error)
}

/// Whether the system refused a call for a reason that lies in no file.
pub(crate) fn is_of_the_system(error: &StorageError) -> bool {
    use std::io::ErrorKind;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let kind = matches!(
                io.kind(),
                ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::StorageFull
                    | ErrorKind::QuotaExceeded
                    | ErrorKind::OutOfMemory
            );
            let files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
            return kind || files.iter().any(|number| io.raw_os_error() == Some(number.raw_os_error()));
        }
        cause = error.source();
    }
    false
}

fn bytes_below(folder: &std::path::Path) -> std::io::Result<u64> {
    let entries = match fs_err::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path())?,
            Ok(metadata) => metadata.len(),
            // Cleaned up meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_removed_and_made_anew_is_synced_anew() {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::new(LanceOptions::default()).unwrap();
        let mut table = ArrowStorage::open(shared, folder.path().to_str().unwrap(), Table::Memories, false).unwrap();
        table.create().unwrap();
        table.sync().unwrap();
        assert!(table.synced.knows_any());
        table.remove().unwrap();
        assert!(!table.synced.knows_any(), "its first manifest has the name that the removed one had");
    }

    #[test]
    fn what_the_system_refuses_is_no_damage() {
        let io = |kind: std::io::ErrorKind| StorageError::Io {
            doing: "open",
            path: "x".into(),
            source: std::io::Error::new(kind, "no"),
        };
        assert!(!may_be_damage(&io(std::io::ErrorKind::PermissionDenied)));
        assert!(may_be_damage(&io(std::io::ErrorKind::UnexpectedEof)));
        let newer = lance::Error::not_supported("a flag of a newer version");
        assert!(!may_be_damage(&StorageError::Lance { doing: "opened a dataset", source: Box::new(newer) }));
    }
    use crate::shared::LanceOptions;

    #[test]
    fn an_older_schema_is_made_anew_a_newer_and_a_foreign_one_are_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::new(LanceOptions::default()).unwrap();
        let first = newest(Table::Memories);
        let second = SchemaVersion { version: first.version + 1, ..first };
        let open = |version, place: &str| {
            let place = folder.path().join(place);
            ArrowStorage::open_as(shared.clone(), place.to_str().unwrap(), version, false)
        };
        open(first, "a").unwrap().create().unwrap();
        assert!(open(first, "a").unwrap().exists());
        let mut upgraded = open(second, "a").unwrap();
        assert!(!upgraded.exists(), "the rows of the older schema come anew");
        upgraded.create().unwrap();
        let refused = open(first, "a");
        assert!(matches!(refused, Err(StorageError::SchemaTooNew { found: 2, supported: 1, .. })), "{refused:?}");
        assert!(open(second, "a").unwrap().exists(), "and is left as it is");

        let column: arrow::array::ArrayRef = Arc::new(Float32Array::from(vec![1.0, 2.0]));
        let rows = RecordBatch::try_from_iter([("x", column)]).unwrap();
        let rows = RecordBatchIterator::new([Ok(rows.clone())], rows.schema());
        let uri = folder.path().join("b/memories.lance");
        let work = Dataset::write(rows, uri.to_str().unwrap(), None);
        shared.wait("wrote a dataset", CALL, work).unwrap();
        let refused = open(first, "b");
        assert!(matches!(refused, Err(StorageError::NotOurs { .. })), "{refused:?}");
        assert!(uri.exists());
    }

    #[test]
    fn a_call_that_hangs_is_ended() {
        let shared = Shared::new(LanceOptions::default()).unwrap();
        let never = std::future::pending::<lance::Result<()>>();
        let ended = shared.wait("waited", std::time::Duration::from_millis(5), never);
        assert!(matches!(ended, Err(StorageError::Hung { doing: "waited", .. })), "{ended:?}");
    }
}
