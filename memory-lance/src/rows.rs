//! Memories as columns and back, without loss.

use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray, TimestampMillisecondArray,
    UInt32Array, UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Float32Type, TimestampMillisecondType, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use mneme_base::{Embedding, EmbeddingGeneration, Lsn, MemoryId, Provenance, SourceLocation, Timestamp};
use mneme_memory::{Memory, Metadata};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::schema::{Table, newest};

/// A row that cannot be turned into a memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row}, column {column}: {problem}")]
pub struct RowError {
    /// Which row of its batch, from 0.
    pub row: usize,
    /// Which column.
    pub column: String,
    /// What is wrong.
    pub problem: String,
}

fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // A unit variant of an enum is always a string.
        other => unreachable!("names of enums are strings, not {other:?}"),
    }
}

fn texts<'a>(memories: &'a [Memory], value: impl Fn(&'a Memory) -> Option<&'a str>) -> ArrayRef {
    Arc::new(memories.iter().map(value).collect::<StringArray>())
}

fn owned(memories: &[Memory], value: impl Fn(&Memory) -> Option<String>) -> ArrayRef {
    Arc::new(memories.iter().map(value).collect::<StringArray>())
}

fn times(memories: &[Memory], value: impl Fn(&Memory) -> Option<Timestamp>) -> ArrayRef {
    let column: TimestampMillisecondArray =
        memories.iter().map(|memory| value(memory).map(Timestamp::as_millis)).collect();
    Arc::new(column.with_timezone("UTC"))
}

fn counts(memories: &[Memory], value: impl Fn(&Memory) -> Option<u32>) -> ArrayRef {
    Arc::new(memories.iter().map(value).collect::<UInt32Array>())
}

fn large(memories: &[Memory], value: impl Fn(&Memory) -> Option<u64>) -> ArrayRef {
    Arc::new(memories.iter().map(value).collect::<UInt64Array>())
}

/// Memories as a batch of the newest version of [`Table::Memories`].
pub fn memories_to_batch(memories: &[Memory]) -> Result<RecordBatch, ArrowError> {
    let json = |metadata: &Metadata| serde_json::to_string(metadata).expect("a map of texts is always JSON");
    let columns = vec![
        owned(memories, |memory| Some(memory.id.to_string())),
        texts(memories, |memory| Some(memory.namespace.as_str())),
        owned(memories, |memory| Some(name_of(&memory.kind))),
        texts(memories, |memory| Some(&memory.text)),
        texts(memories, |memory| memory.speaker.as_deref()),
        texts(memories, |memory| memory.thread.as_deref()),
        large(memories, |memory| memory.position),
        owned(memories, |memory| Some(json(&memory.metadata))),
        texts(memories, |memory| Some(&memory.provenance.client)),
        texts(memories, |memory| memory.provenance.session.as_deref()),
        texts(memories, |memory| Some(&memory.provenance.source)),
        owned(memories, |memory| Some(name_of(&memory.provenance.trust))),
        texts(memories, |memory| memory.provenance.location.as_ref().map(|location| location.path.as_str())),
        counts(memories, |memory| memory.provenance.location.as_ref().map(|location| location.line_first)),
        counts(memories, |memory| memory.provenance.location.as_ref().map(|location| location.line_last)),
        times(memories, |memory| Some(memory.valid_from)),
        times(memories, |memory| memory.valid_to),
        times(memories, |memory| Some(memory.recorded_at)),
        owned(memories, |memory| memory.supersedes.map(|id| id.to_string())),
        owned(memories, |memory| memory.superseded_by.map(|(id, _)| id.to_string())),
        times(memories, |memory| memory.superseded_by.map(|(_, at)| at)),
        owned(memories, |memory| Some(name_of(&memory.state))),
        owned(memories, |memory| Some(memory.content_hash.to_string())),
        counts(memories, |memory| Some(memory.evidence)),
        counts(memories, |memory| Some(memory.redactions)),
        large(memories, |memory| Some(memory.lsn.0)),
    ];
    RecordBatch::try_new(newest(Table::Memories).schema(0), columns)
}

/// The columns of a batch by name, with errors that say where.
struct Reader<'a> {
    batch: &'a RecordBatch,
    row: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, column: &str, problem: impl ToString) -> RowError {
        RowError { row: self.row, column: column.to_owned(), problem: problem.to_string() }
    }

    fn column(&self, name: &str, expected: &DataType) -> Result<&'a ArrayRef, RowError> {
        let Some(column) = self.batch.column_by_name(name) else { return Err(self.error(name, "is missing")) };
        if column.data_type() != expected {
            return Err(self.error(name, format!("has type {}, expected is {expected}", column.data_type())));
        }
        Ok(column)
    }

    fn maybe(&self, name: &str) -> Result<Option<&'a str>, RowError> {
        let column = self.column(name, &DataType::Utf8)?.as_string::<i32>();
        Ok((!column.is_null(self.row)).then(|| column.value(self.row)))
    }

    fn text(&self, name: &str) -> Result<&'a str, RowError> {
        self.maybe(name)?.ok_or_else(|| self.error(name, "is null"))
    }

    fn parsed<T: FromStr<Err: ToString>>(&self, name: &str) -> Result<T, RowError> {
        self.text(name)?.parse().map_err(|error: T::Err| self.error(name, error.to_string()))
    }

    fn named<T: DeserializeOwned>(&self, name: &str) -> Result<T, RowError> {
        let value = serde_json::Value::String(self.text(name)?.to_owned());
        serde_json::from_value(value).map_err(|error| self.error(name, error))
    }

    fn id(&self, name: &str) -> Result<Option<MemoryId>, RowError> {
        self.maybe(name)?.map(|text| text.parse().map_err(|error| self.error(name, format!("{error}")))).transpose()
    }

    fn time(&self, name: &str) -> Result<Option<Timestamp>, RowError> {
        let column = self.column(name, &crate::schema::time())?.as_primitive::<TimestampMillisecondType>();
        Ok((!column.is_null(self.row)).then(|| Timestamp::from_millis(column.value(self.row))))
    }

    fn moment(&self, name: &str) -> Result<Timestamp, RowError> {
        self.time(name)?.ok_or_else(|| self.error(name, "is null"))
    }

    fn count(&self, name: &str) -> Result<Option<u32>, RowError> {
        let column = self.column(name, &DataType::UInt32)?.as_primitive::<UInt32Type>();
        Ok((!column.is_null(self.row)).then(|| column.value(self.row)))
    }

    fn large(&self, name: &str) -> Result<Option<u64>, RowError> {
        let column = self.column(name, &DataType::UInt64)?.as_primitive::<UInt64Type>();
        Ok((!column.is_null(self.row)).then(|| column.value(self.row)))
    }

    fn memory(&self) -> Result<Memory, RowError> {
        let null = |name: &'static str| move || self.error(name, "is null");
        let location =
            match (self.maybe("location_path")?, self.count("location_line_first")?, self.count("location_line_last")?)
            {
                (Some(path), Some(line_first), Some(line_last)) => {
                    Some(SourceLocation { path: path.to_owned(), line_first, line_last })
                }
                (None, ..) => None,
                _ => return Err(self.error("location_path", "has no lines")),
            };
        let metadata: Metadata =
            serde_json::from_str(self.text("metadata")?).map_err(|error| self.error("metadata", error))?;
        Ok(Memory {
            id: self.id("id")?.ok_or_else(null("id"))?,
            namespace: self.parsed("namespace")?,
            kind: self.named("kind")?,
            text: self.text("text")?.to_owned(),
            speaker: self.maybe("speaker")?.map(str::to_owned),
            thread: self.maybe("thread")?.map(str::to_owned),
            position: self.large("position")?,
            metadata,
            provenance: Provenance {
                client: self.text("client")?.to_owned(),
                session: self.maybe("session")?.map(str::to_owned),
                source: self.text("source")?.to_owned(),
                trust: self.named("trust")?,
                location,
            },
            valid_from: self.moment("valid_from")?,
            valid_to: self.time("valid_to")?,
            recorded_at: self.moment("recorded_at")?,
            supersedes: self.id("supersedes")?,
            superseded_by: match (self.id("superseded_by")?, self.time("superseded_at")?) {
                (Some(by), Some(at)) => Some((by, at)),
                (None, None) => None,
                _ => {
                    return Err(self.error("superseded_at", "is null where superseded_by is not, or not where that is"));
                }
            },
            state: self.named("state")?,
            content_hash: self.parsed("content_hash")?,
            evidence: self.count("evidence")?.ok_or_else(null("evidence"))?,
            redactions: self.count("redactions")?.ok_or_else(null("redactions"))?,
            lsn: Lsn(self.large("lsn")?.ok_or_else(null("lsn"))?),
        })
    }
}

/// The memories of a batch of [`Table::Memories`].
pub fn batch_to_memories(batch: &RecordBatch) -> Result<Vec<Memory>, RowError> {
    (0..batch.num_rows()).map(|row| Reader { batch, row }.memory()).collect()
}

/// Vectors of one memory: of its own text, and of its text with context.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorRow {
    /// Which memory.
    pub id: MemoryId,
    /// What they were made with.
    pub generation: EmbeddingGeneration,
    /// One or two vectors of the same dimensions.
    pub embeddings: Vec<Embedding>,
}

/// Vectors as a batch of the newest version of [`Table::Vectors`]; every row has `dimensions`.
pub fn vectors_to_batch(rows: &[VectorRow], dimensions: usize) -> Result<RecordBatch, ArrowError> {
    let view = |at: usize| -> Result<ArrayRef, ArrowError> {
        let present = rows.iter().map(|row| row.embeddings.len() > at).collect::<NullBuffer>();
        let mut values = Vec::with_capacity(rows.len() * dimensions);
        for row in rows {
            match row.embeddings.get(at).map(Embedding::as_slice).filter(|vector| vector.len() == dimensions) {
                Some(vector) => values.extend_from_slice(vector),
                None => values.resize(values.len() + dimensions, 0.0),
            }
        }
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let size = i32::try_from(dimensions).map_err(|error| ArrowError::InvalidArgumentError(error.to_string()))?;
        Ok(Arc::new(FixedSizeListArray::try_new(item, size, Arc::new(Float32Array::from(values)), Some(present))?))
    };
    let ids: StringArray = rows.iter().map(|row| Some(row.id.to_string())).collect();
    let generations: StringArray = rows.iter().map(|row| Some(row.generation.0.as_str())).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(generations), view(0)?, view(1)?];
    RecordBatch::try_new(newest(Table::Vectors).schema(dimensions), columns)
}

/// The vectors of a batch of [`Table::Vectors`].
pub fn batch_to_vectors(batch: &RecordBatch) -> Result<Vec<VectorRow>, RowError> {
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let reader = Reader { batch, row };
        let mut embeddings = Vec::with_capacity(2);
        for name in ["vector", "context_vector"] {
            let Some(column) = batch.column_by_name(name).and_then(|column| column.as_fixed_size_list_opt()) else {
                return Err(reader.error(name, "is no list of vectors"));
            };
            if column.is_null(row) {
                continue;
            }
            let values = column.value(row);
            let Some(values) = values.as_primitive_opt::<Float32Type>() else {
                return Err(reader.error(name, "does not hold f32"));
            };
            let vector = Embedding::normalized(values.values().to_vec());
            embeddings.push(vector.map_err(|error| reader.error(name, error))?);
        }
        let id = reader.parsed("id")?;
        rows.push(VectorRow { id, generation: EmbeddingGeneration(reader.text("generation")?.to_owned()), embeddings });
    }
    Ok(rows)
}
