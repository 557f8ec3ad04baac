//! Stores and copies for the tests of this folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Namespace, OpId, Timestamp};
use mneme_memory::{
    DurableOptions, DurableStore, Memory, MemoryStore, NewMemory, Operation, OperationKind, OperationResult, Scan,
};
use mneme_memory_lance::{LanceOptions, LanceProjection};

pub(crate) fn now() -> Timestamp {
    Timestamp::from_millis(1_795_514_400_000)
}

pub(crate) fn options() -> DurableOptions {
    DurableOptions { engine_cache_bytes: 8 << 20, disk_watermark_bytes: 0, ..DurableOptions::default() }
}

pub(crate) fn lance() -> LanceOptions {
    LanceOptions {
        keep_versions_seconds: 0,
        vector_index_rows_min: 300,
        disk_watermark_bytes: 0,
        ..LanceOptions::default()
    }
}

pub(crate) fn memory(number: u64) -> NewMemory {
    let mut memory = NewMemory::note(Namespace::default(), format!("memory number {number} of many"), "test");
    memory.speaker = number.is_multiple_of(2).then(|| "Anna".into());
    memory.thread = Some(format!("thread {}", number / 7));
    memory.position = Some(number);
    memory.metadata = BTreeMap::from([("quote\"d".to_owned(), format!("'{number}'"))]);
    memory.valid_to = number.is_multiple_of(3).then(|| now().plus_millis(5_000));
    memory
}

pub(crate) fn apply(store: &DurableStore, op: u64, kind: OperationKind) -> OperationResult {
    let operation = Operation { op_id: OpId::new(u128::from(op)), kind };
    store.apply(&[operation], now()).unwrap().remove(0).result.unwrap()
}

pub(crate) fn remember(store: &DurableStore, numbers: std::ops::Range<u64>) -> Vec<MemoryId> {
    let operation =
        |number| Operation { op_id: OpId::new(u128::from(number)), kind: OperationKind::Remember(memory(number)) };
    let batch: Vec<Operation> = numbers.map(operation).collect();
    let outcomes = store.apply(&batch, now()).unwrap();
    let id = |outcome: mneme_memory::OperationOutcome| match outcome.result.unwrap() {
        OperationResult::Remembered(receipt) => receipt.id,
        other => panic!("{other:?}"),
    };
    outcomes.into_iter().map(id).collect()
}

pub(crate) fn vector(seed: usize, size: usize) -> Embedding {
    // A prime number of values: no two seeds of a test give the same vector.
    Embedding::normalized((0..size).map(|at| ((seed * 31 + at * 17) % 8_191) as f32 - 4_000.3).collect()).unwrap()
}

pub(crate) fn embed(store: &DurableStore, ids: &[MemoryId], size: usize) {
    let generation = EmbeddingGeneration(format!("g{size}"));
    store.set_generation(&generation).unwrap();
    let vectors = ids.iter().enumerate().map(|(at, id)| (*id, vec![vector(at, size), vector(at + 1_000, size)]));
    store.store_embeddings(&generation, vectors.collect()).unwrap();
}

pub(crate) fn in_store(store: &DurableStore) -> Vec<Memory> {
    store.scan(&Scan { limit: 10_000, ..Scan::default() }).unwrap()
}

pub(crate) fn in_copy(copy: &LanceProjection) -> Vec<Memory> {
    let mut memories = copy.memories().unwrap();
    memories.sort_by_key(|memory| memory.id);
    memories
}

pub(crate) fn attach(store: &DurableStore, place: &str) -> Arc<LanceProjection> {
    let copy = Arc::new(LanceProjection::open(place, lance()).unwrap());
    store.attach(copy.clone()).unwrap();
    copy
}

pub(crate) fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}
