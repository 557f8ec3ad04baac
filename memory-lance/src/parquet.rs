//! Export and import of memories as Parquet: the columns of [`Table::Memories`](crate::schema::Table::Memories), page by page in both
//! directions. As with JSON lines, everything passes the write gate again on its way in, and the LSN, vectors and operation
//! ids are the store's own.

use std::fs::File;

use arrow::error::ArrowError;
use mneme_base::Namespace;
use mneme_memory::transfer::ImportReport;
use mneme_memory::{MemoryStore, Scan, StoreError};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::rows::{RowError, batch_to_memories, memories_to_batch};
use crate::schema::{TABLE_KEY, Table, VERSION_KEY, newest};

/// Memories of one page of an export and of one transaction of an import.
const PAGE_ROWS: usize = 1_000;
/// Rows of one group of the file: what a reader has to hold (some ten megabytes of text).
const GROUP_ROWS: usize = 20_000;

/// Why an export or import stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParquetTransferError {
    /// The file is no Parquet, is damaged, or cannot be read or written.
    #[error("parquet file could not be read or written")]
    File(#[from] ParquetError),
    /// Columns could not be made or read.
    #[error("columns could not be made or read")]
    Columns(#[from] ArrowError),
    /// The file is another table's, or of a newer version.
    #[error("file holds table {table:?} version {version:?}, expected is \"memories\" up to {supported}")]
    Schema {
        /// The table that it says it is.
        table: String,
        /// The version that it says it has.
        version: String,
        /// The newest that this build knows.
        supported: u32,
    },
    /// A row is not a memory. Rows of earlier batches have been imported.
    #[error("batch {batch} holds a row that is no memory")]
    Row {
        /// Which batch of the file, from 0.
        batch: usize,
        /// What is wrong.
        #[source]
        source: RowError,
    },
    /// The store failed.
    #[error("store failed during the transfer")]
    Store(#[from] StoreError),
}

/// Writes every memory, or those of a namespace, in id order. Returns how many.
pub fn export(store: &dyn MemoryStore, namespace: Option<&Namespace>, file: File) -> Result<u64, ParquetTransferError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(file, newest(Table::Memories).schema(0), Some(properties))?;
    let mut scan = Scan { namespace: namespace.cloned(), after: None, limit: PAGE_ROWS };
    let mut count = 0;
    loop {
        let page = store.scan(&scan)?;
        let Some(last) = page.last() else { break };
        scan.after = Some(last.id);
        count += page.len() as u64;
        writer.write(&memories_to_batch(&page)?)?;
    }
    writer.close()?;
    Ok(count)
}

/// Reads an export into a store. Memories that are there already are left as they are, so that an import can be repeated.
pub fn import(store: &dyn MemoryStore, file: File) -> Result<ImportReport, ParquetTransferError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let of = |key: &str| builder.schema().metadata().get(key).cloned().unwrap_or_default();
    let (table, version) = (of(TABLE_KEY), of(VERSION_KEY));
    let supported = newest(Table::Memories).version;
    if table != Table::Memories.name()
        || version.parse::<u32>().ok().is_none_or(|version| version == 0 || version > supported)
    {
        return Err(ParquetTransferError::Schema { table, version, supported });
    }
    let mut report = ImportReport::default();
    for (number, batch) in builder.with_batch_size(PAGE_ROWS).build()?.enumerate() {
        let memories =
            batch_to_memories(&batch?).map_err(|source| ParquetTransferError::Row { batch: number, source })?;
        report.add(store.import(memories)?);
    }
    Ok(report)
}
