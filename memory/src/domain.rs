//! The nouns of the memory: what is stored, what is asked, what comes back.

use std::collections::BTreeMap;
use std::fmt;

use mneme_base::{ContentHash, EmbeddingGeneration, Lsn, MemoryId, Namespace, Provenance, Score, Timestamp, TrustTier};
use serde::{Deserialize, Serialize};

/// A memory's text is at most this long (bytes); longer material is chunked before it is remembered.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
/// A memory has at most this many metadata entries.
pub const METADATA_ENTRIES_MAX: usize = 64;
/// A metadata key and its value together are at most this long (bytes).
pub const METADATA_ENTRY_BYTES_MAX: usize = 4 << 10;
/// A recall returns at most this many hits.
pub const RECALL_LIMIT_MAX: usize = 1_000;
/// A recall's query text is at most this long (bytes).
pub const QUERY_BYTES_MAX: usize = 16 << 10;

/// Free key-value notes on a memory.
pub type Metadata = BTreeMap<String, String>;

/// What sort of thing a memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemoryKind {
    /// A note or observation.
    #[default]
    Note,
    /// One turn of a conversation.
    Message,
    /// A statement held to be true for a while.
    Fact,
    /// How the user wants things to be.
    Preference,
    /// A piece of a document.
    Chunk,
    /// An event with a time.
    Event,
    /// How to do something.
    Procedure,
}

/// Whether a memory takes part in recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemoryState {
    /// Recalled.
    #[default]
    Active,
    /// From an untrusted source: recalled only when asked for, always labelled.
    Quarantined,
    /// Replaced by a later memory: recalled only for an `as_of` before its replacement.
    Superseded,
}

/// What a client wants remembered. Everything but the text has a default.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct NewMemory {
    /// The drawer it goes into.
    pub namespace: Namespace,
    /// What sort of thing it is.
    pub kind: MemoryKind,
    /// The text, 1 to [`TEXT_BYTES_MAX`] bytes.
    pub text: String,
    /// Who says it, when it is a message.
    pub speaker: Option<String>,
    /// The conversation or document it is part of: neighbours in it give context to embedding and ranking.
    pub thread: Option<String>,
    /// Its place in the thread; neighbours are the nearest positions.
    pub position: Option<u64>,
    /// Free notes.
    pub metadata: Metadata,
    /// Where it came from.
    pub provenance: Provenance,
    /// When it starts to be true; the time of the event or message. Default: when it is recorded.
    pub valid_from: Option<Timestamp>,
    /// When it stops being true.
    pub valid_to: Option<Timestamp>,
}

impl NewMemory {
    /// A note by the user in a namespace.
    pub fn note(namespace: Namespace, text: impl Into<String>, client: &str) -> Self {
        Self {
            namespace,
            kind: MemoryKind::Note,
            text: text.into(),
            speaker: None,
            thread: None,
            position: None,
            metadata: Metadata::new(),
            provenance: Provenance::user(client),
            valid_from: None,
            valid_to: None,
        }
    }
}

// The content of memories never reaches a log: Debug hides it.
impl fmt::Debug for NewMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewMemory")
            .field("namespace", &self.namespace)
            .field("kind", &self.kind)
            .field("text_bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}

/// A stored memory.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Its name, for ever.
    pub id: MemoryId,
    /// The drawer it lies in.
    pub namespace: Namespace,
    /// What sort of thing it is.
    pub kind: MemoryKind,
    /// The text, after redaction of secrets.
    pub text: String,
    /// Who says it.
    pub speaker: Option<String>,
    /// The conversation or document it is part of.
    pub thread: Option<String>,
    /// Its place in the thread.
    pub position: Option<u64>,
    /// Free notes.
    pub metadata: Metadata,
    /// Where it came from; never changed.
    pub provenance: Provenance,
    /// When it starts to be true.
    pub valid_from: Timestamp,
    /// When it stops being true.
    pub valid_to: Option<Timestamp>,
    /// When it was recorded; the second axis of time.
    pub recorded_at: Timestamp,
    /// The memory that this one replaces.
    pub supersedes: Option<MemoryId>,
    /// The memory that replaces this one, and when that was recorded.
    pub superseded_by: Option<(MemoryId, Timestamp)>,
    /// Whether it takes part in recall.
    pub state: MemoryState,
    /// Hash of namespace, kind, speaker, thread and text; equal hashes are exact duplicates.
    pub content_hash: ContentHash,
    /// How many times the same content was brought again: evidence, kept as a count and not as copies.
    pub evidence: u32,
    /// How many secrets were redacted before it was journaled.
    pub redactions: u32,
    /// The journal place of its last change.
    pub lsn: Lsn,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("id", &self.id)
            .field("namespace", &self.namespace)
            .field("kind", &self.kind)
            .field("state", &self.state)
            .field("lsn", &self.lsn)
            .field("text_bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}

/// Which memories a recall may return. Empty lists mean "any".
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RecallFilter {
    /// Only these kinds.
    pub kinds: Vec<MemoryKind>,
    /// Only these sources (exact, or a prefix ending in `*`).
    pub sources: Vec<String>,
    /// Only these speakers (case is ignored).
    pub speakers: Vec<String>,
    /// Only these threads.
    pub threads: Vec<String>,
    /// Only memories at least this trusted.
    pub trust_min: Option<TrustTier>,
    /// Only memories valid at or after this moment.
    pub valid_after: Option<Timestamp>,
    /// Only memories valid before this moment.
    pub valid_before: Option<Timestamp>,
    /// Also memories in quarantine.
    pub include_quarantined: bool,
    /// Only memories with all of these metadata entries.
    pub metadata: Metadata,
}

/// A question to the memory.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RecallQuery {
    /// The drawers to look in; at least one.
    pub namespaces: Vec<Namespace>,
    /// What is asked, 1 to [`QUERY_BYTES_MAX`] bytes. Phrases in double quotes must occur as they stand.
    pub text: String,
    /// How many hits at most, 1 to [`RECALL_LIMIT_MAX`].
    pub limit: usize,
    /// Which memories may be returned.
    pub filter: RecallFilter,
    /// Answer as the memory stood at this moment of recording.
    pub as_of: Option<Timestamp>,
    /// Trade relevance against variety: 0 is pure relevance (default), 1 pure variety (maximal marginal relevance).
    pub diversity: f32,
    /// Say for each hit how it came to its place.
    pub explain: bool,
    /// The moment that "yesterday" and "last week" are counted from. Default: now.
    pub reference_time: Option<Timestamp>,
}

impl RecallQuery {
    /// A plain question to one namespace.
    pub fn new(namespace: Namespace, text: impl Into<String>, limit: usize) -> Self {
        Self {
            namespaces: vec![namespace],
            text: text.into(),
            limit,
            filter: RecallFilter::default(),
            as_of: None,
            diversity: 0.0,
            explain: false,
            reference_time: None,
        }
    }
}

impl fmt::Debug for RecallQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecallQuery")
            .field("namespaces", &self.namespaces)
            .field("limit", &self.limit)
            .field("text_bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}

/// One ranking's contribution to a hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// The ranking, such as `bm25`, `dense`, `bm25_window`, `dense_context`, `time`, `speaker`, `rerank`.
    pub name: String,
    /// The place in that ranking, from 1; 0 for a boost that is no ranking.
    pub rank: u32,
    /// That ranking's own score.
    pub score: f32,
    /// What it added to the fused score.
    pub contribution: f32,
}

/// How a hit came to its place.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HitExplanation {
    /// Every ranking that saw it.
    pub signals: Vec<Signal>,
    /// The query's terms that it contains, as stemmed.
    pub matched_terms: Vec<String>,
}

/// One remembered thing that answers a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The memory, whole.
    pub memory: Memory,
    /// The fused score: comparable within one recall only.
    pub score: Score,
    /// How it came to its place, when asked for.
    pub explanation: Option<HitExplanation>,
}

/// The answer to a [`RecallQuery`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Recall {
    /// The hits, best first.
    pub hits: Vec<Hit>,
    /// What was not available, such as `embedding`: the answer is from the rest.
    pub degraded: Vec<String>,
    /// Calibrated: probably nothing in the memory answers this. Hits are still given, as leads.
    pub abstain: bool,
    /// The estimated probability that at least one hit is relevant, 0 to 1.
    pub confidence: f32,
    /// The last change that this answer has seen.
    pub lsn: Lsn,
}

/// What happened to one remembered thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberReceipt {
    /// The memory that now holds the content; an older one when it was an exact duplicate.
    pub id: MemoryId,
    /// Its place in the journal.
    pub lsn: Lsn,
    /// The content was known already: its evidence count grew.
    pub duplicate: bool,
    /// It went into quarantine.
    pub quarantined: bool,
    /// Secrets that were taken out before it was written.
    pub redactions: u32,
    /// A memory that says nearly the same, if there is one.
    pub near_duplicate_of: Option<MemoryId>,
}

/// Which memories to forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForgetSelector {
    /// These memories.
    Ids(Vec<MemoryId>),
    /// Everything that came from this source (revoke).
    Source(String),
    /// A whole namespace.
    Namespace(Namespace),
    /// Everything of one thread of a namespace, such as a watched file.
    Thread {
        /// The namespace.
        namespace: Namespace,
        /// The thread.
        thread: String,
    },
}

/// The receipt of a forget: what is hidden now, and whether it is gone from every file yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetReceipt {
    /// The memories that no recall, get or export returns any more.
    pub ids: Vec<MemoryId>,
    /// The journal place of the forget.
    pub lsn: Lsn,
    /// When they were hidden.
    pub hidden_at: Timestamp,
    /// When their bytes were gone from every file; `None` while the purge is outstanding (at most 24 h).
    pub purged_at: Option<Timestamp>,
}

/// Names the embedding model and recipe that stored vectors were made with.
pub type Generation = EmbeddingGeneration;
