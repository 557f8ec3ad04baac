//! The tables and their versions. What a version says never changes: a new column is a new version.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// The key of the schema's metadata under which a dataset says which table it is.
pub const TABLE_KEY: &str = "mneme.table";
/// The key of the schema's metadata under which a dataset says which version of the table it is.
pub const VERSION_KEY: &str = "mneme.schema_version";

/// A table of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Table {
    /// One row a memory.
    Memories,
    /// One row a memory that has vectors.
    Vectors,
}

impl Table {
    /// Its name: that of the dataset's folder, before `.lance`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memories => "memories",
            Self::Vectors => "vectors",
        }
    }
}

/// One version of one table.
#[derive(Debug, Clone, Copy)]
pub struct SchemaVersion {
    /// The table.
    pub table: Table,
    /// Counts from 1.
    pub version: u32,
    pub(crate) fields: fn(dimensions: usize) -> Vec<Field>,
}

/// Every version that was ever written, newest last. A dataset of an older version is read and filled anew in the newest one; a
/// dataset of a version that is not here was written by a newer build and is refused.
pub const SCHEMA_REGISTRY: &[SchemaVersion] = &[
    SchemaVersion { table: Table::Memories, version: 1, fields: memories_1 },
    SchemaVersion { table: Table::Vectors, version: 1, fields: vectors_1 },
];

/// The newest version of a table.
pub fn newest(table: Table) -> SchemaVersion {
    let versions = SCHEMA_REGISTRY.iter().filter(|version| version.table == table);
    *versions.max_by_key(|version| version.version).expect("every table has a version")
}

impl SchemaVersion {
    /// Its columns. `dimensions` is that of vectors; tables without vectors do not look at it.
    pub fn schema(&self, dimensions: usize) -> SchemaRef {
        let metadata = [(TABLE_KEY, self.table.name().to_owned()), (VERSION_KEY, self.version.to_string())];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Arc::new(Schema::new_with_metadata((self.fields)(dimensions), metadata))
    }
}

/// Milliseconds since 1970, UTC.
pub fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// A vector of f32.
pub fn vector(dimensions: usize) -> DataType {
    let size = i32::try_from(dimensions).expect("embeddings have far fewer dimensions");
    DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), size)
}

fn memories_1(_: usize) -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let maybe = |name: &str| Field::new(name, DataType::Utf8, true);
    vec![
        text("id"),
        text("namespace"),
        text("kind"),
        text("text"),
        maybe("speaker"),
        maybe("thread"),
        Field::new("position", DataType::UInt64, true),
        // A JSON object of texts.
        text("metadata"),
        text("client"),
        maybe("session"),
        text("source"),
        text("trust"),
        maybe("location_path"),
        Field::new("location_line_first", DataType::UInt32, true),
        Field::new("location_line_last", DataType::UInt32, true),
        Field::new("valid_from", time(), false),
        Field::new("valid_to", time(), true),
        Field::new("recorded_at", time(), false),
        maybe("supersedes"),
        maybe("superseded_by"),
        Field::new("superseded_at", time(), true),
        text("state"),
        // 64 hexadecimal digits.
        text("content_hash"),
        Field::new("evidence", DataType::UInt32, false),
        Field::new("redactions", DataType::UInt32, false),
        Field::new("lsn", DataType::UInt64, false),
    ]
}

fn vectors_1(dimensions: usize) -> Vec<Field> {
    vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("generation", DataType::Utf8, false),
        // Of the memory's own text, length 1.
        Field::new("vector", vector(dimensions), false),
        // Of the text with its context.
        Field::new("context_vector", vector(dimensions), true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_gaps() {
        for table in [Table::Memories, Table::Vectors] {
            let versions: Vec<u32> = SCHEMA_REGISTRY
                .iter()
                .filter(|version| version.table == table)
                .map(|version| version.version)
                .collect();
            assert_eq!(versions, (1..=versions.len() as u32).collect::<Vec<_>>());
            assert_eq!(newest(table).version as usize, versions.len());
        }
    }

    #[test]
    fn a_schema_says_which_table_and_version_it_is() {
        let schema = newest(Table::Vectors).schema(384);
        assert_eq!(schema.metadata().get(TABLE_KEY).map(String::as_str), Some("vectors"));
        assert_eq!(schema.metadata().get(VERSION_KEY).map(String::as_str), Some("1"));
        assert_eq!(schema.field_with_name("vector").map(|field| field.data_type().clone()).ok(), Some(vector(384)));
    }
}
