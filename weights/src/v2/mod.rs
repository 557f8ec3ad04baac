//! Parquet V2: the interchange format for weights. One row per tensor, one row group per row, so that writing needs the
//! memory of one tensor and reading aliases the mapped file.
//!
//! Columns, all REQUIRED: `name`, `shape` (a JSON list), `dtype`, `bits` of a code, `axis` along which a scale is shared (0
//! output channels, 1 input channels, -1 neither), `group` (elements that share a scale along a row, 0 for none), `scheme`
//! (`plain`, `symmetric`, `scale_min`, `attachment`), `codes`, `scales`, `minimums` (bytes, little-endian) and `hash`
//! (BLAKE3). Pages are UNCOMPRESSED and PLAIN, without a dictionary: the value in the file is the value in memory. Parquet
//! promises no alignment; readers load unaligned, and the [sidecar](crate::sidecar) exists for kernels.
//!
//! Attachments are rows that are not tensors, such as a tokenizer; small facts live in the footer's key-value metadata.

mod reader;
mod schema;
mod writer;

pub use reader::{QuantizedParts, V2File};
pub use schema::content_hash;
pub use writer::V2Writer;
