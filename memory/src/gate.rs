//! The write gate: what may become a memory, and in which shape. Every store sends every write through it, before anything
//! is journaled: bounds, redaction of secrets, the content hash, quarantine, quotas.

use mneme_base::{ContentHash, MemoryId, Namespace, OpId, Timestamp, TrustTier};

use crate::domain::{
    METADATA_ENTRIES_MAX, METADATA_ENTRY_BYTES_MAX, Memory, MemoryKind, MemoryState, NewMemory, QUERY_BYTES_MAX,
    RECALL_LIMIT_MAX, RecallQuery, TEXT_BYTES_MAX,
};
use crate::store::{Document, Refusal, StoreError};

/// A speaker's name is at most this long (bytes).
pub const SPEAKER_BYTES_MAX: usize = 256;
/// A thread's name is at most this long (bytes): a file path fits.
pub const THREAD_BYTES_MAX: usize = 4 << 10;
/// A client's or session's name is at most this long (bytes).
pub const CLIENT_BYTES_MAX: usize = 256;
/// A source's name is at most this long (bytes): a file path fits.
pub const SOURCE_BYTES_MAX: usize = 4 << 10;
/// The path or URI of a location is at most this long (bytes).
pub const LOCATION_BYTES_MAX: usize = 4 << 10;
/// One forget names at most this many ids; more go into several operations.
pub const FORGET_IDS_MAX: usize = 100_000;
/// A collection's name is at most this long (bytes).
pub const COLLECTION_BYTES_MAX: usize = 64;
/// A document's key is at most this long (bytes).
pub const DOCUMENT_KEY_BYTES_MAX: usize = 1 << 10;
/// A document's value is at most this long (bytes): larger things are files, and the document names them.
pub const DOCUMENT_VALUE_BYTES_MAX: usize = 4 << 20;
/// One operation writes at most this many documents.
pub const DOCUMENTS_MAX: usize = 1_000;
/// Times lie between the years 0001 and 9999, so that each has an RFC 3339 form (milliseconds since 1970).
pub(crate) const TIME_MILLIS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_207_199_999;

/// The stretch that quotas count in, in pieces (ms).
pub const QUOTA_BUCKET_MS: i64 = 5 * 60 * 1_000;
/// Pieces of the quota's hour.
pub const QUOTA_BUCKETS: i64 = 12;

/// How many memories a source may write in an hour, by how far it is trusted. `None` is without bound.
///
/// A watched file or a person is not limited; an agent gets room for an import; what comes from outside gets little, so that
/// a page that an agent reads in a loop cannot fill the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// For [`TrustTier::Untrusted`].
    pub untrusted: Option<u64>,
    /// For [`TrustTier::Reported`].
    pub reported: Option<u64>,
    /// For [`TrustTier::Observed`].
    pub observed: Option<u64>,
    /// For [`TrustTier::User`].
    pub user: Option<u64>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { untrusted: Some(2_000), reported: Some(200_000), observed: None, user: None }
    }
}

impl Quotas {
    /// No bounds.
    pub const UNLIMITED: Self = Self { untrusted: None, reported: None, observed: None, user: None };

    /// The bound of a tier.
    pub const fn of(&self, trust: TrustTier) -> Option<u64> {
        match trust {
            TrustTier::Reported => self.reported,
            TrustTier::Observed => self.observed,
            TrustTier::User => self.user,
            // Untrusted, and any tier that is not known here: the careful side.
            _ => self.untrusted,
        }
    }
}

/// What a source wrote lately: counts per piece of time, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage(pub Vec<(i64, u64)>);

impl Usage {
    /// Counts one write, or refuses it.
    pub fn admit(&mut self, source: &str, quota: Option<u64>, now: Timestamp) -> Result<(), Refusal> {
        let bucket = now.as_millis().div_euclid(QUOTA_BUCKET_MS);
        self.0.retain(|(at, _)| *at > bucket - QUOTA_BUCKETS && *at <= bucket);
        let written = self.0.iter().map(|(_, count)| count).sum();
        if let Some(quota) = quota
            && written >= quota
        {
            let oldest = self.0.first().map_or(bucket, |(at, _)| *at);
            let free_at = (oldest + QUOTA_BUCKETS).saturating_mul(QUOTA_BUCKET_MS);
            return Err(Refusal::QuotaExceeded {
                source_name: source.to_owned(),
                written,
                quota,
                retry_after_ms: u64::try_from(free_at.saturating_sub(now.as_millis())).unwrap_or(0).max(1),
            });
        }
        match self.0.last_mut() {
            Some((at, count)) if *at == bucket => *count += 1,
            _ => self.0.push((bucket, 1)),
        }
        Ok(())
    }
}

/// A new memory that may be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// The memory, without secrets.
    pub memory: NewMemory,
    /// How many secrets were taken out.
    pub redactions: u32,
    /// By which exact duplicates are found.
    pub content_hash: ContentHash,
    /// Active, or in quarantine when its source is not trusted.
    pub state: MemoryState,
}

fn invalid(field: &'static str, problem: String) -> Refusal {
    Refusal::Invalid { field, problem }
}

fn bounded(field: &'static str, text: &str, bytes_min: usize, bytes_max: usize) -> Result<(), Refusal> {
    if text.len() < bytes_min {
        return Err(invalid(field, "is empty".into()));
    }
    if text.len() > bytes_max {
        return Err(invalid(field, format!("has {} bytes, at most {bytes_max} are allowed", text.len())));
    }
    // NUL separates the parts of keys.
    if text.contains('\0') && field != "text" {
        return Err(invalid(field, "contains a NUL character".into()));
    }
    Ok(())
}

fn bounded_time(field: &'static str, time: Option<Timestamp>) -> Result<(), Refusal> {
    match time {
        Some(time) if !TIME_MILLIS.contains(&time.as_millis()) => {
            Err(invalid(field, format!("is {} ms, allowed are the years 0001 to 9999", time.as_millis())))
        }
        _ => Ok(()),
    }
}

/// Checks bounds, takes secrets out and computes what the stores need.
pub fn admit(memory: &NewMemory) -> Result<Admitted, Refusal> {
    check(memory)?;
    let mut memory = memory.clone();
    let redactions = redact(&mut memory);
    // A placeholder can be longer than the secret that it replaces: what is stored keeps to the bounds too.
    check(&memory)?;
    let content_hash = content_hash(&memory);
    let state = initial_state(memory.provenance.trust);
    Ok(Admitted { memory, redactions, content_hash, state })
}

/// Checks a memory that comes from elsewhere as it is, takes secrets out and computes its hash anew.
pub fn admit_stored(memory: Memory) -> Result<Memory, Refusal> {
    let as_new = NewMemory {
        namespace: memory.namespace.clone(),
        kind: memory.kind,
        text: memory.text,
        speaker: memory.speaker,
        thread: memory.thread,
        position: memory.position,
        metadata: memory.metadata,
        provenance: memory.provenance,
        valid_from: Some(memory.valid_from),
        valid_to: memory.valid_to,
    };
    bounded_time("recorded_at", Some(memory.recorded_at))?;
    if (memory.state == MemoryState::Superseded) != memory.superseded_by.is_some() {
        return Err(invalid("state", "does not agree with superseded_by".into()));
    }
    let Admitted { memory: checked, redactions, content_hash, .. } = admit(&as_new)?;
    Ok(Memory {
        id: memory.id,
        namespace: memory.namespace,
        kind: memory.kind,
        text: checked.text,
        speaker: checked.speaker,
        thread: checked.thread,
        position: checked.position,
        metadata: checked.metadata,
        provenance: checked.provenance,
        valid_from: memory.valid_from,
        valid_to: memory.valid_to,
        recorded_at: memory.recorded_at,
        supersedes: memory.supersedes,
        superseded_by: memory.superseded_by,
        state: memory.state,
        content_hash,
        evidence: memory.evidence,
        redactions: memory.redactions.saturating_add(redactions),
        lsn: memory.lsn,
    })
}

/// When a memory starts to be true: as it says, or now; something that is over already, no later than its end.
pub fn valid_from(memory: &NewMemory, now: Timestamp) -> Timestamp {
    memory.valid_from.unwrap_or_else(|| memory.valid_to.map_or(now, |end| end.min(now)))
}

/// The state in which a memory of this trust starts.
pub const fn initial_state(trust: TrustTier) -> MemoryState {
    match trust {
        TrustTier::Untrusted => MemoryState::Quarantined,
        _ => MemoryState::Active,
    }
}

fn check(memory: &NewMemory) -> Result<(), Refusal> {
    bounded("text", &memory.text, 1, TEXT_BYTES_MAX)?;
    if memory.text.trim().is_empty() {
        return Err(invalid("text", "is blank".into()));
    }
    bounded("speaker", memory.speaker.as_deref().unwrap_or("x"), 1, SPEAKER_BYTES_MAX)?;
    bounded("thread", memory.thread.as_deref().unwrap_or("x"), 1, THREAD_BYTES_MAX)?;
    if memory.metadata.len() > METADATA_ENTRIES_MAX {
        let problem = format!("has {} entries, at most {METADATA_ENTRIES_MAX} are allowed", memory.metadata.len());
        return Err(invalid("metadata", problem));
    }
    for (key, value) in &memory.metadata {
        bounded("metadata", key, 1, METADATA_ENTRY_BYTES_MAX)?;
        let bytes = key.len() + value.len();
        if bytes > METADATA_ENTRY_BYTES_MAX {
            let problem = format!("entry has {bytes} bytes, at most {METADATA_ENTRY_BYTES_MAX} are allowed");
            return Err(invalid("metadata", problem));
        }
    }
    let provenance = &memory.provenance;
    bounded("provenance.client", &provenance.client, 1, CLIENT_BYTES_MAX)?;
    bounded("provenance.session", provenance.session.as_deref().unwrap_or("x"), 1, CLIENT_BYTES_MAX)?;
    bounded("provenance.source", &provenance.source, 1, SOURCE_BYTES_MAX)?;
    if let Some(location) = &provenance.location {
        bounded("provenance.location.path", &location.path, 1, LOCATION_BYTES_MAX)?;
        if location.line_first > location.line_last {
            let problem = format!("lines {} to {} run backwards", location.line_first, location.line_last);
            return Err(invalid("provenance.location", problem));
        }
    }
    bounded_time("valid_from", memory.valid_from)?;
    bounded_time("valid_to", memory.valid_to)?;
    if let (Some(from), Some(to)) = (memory.valid_from, memory.valid_to)
        && to < from
    {
        return Err(invalid("valid_to", format!("{to} is before valid_from {from}")));
    }
    Ok(())
}

/// Takes secrets out of everything that a person or program wrote freely: the text, the metadata values, the path or URI.
/// Returns how many there were.
fn redact(memory: &mut NewMemory) -> u32 {
    let path = memory.provenance.location.as_mut().map(|location| &mut location.path);
    let parts = std::iter::once(&mut memory.text).chain(memory.metadata.values_mut()).chain(path);
    let mut found = 0;
    for part in parts {
        let redacted = mneme_text::redact(part);
        if !redacted.findings.is_empty() {
            found += redacted.findings.len();
            *part = redacted.text.into_owned();
        }
    }
    u32::try_from(found).unwrap_or(u32::MAX)
}

/// Hash of namespace, kind, speaker, thread and text, each with its length so that no two contents run together.
pub fn content_hash(memory: &NewMemory) -> ContentHash {
    hash_of(&memory.namespace, memory.kind, memory.speaker.as_deref(), memory.thread.as_deref(), &memory.text)
}

/// See [`content_hash`].
pub fn hash_of(
    namespace: &Namespace,
    kind: MemoryKind,
    speaker: Option<&str>,
    thread: Option<&str>,
    text: &str,
) -> ContentHash {
    let mut bytes = Vec::with_capacity(text.len() + 128);
    bytes.push(kind_number(kind));
    for part in [Some(namespace.as_str()), speaker, thread, Some(text)] {
        // An absent part differs from an empty one.
        bytes.extend_from_slice(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.unwrap_or_default().as_bytes());
    }
    ContentHash::of(&bytes)
}

/// The number of a kind on disk: never given a second meaning.
pub const fn kind_number(kind: MemoryKind) -> u8 {
    match kind {
        MemoryKind::Note => 0,
        MemoryKind::Message => 1,
        MemoryKind::Fact => 2,
        MemoryKind::Preference => 3,
        MemoryKind::Chunk => 4,
        MemoryKind::Event => 5,
        MemoryKind::Procedure => 6,
    }
}

/// The id of the memory that an operation makes: a UUIDv7 whose random part follows from the operation and its place in the
/// journal, so that replaying gives the same id and every store gives the same.
pub fn memory_id(now: Timestamp, op_id: OpId, lsn: u64) -> MemoryId {
    let mut seed = op_id.to_bytes().to_vec();
    seed.extend_from_slice(&lsn.to_be_bytes());
    let hash = ContentHash::of(&seed);
    let millis = now.as_millis().max(0).to_be_bytes();
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis[2..]);
    // Twelve bits of the LSN: ids of one millisecond keep the order of the journal.
    bytes[6] = 0x70 | ((lsn >> 8) & 0x0f) as u8;
    bytes[7] = lsn as u8;
    bytes[8..].copy_from_slice(&hash.as_bytes()[..8]);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    MemoryId::from_bytes(bytes)
}

/// Whether a memory of one trust may take the place of a memory of another. What is replaced is hidden: what is trusted less hides
/// nothing that is trusted more, so that an agent that was misled cannot make the user's own word go away.
pub fn may_supersede(new: TrustTier, old: TrustTier) -> Result<(), Refusal> {
    if new < old {
        let (new, old) = (name_of(new), name_of(old));
        let problem = format!("{new} may not replace a memory of trust {old}; remember it beside that one");
        return Err(invalid("provenance.trust", problem));
    }
    Ok(())
}

/// A trust as it is written on the wire.
const fn name_of(trust: TrustTier) -> &'static str {
    match trust {
        TrustTier::Untrusted => "untrusted",
        TrustTier::Reported => "reported",
        TrustTier::Observed => "observed",
        TrustTier::User => "user",
        // A tier of a later version.
        _ => "unknown",
    }
}

/// Checks the ids of a forget.
pub fn check_forget_ids(count: usize) -> Result<(), Refusal> {
    if count > FORGET_IDS_MAX {
        return Err(invalid("ids", format!("has {count} entries, at most {FORGET_IDS_MAX} are allowed")));
    }
    Ok(())
}

/// Checks rows of other parts.
pub fn check_documents(documents: &[Document]) -> Result<(), Refusal> {
    if documents.len() > DOCUMENTS_MAX {
        return Err(invalid("documents", format!("has {} rows, at most {DOCUMENTS_MAX} are allowed", documents.len())));
    }
    for document in documents {
        bounded("collection", &document.collection, 1, COLLECTION_BYTES_MAX)?;
        bounded("key", &document.key, 1, DOCUMENT_KEY_BYTES_MAX)?;
        let bytes = document.value.as_ref().map_or(0, Vec::len);
        if bytes > DOCUMENT_VALUE_BYTES_MAX {
            let problem = format!("has {bytes} bytes, at most {DOCUMENT_VALUE_BYTES_MAX} are allowed");
            return Err(invalid("value", problem));
        }
    }
    Ok(())
}

/// Checks a question.
pub fn check_query(query: &RecallQuery) -> Result<(), StoreError> {
    let invalid = |field, problem| Err(StoreError::InvalidQuery { field, problem });
    if query.namespaces.is_empty() {
        return invalid("namespaces", "is empty, at least one is needed".into());
    }
    if query.text.trim().is_empty() {
        return invalid("text", "is empty".into());
    }
    if query.text.len() > QUERY_BYTES_MAX {
        return invalid("text", format!("has {} bytes, at most {QUERY_BYTES_MAX} are allowed", query.text.len()));
    }
    if query.limit == 0 || query.limit > RECALL_LIMIT_MAX {
        return invalid("limit", format!("is {}, allowed are 1 to {RECALL_LIMIT_MAX}", query.limit));
    }
    if !(0.0..=1.0).contains(&query.diversity) {
        return invalid("diversity", format!("is {}, allowed are 0 to 1", query.diversity));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mneme_base::Provenance;

    fn note(text: &str) -> NewMemory {
        NewMemory::note(Namespace::default(), text, "test")
    }

    #[test]
    fn refuses_what_is_out_of_bounds_and_names_the_field() {
        let field = |memory: &NewMemory| match admit(memory) {
            Err(Refusal::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&note("")), "text");
        assert_eq!(field(&note(" \n\t")), "text");
        assert_eq!(field(&note(&"x".repeat(TEXT_BYTES_MAX + 1))), "text");
        assert_eq!(field(&NewMemory { speaker: Some(String::new()), ..note("x") }), "speaker");
        assert_eq!(field(&NewMemory { thread: Some("a\0b".into()), ..note("x") }), "thread");
        let many = (0..=METADATA_ENTRIES_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(field(&NewMemory { metadata: many, ..note("x") }), "metadata");
        let long = [("k".to_owned(), "v".repeat(METADATA_ENTRY_BYTES_MAX))].into();
        assert_eq!(field(&NewMemory { metadata: long, ..note("x") }), "metadata");
        let provenance = Provenance { source: String::new(), ..Provenance::user("test") };
        assert_eq!(field(&NewMemory { provenance, ..note("x") }), "provenance.source");
        let (early, late) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
        assert_eq!(field(&NewMemory { valid_from: Some(late), valid_to: Some(early), ..note("x") }), "valid_to");
        let never = Some(Timestamp::from_millis(i64::MAX));
        assert_eq!(field(&NewMemory { valid_from: never, ..note("x") }), "valid_from");
        assert!(admit(&note(&"x".repeat(TEXT_BYTES_MAX))).is_ok());
    }

    #[test]
    fn secrets_are_taken_out_of_the_text_the_metadata_and_the_location() {
        let secret = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
        let mut memory = note(&format!("the token is {secret}, keep it"));
        memory.metadata.insert("clipboard".into(), secret.into());
        memory.provenance.location = Some(mneme_base::SourceLocation {
            path: format!("https://x:{secret}@example.org/repo"),
            line_first: 1,
            line_last: 1,
        });
        let admitted = admit(&memory).unwrap();
        assert!(admitted.redactions >= 3, "{}", admitted.redactions);
        let stored = serde_json::to_string(&admitted.memory).unwrap();
        assert!(!stored.contains(secret), "{stored}");
        assert!(stored.contains("the token is [redacted:"));
        assert_eq!(admit(&note("nothing secret here")).unwrap().redactions, 0);
    }

    #[test]
    fn the_content_hash_tells_absent_from_empty_and_keeps_fields_apart() {
        let space = Namespace::default();
        let hash = |speaker, thread, text| hash_of(&space, MemoryKind::Note, speaker, thread, text);
        assert_ne!(hash(None, Some(""), "a"), hash(Some(""), None, "a"));
        assert_ne!(hash(Some("ab"), None, "c"), hash(Some("a"), None, "bc"));
        assert_eq!(hash(Some("a"), None, "b"), hash(Some("a"), None, "b"));
    }

    #[test]
    fn an_id_follows_from_the_operation_and_keeps_the_order_of_the_journal() {
        let now = Timestamp::from_millis(1_795_514_400_123);
        let id = |op: u128, lsn| memory_id(now, OpId::new(op), lsn);
        assert_eq!(id(7, 1), id(7, 1));
        assert_ne!(id(7, 1), id(8, 1));
        assert!(id(9, 1) < id(8, 2) && id(8, 2) < id(7, 4_095));
        assert!(id(1, 4_095) < memory_id(now.plus_millis(1), OpId::new(0), 4_096));
        assert_eq!(&id(7, 1).to_string()[14..15], "7", "a UUIDv7");
    }

    #[test]
    fn a_quota_counts_one_hour_and_says_when_there_is_room_again() {
        let mut usage = Usage::default();
        let start = Timestamp::from_millis(QUOTA_BUCKET_MS * 1_000);
        for _ in 0..3 {
            usage.admit("s", Some(3), start).unwrap();
        }
        let refusal = usage.admit("s", Some(3), start.plus_millis(1_000)).unwrap_err();
        let Refusal::QuotaExceeded { written: 3, quota: 3, retry_after_ms, .. } = refusal else {
            panic!("{refusal:?}")
        };
        assert!(usage.admit("s", Some(3), start.plus_millis(1_000 + retry_after_ms as i64 - 1)).is_err());
        usage.admit("s", Some(3), start.plus_millis(1_000 + retry_after_ms as i64)).unwrap();
    }

    #[test]
    fn a_clock_that_jumps_back_does_not_lock_a_source_out() {
        let mut usage = Usage::default();
        usage.admit("s", Some(1), Timestamp::from_millis(QUOTA_BUCKET_MS * 1_000)).unwrap();
        usage.admit("s", Some(1), Timestamp::from_millis(0)).unwrap();
    }
}
