//! The bytes of the rows, format 1. The structs here are the format: their fields and order never change; a new format gets
//! new structs, and golden files in `tests/data` keep this one readable.
//!
//! Rows are `postcard` (varint integers, length-prefixed text) behind one byte that names the row's version. The structs
//! mirror those of the domain, so that a field added there does not silently change what is on disk.

use std::borrow::Cow;

use mneme_base::{
    ContentHash, Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, Provenance, SourceLocation, Timestamp,
    TrustTier,
};
use serde::{Deserialize, Serialize};

use crate::domain::{ForgetReceipt, Memory, MemoryKind, MemoryState, RememberReceipt};
use crate::gate::{Usage, kind_number};
use crate::store::OperationResult;

/// The version byte of every row.
const ROW_VERSION: u8 = 1;

/// A row that is not as it was written. The store puts the path to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{row} row {problem}")]
pub(crate) struct RowError {
    row: &'static str,
    problem: String,
}

fn damaged(row: &'static str, problem: impl ToString) -> RowError {
    RowError { row, problem: problem.to_string() }
}

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_extend(row, vec![ROW_VERSION]).expect("plain data in a growing buffer always serialises")
}

fn decode<'a, T: Deserialize<'a>>(row: &'static str, bytes: &'a [u8]) -> Result<T, RowError> {
    match bytes.split_first() {
        Some((&ROW_VERSION, rest)) => postcard::from_bytes(rest).map_err(|error| damaged(row, error)),
        Some((version, _)) => Err(damaged(row, format!("has version {version}, expected {ROW_VERSION}"))),
        None => Err(damaged(row, "is empty")),
    }
}

#[derive(Serialize, Deserialize)]
struct MemoryRow<'a> {
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    kind: u8,
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(borrow)]
    speaker: Option<&'a str>,
    #[serde(borrow)]
    thread: Option<&'a str>,
    position: Option<u64>,
    #[serde(borrow)]
    metadata: Vec<(&'a str, &'a str)>,
    client: &'a str,
    #[serde(borrow)]
    session: Option<&'a str>,
    source: &'a str,
    trust: u8,
    #[serde(borrow)]
    location: Option<(&'a str, u32, u32)>,
    valid_from: i64,
    valid_to: Option<i64>,
    recorded_at: i64,
    supersedes: Option<[u8; 16]>,
    superseded_by: Option<([u8; 16], i64)>,
    state: u8,
    content_hash: [u8; 32],
    evidence: u32,
    redactions: u32,
    lsn: u64,
}

/// The bytes of a memory; its id is the key.
pub(crate) fn encode_memory(memory: &Memory) -> Vec<u8> {
    let provenance = &memory.provenance;
    encode(&MemoryRow {
        namespace: Cow::Borrowed(memory.namespace.as_str()),
        kind: kind_number(memory.kind),
        text: Cow::Borrowed(&memory.text),
        speaker: memory.speaker.as_deref(),
        thread: memory.thread.as_deref(),
        position: memory.position,
        metadata: memory.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        client: &provenance.client,
        session: provenance.session.as_deref(),
        source: &provenance.source,
        trust: match provenance.trust {
            TrustTier::Reported => 1,
            TrustTier::Observed => 2,
            TrustTier::User => 3,
            // Untrusted, and any tier this format does not know: the careful side.
            _ => 0,
        },
        location: provenance.location.as_ref().map(|l| (l.path.as_str(), l.line_first, l.line_last)),
        valid_from: memory.valid_from.as_millis(),
        valid_to: memory.valid_to.map(Timestamp::as_millis),
        recorded_at: memory.recorded_at.as_millis(),
        supersedes: memory.supersedes.map(|id| *id.as_bytes()),
        superseded_by: memory.superseded_by.map(|(id, at)| (*id.as_bytes(), at.as_millis())),
        state: match memory.state {
            MemoryState::Active => 0,
            MemoryState::Quarantined => 1,
            MemoryState::Superseded => 2,
        },
        content_hash: *memory.content_hash.as_bytes(),
        evidence: memory.evidence,
        redactions: memory.redactions,
        lsn: memory.lsn.0,
    })
}

/// Reads a memory back.
pub(crate) fn decode_memory(id: MemoryId, bytes: &[u8]) -> Result<Memory, RowError> {
    let row: MemoryRow<'_> = decode("memory", bytes)?;
    let unknown = |what: &str, number: u8| damaged("memory", format!("has unknown {what} {number}"));
    Ok(Memory {
        id,
        namespace: row.namespace.parse::<Namespace>().map_err(|error| damaged("memory", error))?,
        kind: match row.kind {
            0 => MemoryKind::Note,
            1 => MemoryKind::Message,
            2 => MemoryKind::Fact,
            3 => MemoryKind::Preference,
            4 => MemoryKind::Chunk,
            5 => MemoryKind::Event,
            6 => MemoryKind::Procedure,
            other => return Err(unknown("kind", other)),
        },
        text: row.text.into_owned(),
        speaker: row.speaker.map(str::to_owned),
        thread: row.thread.map(str::to_owned),
        position: row.position,
        metadata: row.metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        provenance: Provenance {
            client: row.client.to_owned(),
            session: row.session.map(str::to_owned),
            source: row.source.to_owned(),
            trust: match row.trust {
                0 => TrustTier::Untrusted,
                1 => TrustTier::Reported,
                2 => TrustTier::Observed,
                3 => TrustTier::User,
                other => return Err(unknown("trust", other)),
            },
            location: row.location.map(|(path, line_first, line_last)| SourceLocation {
                path: path.to_owned(),
                line_first,
                line_last,
            }),
        },
        valid_from: Timestamp::from_millis(row.valid_from),
        valid_to: row.valid_to.map(Timestamp::from_millis),
        recorded_at: Timestamp::from_millis(row.recorded_at),
        supersedes: row.supersedes.map(MemoryId::from_bytes),
        superseded_by: row.superseded_by.map(|(id, at)| (MemoryId::from_bytes(id), Timestamp::from_millis(at))),
        state: match row.state {
            0 => MemoryState::Active,
            1 => MemoryState::Quarantined,
            2 => MemoryState::Superseded,
            other => return Err(unknown("state", other)),
        },
        content_hash: ContentHash::from_bytes(row.content_hash),
        evidence: row.evidence,
        redactions: row.redactions,
        lsn: Lsn(row.lsn),
    })
}

#[derive(Serialize, Deserialize)]
struct ReceiptRow {
    id: [u8; 16],
    lsn: u64,
    duplicate: bool,
    quarantined: bool,
    redactions: u32,
    near_duplicate_of: Option<[u8; 16]>,
}

impl From<&RememberReceipt> for ReceiptRow {
    fn from(receipt: &RememberReceipt) -> Self {
        Self {
            id: *receipt.id.as_bytes(),
            lsn: receipt.lsn.0,
            duplicate: receipt.duplicate,
            quarantined: receipt.quarantined,
            redactions: receipt.redactions,
            near_duplicate_of: receipt.near_duplicate_of.map(|id| *id.as_bytes()),
        }
    }
}

impl From<ReceiptRow> for RememberReceipt {
    fn from(row: ReceiptRow) -> Self {
        Self {
            id: MemoryId::from_bytes(row.id),
            lsn: Lsn(row.lsn),
            duplicate: row.duplicate,
            quarantined: row.quarantined,
            redactions: row.redactions,
            near_duplicate_of: row.near_duplicate_of.map(MemoryId::from_bytes),
        }
    }
}

#[derive(Serialize, Deserialize)]
enum ResultRow {
    Remembered(ReceiptRow),
    Superseded(ReceiptRow),
    Forgotten { ids: Vec<[u8; 16]>, lsn: u64, hidden_at: i64 },
    Corroborated { id: [u8; 16], lsn: u64 },
    Documents { lsn: u64 },
}

#[derive(Serialize, Deserialize)]
struct LedgerRow {
    content_hash: [u8; 32],
    result: ResultRow,
}

/// The bytes of an idempotency row.
pub(crate) fn encode_ledger(content_hash: ContentHash, result: &OperationResult) -> Vec<u8> {
    let result = match result {
        OperationResult::Remembered(receipt) => ResultRow::Remembered(receipt.into()),
        OperationResult::Superseded(receipt) => ResultRow::Superseded(receipt.into()),
        OperationResult::Forgotten(receipt) => ResultRow::Forgotten {
            ids: receipt.ids.iter().map(|id| *id.as_bytes()).collect(),
            lsn: receipt.lsn.0,
            hidden_at: receipt.hidden_at.as_millis(),
        },
        OperationResult::Corroborated { id, lsn } => ResultRow::Corroborated { id: *id.as_bytes(), lsn: lsn.0 },
        OperationResult::Documents { lsn } => ResultRow::Documents { lsn: lsn.0 },
    };
    encode(&LedgerRow { content_hash: *content_hash.as_bytes(), result })
}

/// Reads an idempotency row back. A forget's `purged_at` is not in it: it is known only later.
pub(crate) fn decode_ledger(bytes: &[u8]) -> Result<(ContentHash, OperationResult), RowError> {
    let row: LedgerRow = decode("ledger", bytes)?;
    let result = match row.result {
        ResultRow::Remembered(receipt) => OperationResult::Remembered(receipt.into()),
        ResultRow::Superseded(receipt) => OperationResult::Superseded(receipt.into()),
        ResultRow::Forgotten { ids, lsn, hidden_at } => OperationResult::Forgotten(ForgetReceipt {
            ids: ids.into_iter().map(MemoryId::from_bytes).collect(),
            lsn: Lsn(lsn),
            hidden_at: Timestamp::from_millis(hidden_at),
            purged_at: None,
        }),
        ResultRow::Corroborated { id, lsn } => {
            OperationResult::Corroborated { id: MemoryId::from_bytes(id), lsn: Lsn(lsn) }
        }
        ResultRow::Documents { lsn } => OperationResult::Documents { lsn: Lsn(lsn) },
    };
    Ok((ContentHash::from_bytes(row.content_hash), result))
}

/// What the store counts, in one row that every transaction rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) lsn: u64,
    pub(crate) active: u64,
    pub(crate) quarantined: u64,
    pub(crate) superseded: u64,
    pub(crate) purge_pending: u64,
    pub(crate) embeddings_pending: u64,
    pub(crate) ledger: u64,
}

pub(crate) fn encode_counters(counters: &Counters) -> Vec<u8> {
    encode(counters)
}

pub(crate) fn decode_counters(bytes: &[u8]) -> Result<Counters, RowError> {
    decode("counters", bytes)
}

pub(crate) fn encode_usage(usage: &Usage) -> Vec<u8> {
    encode(&usage.0)
}

pub(crate) fn decode_usage(bytes: &[u8]) -> Result<Usage, RowError> {
    decode("usage", bytes).map(Usage)
}

/// What happened to a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChangeKind {
    Upserted,
    Removed,
    Embedded,
}

/// A journal row: what one transaction changed, by id. The content lies in the tables, so that forgetting it there is enough.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct JournalRow {
    pub(crate) changes: Vec<(u64, ChangeKind, [u8; 16])>,
}

pub(crate) fn encode_journal(row: &JournalRow) -> Vec<u8> {
    encode(row)
}

pub(crate) fn decode_journal(bytes: &[u8]) -> Result<JournalRow, RowError> {
    decode("journal", bytes)
}

#[derive(Serialize, Deserialize)]
struct EmbeddingRow<'a> {
    generation: &'a str,
    dimensions: u32,
    /// `views x dimensions` f32, little-endian.
    #[serde(borrow)]
    components: &'a [u8],
}

/// The bytes of a memory's vectors, exact.
pub(crate) fn encode_embeddings(generation: &EmbeddingGeneration, embeddings: &[Embedding]) -> Vec<u8> {
    let dimensions = embeddings.first().map_or(0, Embedding::dimensions);
    let mut components = Vec::with_capacity(embeddings.len() * dimensions * 4);
    for embedding in embeddings {
        embedding.as_slice().iter().for_each(|x| components.extend_from_slice(&x.to_le_bytes()));
    }
    encode(&EmbeddingRow { generation: &generation.0, dimensions: dimensions as u32, components: &components })
}

/// Reads vectors back.
pub(crate) fn decode_embeddings(bytes: &[u8]) -> Result<(EmbeddingGeneration, Vec<Embedding>), RowError> {
    let row: EmbeddingRow<'_> = decode("embedding", bytes)?;
    let width = row.dimensions as usize * 4;
    if width == 0 || !row.components.len().is_multiple_of(width) {
        return Err(damaged(
            "embedding",
            format!("has {} bytes for {} dimensions", row.components.len(), row.dimensions),
        ));
    }
    let embeddings = row
        .components
        .chunks_exact(width)
        .map(|view| {
            let components = view.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Embedding::normalized(components).map_err(|error| damaged("embedding", error))
        })
        .collect::<Result<_, _>>()?;
    Ok((EmbeddingGeneration(row.generation.to_owned()), embeddings))
}

/// The scalar product of a query and one of a row's vectors; `None` where the row has none of the query's dimensions.
pub(crate) fn dot_with(bytes: &[u8], view: usize, query: &[f32]) -> Option<f32> {
    let row =
        decode::<EmbeddingRow<'_>>("embedding", bytes).ok().filter(|row| row.dimensions as usize == query.len())?;
    let vector = row.components.chunks_exact(query.len() * 4).nth(view)?;
    let components = vector.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Some(components.zip(query).map(|(a, b)| a * b).sum())
}

/// The generation of a row of vectors, without the vectors.
pub(crate) fn generation_of(bytes: &[u8]) -> Result<&str, RowError> {
    decode::<EmbeddingRow<'_>>("embedding", bytes).map(|row| row.generation)
}
