//! Reading beside writing, and the steps of upkeep: what they count, what they cost, what they find.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use mneme_base::{Embedding, EmbeddingGeneration, Namespace, Timestamp};
use mneme_memory::state::EngineKind;
use mneme_memory::{DurableOptions, DurableStore, MaintenanceTask, MemoryStore, RecallQuery};

use crate::failing::{Failing, Pause};
use crate::support::{HANG, note, now, options, outcome};

#[test]
fn a_write_does_not_wait_for_the_texts_that_a_phrase_is_looked_for_in() {
    let engine = Arc::new(Failing::default());
    let uncached = DurableOptions { memory_cache_bytes: 0, ..options(EngineKind::Memory) };
    let store = DurableStore::over(engine.clone(), Path::new(""), uncached).unwrap();
    outcome(&store, 1, note("to be or not to be"), now());
    let (begun, has_begun) = sync_channel(1);
    let (let_go_on, go_on) = sync_channel(1);
    let waited_in_vain = Arc::new(AtomicBool::new(false));
    *engine.pause.lock().unwrap() = Some(Pause { begun, go_on, waited_in_vain: Arc::clone(&waited_in_vain) });
    let question = RecallQuery::new(Namespace::default(), "\"to be or not to be\"", 3);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| store.recall(&question, None, now()).unwrap());
        has_begun.recv_timeout(HANG).unwrap();
        outcome(&store, 2, note("written meanwhile"), now());
        let_go_on.send(()).unwrap();
        assert_eq!(asked.join().unwrap().hits.len(), 1);
    });
    assert!(!waited_in_vain.load(Ordering::SeqCst), "the write waited for the reading");
}

#[test]
fn rows_are_counted_for_a_compaction_when_the_files_have_grown_and_not_every_time() {
    let engine = Arc::new(Failing::default());
    let store = DurableStore::over(engine.clone(), Path::new(""), options(EngineKind::Memory)).unwrap();
    outcome(&store, 1, note("one"), now());
    engine.disk_bytes.store(64 << 20, Ordering::SeqCst);
    let scans = |at: Timestamp| {
        let before = engine.scans.load(Ordering::SeqCst);
        store.maintain(MaintenanceTask::Compact, at).unwrap();
        engine.scans.load(Ordering::SeqCst) - before
    };
    assert!(scans(now()) > 0);
    outcome(&store, 2, note("two"), now());
    assert_eq!(scans(now().plus_millis(600_000)), 0, "nothing that a rewrite could give back");
    engine.disk_bytes.store(80 << 20, Ordering::SeqCst);
    assert!(scans(now().plus_millis(1_200_000)) > 0, "the files have grown");
    assert!(scans(now().plus_millis(2 * 24 * 3_600_000)) > 0, "a day has passed");
}

#[test]
fn the_audit_of_the_vector_scan_finds_the_exact_neighbours() {
    let store = DurableStore::in_memory(options(EngineKind::Memory)).unwrap();
    let generation = EmbeddingGeneration("g".into());
    store.set_generation(&generation).unwrap();
    for n in 0..200_u128 {
        outcome(&store, n, note(&format!("memory {n}")), now());
    }
    let mut state = 1_u64;
    let mut vector = || {
        let mut component = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        Embedding::normalized((0..48).map(|_| component()).collect()).unwrap()
    };
    let pending = store.pending_embeddings(1_000).unwrap();
    let made = pending.into_iter().map(|pending| (pending.id, vec![vector(), vector()])).collect();
    store.store_embeddings(&generation, made).unwrap();
    let report = store.maintain(MaintenanceTask::Audit, now()).unwrap();
    assert!(report.items > 10);
    // int8 codes may swap near ties at rank 10; 48 random dimensions leave few.
    assert!(report.measure.unwrap() >= 0.95, "{report:?}");
}
