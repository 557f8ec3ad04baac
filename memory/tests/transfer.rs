//! Export, import, backup and restore: nothing is lost on the way, and nothing is let in that the gate refuses.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use mneme_base::{MemoryId, Namespace, OpId, Provenance, Timestamp, TrustTier};
use mneme_memory::durable::restore;
use mneme_memory::state::EngineKind;
use mneme_memory::transfer::{TransferError, export, import};
use mneme_memory::{
    DurableOptions, DurableStore, ForgetSelector, InMemoryStore, Memory, MemoryStore, NewMemory, Operation,
    OperationKind, OperationResult, Refusal, Scan, StoreError,
};

fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions { engine, engine_cache_bytes: 8 << 20, disk_watermark_bytes: 0, ..DurableOptions::default() }
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_795_514_400_000)
}

fn apply(store: &dyn MemoryStore, op: u128, kind: OperationKind) -> OperationResult {
    let outcomes = store.apply(&[Operation { op_id: OpId::new(op), kind }], now().plus_millis(op as i64)).unwrap();
    outcomes.into_iter().next().unwrap().result.unwrap()
}

/// A store with a bit of everything.
fn fill(store: &dyn MemoryStore) {
    let space: Namespace = "work".parse().unwrap();
    for n in 0..40_u32 {
        let trust = if n % 7 == 0 { TrustTier::Untrusted } else { TrustTier::User };
        let memory = NewMemory {
            speaker: (n % 2 == 0).then(|| "Anna \"quoted\" \u{1F600}".to_owned()),
            thread: Some(format!("t{}", n % 3)),
            position: Some(u64::from(n)),
            metadata: [("k".to_owned(), format!("value\n{n}"))].into(),
            valid_to: (n % 5 == 0).then(|| now().plus_millis(i64::from(n) * 1_000_000)),
            provenance: Provenance { source: format!("s{}", n % 4), trust, ..Provenance::user("test") },
            ..NewMemory::note(space.clone(), format!("memory number {n}\twith\u{0}odd bytes é"), "test")
        };
        apply(store, u128::from(n) + 1, OperationKind::Remember(memory));
    }
    let page = all(store);
    let by = NewMemory::note(space.clone(), "a later truth", "test");
    apply(store, 100, OperationKind::Supersede { id: page[3].id, by: by.clone() });
    apply(store, 101, OperationKind::Remember(by));
    apply(store, 102, OperationKind::Forget(ForgetSelector::Ids(vec![page[5].id])));
}

fn all(store: &dyn MemoryStore) -> Vec<Memory> {
    store.scan(&Scan { limit: 10_000, ..Scan::default() }).unwrap()
}

fn without_lsn(memories: Vec<Memory>) -> Vec<Memory> {
    memories.into_iter().map(|memory| Memory { lsn: mneme_base::Lsn::ZERO, ..memory }).collect()
}

#[test]
fn what_is_exported_is_imported_as_it_was() {
    for engine in [EngineKind::Redb, EngineKind::Sled] {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableStore::open(folder.path(), options(engine)).unwrap();
        fill(&store);
        let mut file = Vec::new();
        assert_eq!(export(&store, None, &mut file).unwrap(), 40);
        for target in [
            &InMemoryStore::default() as &dyn MemoryStore,
            &DurableStore::in_memory(options(EngineKind::Memory)).unwrap(),
        ] {
            let report = import(target, &mut file.as_slice()).unwrap();
            assert_eq!((report.imported, report.known, report.refused), (40, 0, 0));
            assert_eq!(without_lsn(all(target)), without_lsn(all(&store)));
            let (there, here) = (target.stats(), store.stats());
            assert_eq!((there.memories, there.superseded), (here.memories, here.superseded));
            assert_eq!(there.namespaces, here.namespaces);
            let again = import(target, &mut file.as_slice()).unwrap();
            assert_eq!((again.imported, again.known), (0, 40), "an import can be repeated");
        }
    }
}

#[test]
fn an_import_passes_the_gate() {
    let store = InMemoryStore::default();
    fill(&store);
    let mut memories = all(&store);
    memories[0].text = "x".repeat(100_000);
    memories[1].text = "the key is ghp_16C7e42F292c6912E7710c838347Ae178B4a".into();
    let (refused, redacted) = (memories[0].id, memories[1].id);
    let target = InMemoryStore::default();
    let report = target.import(memories).unwrap();
    assert_eq!((report.imported, report.refused), (39, 1));
    assert!(matches!(&report.refusals[0], (id, Refusal::Invalid { field: "text", .. }) if *id == refused));
    let stored = target.get(redacted).unwrap().unwrap();
    assert!(!stored.text.contains("ghp_") && stored.redactions >= 1);
}

#[test]
fn a_damaged_export_is_reported_with_its_line() {
    let store = InMemoryStore::default();
    let line = |text: &str| import(&store, &mut text.as_bytes());
    assert!(matches!(line(""), Err(TransferError::Malformed { line: 1, .. })));
    assert!(matches!(line("{\"mneme_export\":2,\"lsn\":0}\n"), Err(TransferError::FormatTooNew { found: 2 })));
    let broken = "{\"mneme_export\":1,\"lsn\":0}\n\n{\"id\":\"x\"}\n";
    assert!(matches!(line(broken), Err(TransferError::Malformed { line: 3, .. })));
    let long = format!("{{\"mneme_export\":1,\"lsn\":0}}\n{}", "x".repeat(3 << 20));
    assert!(matches!(line(&long), Err(TransferError::Malformed { line: 2, .. })));
}

#[test]
fn a_backup_made_while_writing_restores_to_a_state_of_the_store() {
    for engine in [EngineKind::Redb, EngineKind::Sled] {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableStore::open(&folder.path().join("store"), options(engine)).unwrap();
        fill(&store);
        let before = all(&store).len();
        let backup = folder.path().join("backup");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..30_u128 {
                    let note = NewMemory::note("late".parse().unwrap(), format!("written meanwhile {n}"), "test");
                    apply(&store, 1_000 + n, OperationKind::Remember(note));
                }
            });
            store.backup(&backup).unwrap();
            writer.join().unwrap();
        });
        let after = all(&store);
        let target = folder.path().join("restored");
        let count = restore(&backup, &target).unwrap();
        let restored = DurableStore::open(&target, options(engine)).unwrap();
        assert_eq!(all(&restored).len() as u64, count);
        assert!(count >= before as u64);
        // The journal's order is the order of the writes: what is in the backup is all up to its last change, and no more.
        let lsn = restored.lsn();
        let expected: Vec<&Memory> = after.iter().filter(|memory| memory.lsn <= lsn).collect();
        assert_eq!(all(&restored).iter().collect::<Vec<_>>(), expected, "{engine}");
        assert!(store.backup(&backup).is_err(), "a backup goes only into an empty folder");
        assert_eq!(all(&store), after, "a refused backup harms nothing");
    }
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options(EngineKind::Redb)).unwrap();
    fill(&store);
    let backup = folder.path().join("backup");
    store.backup(&backup).unwrap();
    // Somebody else's change inside: a valid engine with other rows.
    {
        let tampered = DurableStore::open(&backup, options(EngineKind::Redb)).unwrap();
        let note = NewMemory::note("work".parse().unwrap(), "slipped in", "test");
        apply(&tampered, 5_000, OperationKind::Remember(note));
    }
    let result = restore(&backup, &folder.path().join("restored"));
    assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
    let nobody = MemoryId::from_bytes([3; 16]);
    assert_eq!(store.get(nobody).unwrap(), None);
}
