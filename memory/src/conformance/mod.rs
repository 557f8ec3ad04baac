//! The suite that every [`MemoryStore`] passes. Each check panics at the first difference, as a test does; all of them use
//! fresh namespaces and operation ids, so that they can run one after the other on one store.
//!
//! It is compiled with the feature `conformance`, for the tests of this crate and of those that implement the trait.

mod forgetting;
mod remembering;
mod vectors;

use std::sync::atomic::{AtomicU64, Ordering};

use mneme_base::{Namespace, OpId, Provenance, Timestamp, TrustTier};

use crate::domain::{NewMemory, Recall, RecallQuery, RememberReceipt};
use crate::store::{MemoryStore, Operation, OperationKind, OperationOutcome, OperationResult, Refusal};

/// Runs the whole suite on a store.
pub fn run(store: &dyn MemoryStore) {
    let world = World::new(store);
    remembering::run(&world);
    forgetting::run(&world);
    vectors::run(&world);
}

/// A store, and a clock and ids that no check shares with another.
struct World<'a> {
    store: &'a dyn MemoryStore,
    next: AtomicU64,
}

impl<'a> World<'a> {
    fn new(store: &'a dyn MemoryStore) -> Self {
        // Suites that run again on a reopened store must not repeat ids.
        Self { store, next: AtomicU64::new(1 + (store.stats().lsn.0 << 20)) }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_795_514_400_000 + self.number() as i64)
    }

    fn namespace(&self) -> Namespace {
        format!("conformance/{}", self.number()).parse().expect("a valid namespace")
    }

    fn operation(&self, kind: OperationKind) -> Operation {
        Operation { op_id: OpId::new(u128::from(self.number())), kind }
    }

    fn apply(&self, kind: OperationKind) -> Result<OperationResult, Refusal> {
        let mut outcomes = self.apply_all(&[self.operation(kind)]);
        outcomes.remove(0).result
    }

    fn apply_all(&self, batch: &[Operation]) -> Vec<OperationOutcome> {
        let outcomes = self.store.apply(batch, self.now()).expect("a healthy store applies");
        assert_eq!(outcomes.len(), batch.len(), "one outcome per operation");
        outcomes
    }

    fn remember(&self, memory: NewMemory) -> RememberReceipt {
        match self.apply(OperationKind::Remember(memory)) {
            Ok(OperationResult::Remembered(receipt)) => receipt,
            other => panic!("expected a receipt, got {other:?}"),
        }
    }

    fn note(&self, namespace: &Namespace, text: &str) -> RememberReceipt {
        self.remember(NewMemory::note(namespace.clone(), text, "test"))
    }

    fn recall(&self, namespace: &Namespace, text: &str) -> Recall {
        let query = RecallQuery::new(namespace.clone(), text, 10);
        self.store.recall(&query, None, self.now()).expect("a healthy store recalls")
    }

    fn recalled(&self, namespace: &Namespace, text: &str) -> Vec<String> {
        self.recall(namespace, text).hits.into_iter().map(|hit| hit.memory.text).collect()
    }
}

/// Provenance from a source of a trust tier.
fn from(source: &str, trust: TrustTier) -> Provenance {
    Provenance { source: source.into(), trust, ..Provenance::user("test") }
}
