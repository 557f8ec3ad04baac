//! Parquet carries memories without loss, and a bad file is an error.

use mneme_base::{ContentHash, Lsn, MemoryId, Namespace, Provenance, SourceLocation, Timestamp, TrustTier};
use mneme_memory::{
    DurableOptions, DurableStore, Memory, MemoryKind, MemoryState, MemoryStore, NewMemory, Operation, OperationKind,
    Scan,
};
use mneme_memory_lance::parquet::{ParquetTransferError, export, import};
use mneme_memory_lance::rows::{batch_to_memories, memories_to_batch};
use proptest::prelude::*;

fn arbitrary_memory() -> impl Strategy<Value = Memory> {
    let times = (any::<i64>(), any::<Option<i64>>(), any::<i64>(), any::<Option<([u8; 16], i64)>>());
    let texts = (".{1,40}", any::<Option<String>>(), any::<Option<String>>(), any::<Option<u64>>(), ".{0,9}");
    let rest = (
        any::<[u8; 16]>(),
        any::<[u8; 32]>(),
        0..7_usize,
        0..4_usize,
        0..3_usize,
        any::<(u32, u32, u64)>(),
        any::<Option<(String, u32, u32)>>(),
    );
    (times, texts, rest).prop_map(
        |(
            (from, to, recorded, by),
            (text, speaker, thread, position, value),
            (id, hash, kind, trust, state, counts, location),
        )| {
            Memory {
                id: MemoryId::from_bytes(id),
                namespace: Namespace::default(),
                kind: [
                    MemoryKind::Note,
                    MemoryKind::Message,
                    MemoryKind::Fact,
                    MemoryKind::Preference,
                    MemoryKind::Chunk,
                    MemoryKind::Event,
                    MemoryKind::Procedure,
                ][kind],
                text,
                speaker,
                thread,
                position,
                metadata: [("key".to_owned(), value.clone())].into(),
                provenance: Provenance {
                    client: value.clone(),
                    session: Some(value.clone()).filter(|text| !text.is_empty()),
                    source: value,
                    trust: [TrustTier::Untrusted, TrustTier::Reported, TrustTier::Observed, TrustTier::User][trust],
                    location: location.map(|(path, line_first, line_last)| SourceLocation {
                        path,
                        line_first,
                        line_last,
                    }),
                },
                valid_from: Timestamp::from_millis(from),
                valid_to: to.map(Timestamp::from_millis),
                recorded_at: Timestamp::from_millis(recorded),
                supersedes: by.map(|(id, _)| MemoryId::from_bytes(id)),
                superseded_by: by.map(|(id, at)| (MemoryId::from_bytes(id), Timestamp::from_millis(at))),
                state: [MemoryState::Active, MemoryState::Quarantined, MemoryState::Superseded][state],
                content_hash: ContentHash::from_bytes(hash),
                evidence: counts.0,
                redactions: counts.1,
                lsn: Lsn(counts.2),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn memories_come_back_from_columns_as_they_were(memories in proptest::collection::vec(arbitrary_memory(), 0..12)) {
        let batch = memories_to_batch(&memories).unwrap();
        prop_assert_eq!(batch_to_memories(&batch).unwrap(), memories);
    }
}

fn store_of(count: u64) -> DurableStore {
    let store = DurableStore::in_memory(DurableOptions::default()).unwrap();
    let batch: Vec<Operation> = (0..count)
        .map(|number| {
            let mut memory = NewMemory::note(Namespace::default(), format!("note {number}"), "test");
            memory.provenance.location = Some(SourceLocation { path: "a/b.md".into(), line_first: 1, line_last: 9 });
            Operation { op_id: mneme_base::OpId::new(u128::from(number)), kind: OperationKind::Remember(memory) }
        })
        .collect();
    store.apply(&batch, Timestamp::from_millis(1_795_514_400_000)).unwrap();
    store
}

#[test]
fn an_export_is_imported_whole_and_twice_is_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memories.parquet");
    let store = store_of(120);
    assert_eq!(export(&store, None, fs_err::File::create(&path).unwrap().into_parts().0).unwrap(), 120);
    let other = DurableStore::in_memory(DurableOptions::default()).unwrap();
    assert_eq!(import(&other, fs_err::File::open(&path).unwrap().into_parts().0).unwrap().imported, 120);
    assert_eq!(import(&other, fs_err::File::open(&path).unwrap().into_parts().0).unwrap().known, 120);
    let all = |store: &DurableStore| {
        let mut page = store.scan(&Scan { limit: 1_000, ..Scan::default() }).unwrap();
        page.iter_mut().for_each(|memory| memory.lsn = Lsn::ZERO);
        page
    };
    assert_eq!(all(&other), all(&store));
}

#[test]
fn a_file_that_is_cut_or_no_parquet_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memories.parquet");
    export(&store_of(50), None, fs_err::File::create(&path).unwrap().into_parts().0).unwrap();
    let whole = fs_err::read(&path).unwrap();
    for bytes in [Vec::new(), b"PAR1 and then nothing".to_vec(), whole[..whole.len() / 2].to_vec()] {
        fs_err::write(&path, bytes).unwrap();
        let other = DurableStore::in_memory(DurableOptions::default()).unwrap();
        let result = import(&other, fs_err::File::open(&path).unwrap().into_parts().0);
        assert!(matches!(result, Err(ParquetTransferError::File(_))), "{result:?}");
    }
}
