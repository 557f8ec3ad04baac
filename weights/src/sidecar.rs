//! The Arrow IPC sidecar: weights in the tile layout of the kernels, ready to be multiplied from the mapping.
//!
//! One record batch per matrix; Arrow aligns its buffers to 64 bytes in the file, and a mapping starts at a page, so every
//! matrix lies at a cache line. The file is a cache: it is rebuilt from Parquet V2 when it is missing or refused.

use std::collections::HashMap;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeBinaryArray, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::ipc::{Block, MetadataVersion, root_as_footer};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use mneme_quant::PackedWeights;

use crate::{OpenError, Storage, WriteError};

/// Alignment of every matrix in the file: a cache line and an AVX-512 register (bytes).
pub const ALIGNMENT: usize = 64;
/// Magic number, padding and footer length around the body (bytes).
const TRAILER_BYTES: usize = 10;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("packed", DataType::LargeBinary, false),
    ]))
}

/// Writes matrices in kernel layout. The file is complete under its name or not there at all.
pub fn write<'a>(
    path: &Path,
    matrices: impl IntoIterator<Item = (&'a str, &'a PackedWeights)>,
) -> Result<(), WriteError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".sidecar-").suffix(".partial").tempfile_in(folder)?;
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
    let mut writer = FileWriter::try_new_with_options(BufWriter::new(file), &schema(), options)?;
    for (name, matrix) in matrices {
        let bytes = matrix.as_bytes();
        let offsets = OffsetBuffer::from_lengths([bytes.len()]);
        let packed = LargeBinaryArray::try_new(offsets, Buffer::from(bytes), None)?;
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values([name])), Arc::new(packed)];
        writer.write(&RecordBatch::try_new(schema(), columns)?)?;
    }
    writer.finish()?;
    let file = writer.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// An open sidecar.
#[derive(Debug)]
pub struct Sidecar {
    names: Vec<String>,
    matrices: HashMap<String, Bytes>,
}

impl Sidecar {
    /// Maps a file and finds its matrices; their bytes are not read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::parse(&Storage::open(path)?)
    }

    /// Parses bytes that are already mapped or in memory.
    pub fn parse(storage: &Storage) -> Result<Self, OpenError> {
        // The library answers some malformed files with a panic; that must not end the process.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::parse_inner(storage)))
            .unwrap_or_else(|_| Err(malformed("the Arrow library panicked")))
    }

    fn parse_inner(storage: &Storage) -> Result<Self, OpenError> {
        let file = storage.bytes();
        let trailer = file.last_chunk::<TRAILER_BYTES>().ok_or_else(|| malformed("too short"))?;
        let footer_bytes = read_footer_length(*trailer).map_err(OpenError::Arrow)?;
        let footer_start = (file.len() - TRAILER_BYTES)
            .checked_sub(footer_bytes)
            .ok_or_else(|| malformed("the footer leaves the file"))?;
        let footer = root_as_footer(&file[footer_start..file.len() - TRAILER_BYTES])
            .map_err(|_| malformed("the footer is not valid"))?;
        let found = footer.schema().map(fb_to_schema).ok_or_else(|| malformed("the footer has no schema"))?;
        if found.fields() != schema().fields() {
            return Err(malformed("the columns are not those of a sidecar"));
        }
        let decoder = FileDecoder::new(Arc::new(found), footer.version()).with_require_alignment(true);
        let mut sidecar = Self { names: Vec::new(), matrices: HashMap::new() };
        for block in footer.recordBatches().into_iter().flatten() {
            let range = block_range(block, footer_start).ok_or_else(|| malformed("a block leaves the file"))?;
            let buffer = Buffer::from(file.slice(range));
            let batch = decoder
                .read_record_batch(block, &buffer)
                .map_err(OpenError::Arrow)?
                .filter(|batch| batch.num_rows() == 1)
                .ok_or_else(|| malformed("a batch does not have one row"))?;
            let name = batch.column(0).as_string::<i32>().value(0);
            let packed = batch.column(1).as_binary::<i64>().value(0);
            if batch.column(0).null_count() + batch.column(1).null_count() > 0 || sidecar.matrices.contains_key(name) {
                return Err(malformed("a name is missing or appears twice"));
            }
            sidecar.names.push(name.to_owned());
            // With the alignment required, the decoder aliases its input, which is a slice of the mapping.
            let inside = file.as_ptr_range().contains(&packed.as_ptr());
            let bytes = if inside { file.slice_ref(packed) } else { Bytes::copy_from_slice(packed) };
            sidecar.matrices.insert(name.to_owned(), bytes);
        }
        Ok(sidecar)
    }

    /// Names of the matrices, in the order of the file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The stored form of a matrix, shared with the mapping.
    pub fn raw(&self, name: &str) -> Option<Bytes> {
        self.matrices.get(name).cloned()
    }

    /// A matrix for the kernels, aliasing the mapping; `None` when there is none of this name.
    pub fn matrix(&self, name: &str) -> Option<Result<PackedWeights, mneme_quant::gemm::GemmError>> {
        Some(PackedWeights::from_shared(Arc::new(self.raw(name)?)))
    }
}

fn block_range(block: &Block, end_max: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(block.offset()).ok()?;
    let metadata = usize::try_from(block.metaDataLength()).ok()?;
    let body = usize::try_from(block.bodyLength()).ok()?;
    let end = start.checked_add(metadata)?.checked_add(body)?;
    (end <= end_max).then_some(start..end)
}

fn malformed(reason: &str) -> OpenError {
    OpenError::Malformed { format: "sidecar", reason: reason.to_owned() }
}
