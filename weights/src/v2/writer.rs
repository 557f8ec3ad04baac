//! Writes Parquet V2, tensor by tensor.

use std::collections::{BTreeMap, HashSet};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, Int32Array, StringViewArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use half::f16;
use mneme_quant::Quantized;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use tempfile::NamedTempFile;

use super::schema::{self, Words, content_hash};
use crate::{DType, WriteError};

/// A Parquet page has a 31-bit size; some bytes of it are for lengths (bytes).
const PART_BYTES_MAX: usize = i32::MAX as usize - 64;

/// Writes a file beside its destination and renames it into place at the end: an unfinished file is never seen under the
/// final name. Holds about twice the largest tensor in memory.
pub struct V2Writer {
    arrow: ArrowWriter<BufWriter<NamedTempFile>>,
    path: PathBuf,
    names: HashSet<String>,
}

impl std::fmt::Debug for V2Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("V2Writer")
            .field("path", &self.path)
            .field("rows", &self.names.len())
            .finish_non_exhaustive()
    }
}

/// One row before it is written.
struct Row<'a> {
    name: &'a str,
    shape: &'a [usize],
    words: Words,
    codes: Bytes,
    scales: Bytes,
    minimums: Bytes,
}

impl V2Writer {
    /// Starts a file. `metadata` goes into the footer: keep it small, larger things are attachments.
    pub fn create(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Self, WriteError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".weights-").suffix(".partial").tempfile_in(folder)?;
        let mut pairs = vec![KeyValue::new(schema::VERSION_KEY.to_owned(), schema::VERSION.to_owned())];
        pairs.extend(
            metadata.iter().map(|(key, value)| KeyValue::new(format!("{}{key}", schema::USER_PREFIX), value.clone())),
        );
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::PLAIN)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_data_page_size_limit(usize::MAX)
            .set_max_row_group_row_count(Some(1))
            .set_key_value_metadata(Some(pairs))
            .build();
        // Without Arrow's own schema in the footer every Parquet reader sees plain BYTE_ARRAY columns.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let arrow = ArrowWriter::try_new_with_options(BufWriter::new(file), schema::schema(), options)?;
        Ok(Self { arrow, path: path.to_owned(), names: HashSet::new() })
    }

    /// Writes a tensor as it is stored elsewhere. The bytes are not copied before the page is built.
    pub fn tensor(&mut self, name: &str, shape: &[usize], dtype: DType, bytes: Bytes) -> Result<(), WriteError> {
        let expected = shape
            .iter()
            .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
            .and_then(|elements| dtype.bytes_for(elements));
        if expected != Some(bytes.len()) {
            let reason = format!("{} bytes are not {shape:?} of {dtype}", bytes.len());
            return Err(WriteError::Tensor { tensor: name.to_owned(), reason });
        }
        let words = Words::plain(dtype);
        self.row(Row { name, shape, words, codes: bytes, scales: Bytes::new(), minimums: Bytes::new() })
    }

    /// Writes a quantised tensor. All axes but the last are its rows.
    pub fn quantized(&mut self, name: &str, shape: &[usize], quantized: &Quantized) -> Result<(), WriteError> {
        if schema::matrix(shape) != Some((quantized.rows(), quantized.columns())) {
            let reason = format!("{shape:?} is not {} x {}", quantized.rows(), quantized.columns());
            return Err(WriteError::Tensor { tensor: name.to_owned(), reason });
        }
        self.row(Row {
            name,
            shape,
            words: Words::quantized(quantized.spec()),
            codes: Bytes::copy_from_slice(quantized.codes()),
            scales: half_bytes(quantized.scales()),
            minimums: half_bytes(quantized.minimums()),
        })
    }

    /// Writes bytes that belong to the model but are no tensor, such as `tokenizer.json`.
    pub fn attachment(&mut self, name: &str, bytes: Bytes) -> Result<(), WriteError> {
        let shape = [bytes.len()];
        let words = Words::attachment();
        self.row(Row { name, shape: &shape, words, codes: bytes, scales: Bytes::new(), minimums: Bytes::new() })
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), WriteError> {
        let refused = |reason: String| Err(WriteError::Tensor { tensor: row.name.to_owned(), reason });
        if row.codes.len() > PART_BYTES_MAX {
            return refused(format!("{} bytes, a Parquet page holds {PART_BYTES_MAX}", row.codes.len()));
        }
        if row.name.is_empty() || row.name.len() > schema::NAME_BYTES_MAX || self.names.len() >= schema::ROWS_MAX {
            return refused(format!(
                "names have 1 to {} bytes, files {} rows",
                schema::NAME_BYTES_MAX,
                schema::ROWS_MAX
            ));
        }
        if !self.names.insert(row.name.to_owned()) {
            return Err(WriteError::Duplicate(row.name.to_owned()));
        }
        let hash = content_hash(row.words.dtype, row.shape, &[&row.codes, &row.scales, &row.minimums]);
        let shape = format!("{:?}", row.shape);
        let text = |value: &str| Arc::new(StringViewArray::from_iter_values([value])) as ArrayRef;
        let number = |value: i32| Arc::new(Int32Array::from_iter_values([value])) as ArrayRef;
        let columns = vec![
            text(row.name),
            text(&shape),
            text(row.words.dtype.name()),
            number(row.words.bits),
            number(row.words.axis),
            number(row.words.group),
            text(row.words.scheme),
            aliased(row.codes)?,
            aliased(row.scales)?,
            aliased(row.minimums)?,
            aliased(Bytes::copy_from_slice(&hash))?,
        ];
        self.arrow.write(&RecordBatch::try_new(schema::schema(), columns)?)?;
        self.arrow.flush()?;
        Ok(())
    }

    /// Completes the file, makes it durable and puts it under its name. Returns its size in bytes.
    pub fn finish(self) -> Result<u64, WriteError> {
        // Writes the footer.
        let file = self.arrow.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let bytes = file.as_file().metadata()?.len();
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(bytes)
    }
}

/// A column of one value that shares its bytes with the source.
fn aliased(bytes: Bytes) -> Result<ArrayRef, WriteError> {
    let view = make_view(&bytes, 0, 0);
    let array = BinaryViewArray::try_new(ScalarBuffer::from(vec![view]), vec![Buffer::from(bytes)], None)?;
    Ok(Arc::new(array))
}

fn half_bytes(values: &[f16]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
