//! The keys of the rows, format 1.

use mneme_base::{ContentHash, MemoryId, Namespace, Timestamp};

pub(crate) const COUNTERS: &[u8] = b"counters";
pub(crate) const GENERATION: &[u8] = b"generation";
/// The last id that the marking of memories for a new generation has reached; absent when none is under way.
pub(crate) const REGENERATION: &[u8] = b"regeneration";
/// `namespace/NAME` holds how many memories recall can return from it.
pub(crate) const NAMESPACE_PREFIX: &[u8] = b"namespace/";
/// `projection/NAME` for each projection that the journal is kept for.
pub(crate) const PROJECTION_PREFIX: &[u8] = b"projection/";
/// The history of the store that a projection follows.
pub(crate) const HISTORY_PREFIX: &[u8] = b"history/";
/// The name under which the journal is kept for the file of the recall index.
pub(crate) const INDEX_FOLLOWER: &str = "recall-index";
/// Which file of the recall index belongs to these rows: its number and the LSN that it stands for.
pub(crate) const INDEX_FILE: &[u8] = b"index-file";
/// `purge/LSN` holds when everything forgotten up to that LSN was gone from the files.
pub(crate) const PURGE_PREFIX: &[u8] = b"purge/";

const HASH: u8 = b'h';
const NAMESPACE: u8 = b'n';
const SOURCE: u8 = b's';
const THREAD: u8 = b't';

fn short_hash(parts: &[&str]) -> [u8; 16] {
    let hash = ContentHash::of(parts.join("\0").as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

pub(crate) fn meta(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    [prefix, name].concat()
}

pub(crate) fn content(hash: &ContentHash) -> Vec<u8> {
    [&[HASH][..], hash.as_bytes()].concat()
}

/// Memories of a namespace; the id follows.
pub(crate) fn namespace(namespace: &Namespace) -> Vec<u8> {
    [&[NAMESPACE][..], namespace.as_str().as_bytes(), &[0]].concat()
}

/// Memories of a source; the id follows.
pub(crate) fn source(source: &str) -> Vec<u8> {
    [&[SOURCE][..], &short_hash(&[source])].concat()
}

/// Memories of a thread; the id follows.
pub(crate) fn thread(namespace: &Namespace, thread: &str) -> Vec<u8> {
    [&[THREAD][..], &short_hash(&[namespace.as_str(), thread])].concat()
}

pub(crate) fn with_id(mut prefix: Vec<u8>, id: MemoryId) -> Vec<u8> {
    prefix.extend_from_slice(id.as_bytes());
    prefix
}

/// The id at the end of a key.
pub(crate) fn id_at_end(key: &[u8]) -> Option<MemoryId> {
    key.last_chunk::<16>().map(|bytes| MemoryId::from_bytes(*bytes))
}

pub(crate) fn usage(source: &str) -> Vec<u8> {
    short_hash(&[source]).to_vec()
}

/// Rows of the ledger by time: times before 1970 sort first.
pub(crate) fn ledger_time(now: Timestamp, lsn: u64) -> Vec<u8> {
    [now.as_millis().max(0).to_be_bytes(), lsn.to_be_bytes()].concat()
}

/// The time of a [`ledger_time`] key.
pub(crate) fn time_of(key: &[u8]) -> Option<i64> {
    key.first_chunk::<8>().map(|bytes| i64::from_be_bytes(*bytes))
}

pub(crate) fn document(collection: &str, key: &str) -> Vec<u8> {
    [collection.as_bytes(), &[0], key.as_bytes()].concat()
}
