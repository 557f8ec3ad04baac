//! Forgotten bytes, and what expires or is bounded: operation ids, quotas.

use mneme_base::{Embedding, EmbeddingGeneration, Namespace, Provenance, TrustTier};
use mneme_memory::gate::Quotas;
use mneme_memory::state::EngineKind;
use mneme_memory::{
    DurableOptions, DurableStore, ForgetSelector, MaintenanceTask, MemoryStore, NewMemory, OperationKind,
    OperationResult, Refusal,
};

use crate::support::{ENGINES, files_with, id_of, note, now, options, outcome};

#[test]
fn a_purge_leaves_no_byte_of_what_was_forgotten_in_any_file() {
    for engine in ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableStore::open(folder.path(), options(engine)).unwrap();
        let canaries = [
            "kQ7vX2pLw9TzR4mB8nYcJ6hG1sDfA0eU",
            "Zx81LmQpW3vNcK5yTg7RbJ2dHs9FaE4o",
            "Uo6EiY1tRq8WzX3cVb5NmL0kJhGfDs2A",
        ];
        let mut memory = NewMemory::note(Namespace::default(), format!("the word is {}", canaries[0]), "test");
        memory.metadata.insert("note".into(), canaries[1].into());
        memory.provenance.source = canaries[2].into();
        let id = id_of(outcome(&store, 1, OperationKind::Remember(memory), now()));
        for n in 0..50 {
            outcome(&store, 100 + n, note(&format!("kept {n}")), now());
        }
        let embedding = Embedding::normalized(vec![0.123_456_7; 64]).unwrap();
        let vector: Vec<u8> = embedding.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
        store.store_embeddings(&EmbeddingGeneration("g".into()), vec![(id, vec![embedding])]).unwrap();
        for canary in canaries {
            assert!(files_with(folder.path(), canary.as_bytes()) > 0, "{engine}: the scan has to be able to find it");
        }
        outcome(&store, 2, OperationKind::Forget(ForgetSelector::Source(canaries[2].into())), now());
        let report = store.maintain(MaintenanceTask::Purge, now()).unwrap();
        assert_eq!(report.items, 1);
        for canary in canaries {
            assert_eq!(files_with(folder.path(), canary.as_bytes()), 0, "{engine}");
        }
        assert_eq!(files_with(folder.path(), &vector), 0, "{engine}: the vector is gone too");
        assert_eq!(store.stats().memories, 50);
        drop(store);
        let store = DurableStore::open(folder.path(), options(engine)).unwrap();
        assert_eq!((store.stats().memories, store.stats().purge_pending), (50, 0), "{engine}");
        assert_eq!(store.get(id).unwrap(), None);
    }
}

#[test]
fn operation_ids_are_remembered_for_a_bounded_time_and_number() {
    let short = DurableOptions { ledger_retention_ms: 1_000, ledger_rows_max: 10, ..options(EngineKind::Memory) };
    let store = DurableStore::in_memory(short).unwrap();
    let first = || note("first");
    assert!(!outcome(&store, 1, first(), now()).replayed);
    assert!(outcome(&store, 1, first(), now().plus_millis(900)).replayed);
    // Two later commits expire it: what an expired id brings is new evidence, not a replay.
    outcome(&store, 2, note("second"), now().plus_millis(5_000));
    let again = outcome(&store, 1, first(), now().plus_millis(5_001));
    assert!(!again.replayed);
    assert!(matches!(again.result, Ok(OperationResult::Remembered(receipt)) if receipt.duplicate));
    let at = now().plus_millis(6_000);
    for op in 10..60 {
        outcome(&store, op, note(&format!("number {op}")), at);
    }
    store.maintain(MaintenanceTask::Cleanup, at).unwrap();
    assert!(outcome(&store, 59, note("number 59"), at).replayed, "the newest stay");
    assert!(!outcome(&store, 10, note("number 10"), at).replayed, "the oldest of too many go");
}

#[test]
fn a_source_over_its_quota_is_refused_until_there_is_room_also_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let quotas = Quotas { reported: Some(3), ..Quotas::UNLIMITED };
    let limited = DurableOptions { quotas, ..options(EngineKind::Redb) };
    let from = |source: &str, text: &str| {
        let provenance = Provenance { source: source.into(), trust: TrustTier::Reported, ..Provenance::user("test") };
        OperationKind::Remember(NewMemory { provenance, ..NewMemory::note(Namespace::default(), text, "test") })
    };
    {
        let store = DurableStore::open(folder.path(), limited.clone()).unwrap();
        for op in 0..3 {
            assert!(outcome(&store, op, from("a", &format!("n{op}")), now()).result.is_ok());
        }
    }
    let store = DurableStore::open(folder.path(), limited).unwrap();
    let refused = outcome(&store, 10, from("a", "one more"), now());
    let Err(Refusal::QuotaExceeded { written: 3, quota: 3, retry_after_ms, .. }) = refused.result else {
        panic!("{refused:?}")
    };
    assert!(outcome(&store, 11, from("b", "another source"), now()).result.is_ok());
    let later = now().plus_millis(retry_after_ms as i64);
    assert!(outcome(&store, 10, from("a", "one more"), later).result.is_ok(), "a refused id can be used again");
}
