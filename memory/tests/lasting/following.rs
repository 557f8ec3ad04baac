//! What follows the store: over restarts, when it was lost, while it cannot be reached.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mneme_base::{Embedding, EmbeddingGeneration, Lsn, MemoryId};
use mneme_memory::durable::{Change, JournalRecord, Projection};
use mneme_memory::state::EngineKind;
use mneme_memory::{
    DurableStore, ForgetSelector, MaintenanceTask, Memory, MemoryStore, OperationKind, Scan, StoreError, StoreHealth,
};

use crate::support::{files_with, id_of, note, now, options, outcome};

/// A copy of the memories that can be told to forget everything, as a lost disk would.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    inner: Mutex<CopyInner>,
}

#[derive(Debug, Default)]
struct CopyInner {
    memories: BTreeMap<MemoryId, Memory>,
    vectors: BTreeMap<MemoryId, Vec<Embedding>>,
    checkpoint: Lsn,
    resets: u32,
    purges: u32,
    unreachable: bool,
}

impl CopyInner {
    fn reached(&self) -> Result<(), StoreError> {
        let source = "the network is down".into();
        if self.unreachable { Err(StoreError::Projection { name: "copy", source }) } else { Ok(()) }
    }
}

impl Projection for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }
    fn checkpoint_lsn(&self) -> Result<Lsn, StoreError> {
        Ok(self.inner.lock().unwrap().checkpoint)
    }
    fn apply(&self, records: &[JournalRecord], up_to: Lsn) -> Result<(), StoreError> {
        let mut inner = self.inner.lock().unwrap();
        inner.reached()?;
        for record in records {
            match &record.change {
                Change::Upserted(memory) => {
                    inner.memories.insert(memory.id, (**memory).clone());
                }
                Change::Removed(id) => {
                    inner.memories.remove(id);
                    inner.vectors.remove(id);
                }
                Change::Embedded { id, embeddings, .. } => {
                    inner.vectors.insert(*id, embeddings.clone());
                }
                other => panic!("{other:?}"),
            }
        }
        inner.checkpoint = up_to;
        Ok(())
    }
    fn reset(&self) -> Result<(), StoreError> {
        let mut inner = self.inner.lock().unwrap();
        let resets = inner.resets + 1;
        *inner = CopyInner { resets, ..CopyInner::default() };
        Ok(())
    }
    fn purge(&self) -> Result<(), StoreError> {
        let mut inner = self.inner.lock().unwrap();
        inner.reached()?;
        inner.purges += 1;
        Ok(())
    }
}

#[test]
fn a_projection_follows_over_restarts_and_is_filled_anew_when_it_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let copy = Arc::new(Copy::default());
    let open = || {
        let store = DurableStore::open(folder.path(), options(EngineKind::Redb)).unwrap();
        store.attach(copy.clone()).unwrap();
        store
    };
    let equal = |store: &DurableStore| {
        let all = store.scan(&Scan { limit: 1_000, ..Scan::default() }).unwrap();
        let inner = copy.inner.lock().unwrap();
        assert_eq!(inner.memories.values().cloned().collect::<Vec<_>>(), all);
    };
    let store = open();
    let first = id_of(outcome(&store, 1, note("one"), now()));
    let second = id_of(outcome(&store, 2, note("two"), now()));
    store.project().unwrap();
    equal(&store);
    drop(store);
    // What happens while nobody feeds the projection is in the journal.
    let store = DurableStore::open(folder.path(), options(EngineKind::Redb)).unwrap();
    outcome(&store, 3, OperationKind::Forget(ForgetSelector::Ids(vec![first])), now());
    let embedding = Embedding::normalized(vec![1.0, 2.0]).unwrap();
    let made = vec![(second, vec![embedding.clone(), embedding.clone()])];
    store.store_embeddings(&EmbeddingGeneration("g".into()), made).unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.project().unwrap(), 2);
    equal(&store);
    assert_eq!(copy.inner.lock().unwrap().vectors[&second], vec![embedding.clone(), embedding]);
    assert_eq!(store.project().unwrap(), 0, "nothing comes twice");
    assert_eq!(copy.inner.lock().unwrap().resets, 0);
    *copy.inner.lock().unwrap() = CopyInner::default();
    outcome(&store, 4, note("three"), now());
    store.project().unwrap();
    equal(&store);
    assert_eq!(copy.inner.lock().unwrap().resets, 1, "the journal was cut: it starts from everything");
    assert_eq!(copy.inner.lock().unwrap().vectors.len(), 1);
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    assert_eq!(copy.inner.lock().unwrap().purges, 1, "a purge reaches the projections");
}

#[test]
fn a_projection_that_cannot_be_reached_delays_its_own_purge_only_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let copy = Arc::new(Copy::default());
    let store = DurableStore::open(folder.path(), options(EngineKind::Redb)).unwrap();
    store.attach(copy.clone()).unwrap();
    let id = id_of(outcome(&store, 1, note("kQ7vX2pLw9TzR4mB"), now()));
    store.project().unwrap();
    assert_eq!(store.stats().health, StoreHealth::Healthy);
    copy.inner.lock().unwrap().unreachable = true;
    outcome(&store, 2, OperationKind::Forget(ForgetSelector::Ids(vec![id])), now());
    outcome(&store, 3, note("written meanwhile"), now());
    assert!(matches!(store.maintain(MaintenanceTask::Purge, now()), Err(StoreError::Projection { .. })));
    assert_eq!(files_with(folder.path(), b"kQ7vX2pLw9TzR4mB"), 0, "the store's own files do not wait");
    let stats = store.stats();
    assert_eq!(stats.purge_pending, 1, "it is not called purged");
    let StoreHealth::Degraded { reason } = stats.health else { panic!("{:?}", stats.health) };
    assert_eq!(reason, "projection copy failed: the network is down");
    // Other steps do not hide it.
    store.maintain(MaintenanceTask::Cleanup, now()).unwrap();
    assert!(matches!(store.stats().health, StoreHealth::Degraded { .. }));
    copy.inner.lock().unwrap().unreachable = false;
    store.maintain(MaintenanceTask::Follow, now()).unwrap();
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    let stats = store.stats();
    assert_eq!((stats.purge_pending, stats.health), (0, StoreHealth::Healthy));
    assert_eq!(copy.inner.lock().unwrap().memories.len(), 1);
    assert!(store.follows("copy"));
    store.detach("copy").unwrap();
    assert!(!store.follows("copy"));
}
