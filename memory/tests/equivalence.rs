//! Whatever is done to them, the durable stores and the oracle give equal answers, also after closing and opening again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::path::Path;

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Namespace, OpId, Provenance, Timestamp, TrustTier};
use mneme_memory::gate::Quotas;
use mneme_memory::state::EngineKind;
use mneme_memory::{
    Document, DurableOptions, DurableStore, ForgetSelector, InMemoryStore, MaintenanceTask, Memory, MemoryStore,
    NewMemory, Operation, OperationKind, OperationOutcome, OperationResult, RecallQuery, Scan, StoreStats,
};
use proptest::collection::vec;
use proptest::prelude::*;

const TEXTS: [&str; 6] = [
    "the boat leaves at noon from the old pier",
    "the boat leaves at noon from the old pier!",
    "anna likes green tea with honey",
    "the server listens on port 8080",
    "cats purr",
    "x",
];
const SOURCES: [(&str, TrustTier); 3] =
    [("user", TrustTier::User), ("agent", TrustTier::Reported), ("web", TrustTier::Untrusted)];

/// What is done in one operation; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Act {
    Remember(New),
    Supersede(usize, New),
    ForgetIds(Vec<usize>),
    ForgetSource(usize),
    ForgetThread(usize),
    ForgetNamespace(usize),
    Corroborate(usize),
    Documents(Vec<(u8, Option<u8>)>),
    /// An earlier operation again.
    Repeat(usize),
    /// An earlier operation's id for something else.
    Misuse(usize),
}

#[derive(Debug, Clone)]
struct New {
    text: usize,
    source: usize,
    namespace: usize,
    thread: Option<usize>,
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Act>),
    Wait(i64),
    Reopen,
    Upkeep(MaintenanceTask),
    Generation(u8),
    Embed(usize),
}

fn new() -> impl Strategy<Value = New> {
    (0..TEXTS.len(), 0..SOURCES.len(), 0..2_usize, prop::option::of(0..2_usize))
        .prop_map(|(text, source, namespace, thread)| New { text, source, namespace, thread })
}

fn act() -> impl Strategy<Value = Act> {
    let pick = 0..64_usize;
    prop_oneof![
        8 => new().prop_map(Act::Remember),
        4 => (pick.clone(), new()).prop_map(|(id, new)| Act::Supersede(id, new)),
        3 => vec(pick.clone(), 0..3).prop_map(Act::ForgetIds),
        1 => (0..SOURCES.len()).prop_map(Act::ForgetSource),
        1 => (0..2_usize).prop_map(Act::ForgetThread),
        1 => (0..2_usize).prop_map(Act::ForgetNamespace),
        2 => pick.clone().prop_map(Act::Corroborate),
        2 => vec((0..4_u8, prop::option::of(any::<u8>())), 0..3).prop_map(Act::Documents),
        2 => pick.clone().prop_map(Act::Repeat),
        1 => pick.prop_map(Act::Misuse),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec(act(), 1..5).prop_map(Step::Apply),
        2 => (0..4_000_000_i64).prop_map(Step::Wait),
        2 => Just(Step::Reopen),
        2 => prop::sample::select(vec![
            MaintenanceTask::Purge, MaintenanceTask::Compact, MaintenanceTask::Index, MaintenanceTask::Cleanup,
        ]).prop_map(Step::Upkeep),
        1 => (0..3_u8).prop_map(Step::Generation),
        2 => (1..6_usize).prop_map(Step::Embed),
    ]
}

fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions {
        engine,
        engine_cache_bytes: 4 << 20,
        disk_watermark_bytes: 0,
        // Small, so that refusals happen.
        quotas: Quotas { untrusted: Some(3), reported: Some(6), ..Quotas::UNLIMITED },
        ..DurableOptions::default()
    }
}

/// Turns acts into operations and remembers what there is to choose from.
#[derive(Default)]
struct Script {
    next_op: u128,
    operations: Vec<Operation>,
    ids: Vec<MemoryId>,
}

impl Script {
    fn id(&self, choice: usize) -> MemoryId {
        if self.ids.is_empty() { MemoryId::from_bytes([1; 16]) } else { self.ids[choice % self.ids.len()] }
    }

    fn operation(&mut self, act: &Act) -> Operation {
        let namespace = |number: usize| format!("n{number}").parse::<Namespace>().unwrap();
        let memory = |new: &New| {
            let (source, trust) = SOURCES[new.source];
            NewMemory {
                provenance: Provenance { source: source.into(), trust, ..Provenance::user("test") },
                thread: new.thread.map(|thread| format!("t{thread}")),
                position: new.thread.map(|thread| thread as u64),
                ..NewMemory::note(namespace(new.namespace), TEXTS[new.text], "test")
            }
        };
        let kind = match act {
            Act::Remember(new) => OperationKind::Remember(memory(new)),
            Act::Supersede(id, new) => OperationKind::Supersede { id: self.id(*id), by: memory(new) },
            Act::ForgetIds(ids) => {
                OperationKind::Forget(ForgetSelector::Ids(ids.iter().map(|id| self.id(*id)).collect()))
            }
            Act::ForgetSource(source) => OperationKind::Forget(ForgetSelector::Source(SOURCES[*source].0.into())),
            Act::ForgetThread(thread) => {
                OperationKind::Forget(ForgetSelector::Thread { namespace: namespace(0), thread: format!("t{thread}") })
            }
            Act::ForgetNamespace(number) => OperationKind::Forget(ForgetSelector::Namespace(namespace(*number))),
            Act::Corroborate(id) => OperationKind::Corroborate { id: self.id(*id) },
            Act::Documents(rows) => OperationKind::Documents(
                rows.iter()
                    .map(|(key, value)| Document {
                        collection: "c".into(),
                        key: format!("k{key}"),
                        value: value.map(|byte| vec![byte]),
                    })
                    .collect(),
            ),
            Act::Repeat(choice) if !self.operations.is_empty() => {
                return self.operations[choice % self.operations.len()].clone();
            }
            Act::Misuse(choice) if !self.operations.is_empty() => {
                let op_id = self.operations[choice % self.operations.len()].op_id;
                return Operation { op_id, kind: OperationKind::Documents(vec![]) };
            }
            Act::Repeat(_) | Act::Misuse(_) => OperationKind::Documents(vec![]),
        };
        self.next_op += 1;
        let operation = Operation { op_id: OpId::new(self.next_op), kind };
        self.operations.push(operation.clone());
        operation
    }

    fn learn(&mut self, outcomes: &[OperationOutcome]) {
        for outcome in outcomes {
            if let Ok(OperationResult::Remembered(receipt) | OperationResult::Superseded(receipt)) = &outcome.result
                && !self.ids.contains(&receipt.id)
            {
                self.ids.push(receipt.id);
            }
        }
    }
}

/// What the index says depends on its history in one point: which of several near duplicates it names.
fn comparable(outcomes: Vec<OperationOutcome>) -> Vec<(String, bool)> {
    outcomes
        .into_iter()
        .map(|mut outcome| {
            if let Ok(OperationResult::Remembered(receipt) | OperationResult::Superseded(receipt)) = &mut outcome.result
            {
                receipt.near_duplicate_of = receipt.near_duplicate_of.map(|_| MemoryId::from_bytes([0; 16]));
            }
            (format!("{:?}", outcome.result), outcome.replayed)
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Observed {
    memories: Vec<Memory>,
    in_namespace: Vec<Memory>,
    documents: Vec<Document>,
    pending: Vec<(MemoryId, Vec<String>)>,
    stats: StoreStats,
    recalls: Vec<Vec<MemoryId>>,
}

fn observe(store: &dyn MemoryStore, now: Timestamp, start: Timestamp) -> Observed {
    let mut stats = store.stats();
    (stats.engine, stats.disk_bytes, stats.index_bytes) = (String::new(), 0, 0);
    let mut recalls = Vec::new();
    for (text, as_of) in [("boat noon", None), ("green tea server", None), ("boat purr", Some(start))] {
        let mut query = RecallQuery::new("n0".parse().unwrap(), text, 100);
        query.namespaces.push("n1".parse().unwrap());
        query.as_of = as_of;
        query.filter.include_quarantined = true;
        let embedding = Embedding::normalized(vec![1.0, 0.5]).unwrap();
        for embedding in [None, Some(&embedding)] {
            let recall = store.recall(&query, embedding, now).unwrap();
            // As a set: until it is rebuilt, an index still counts forgotten memories in how rare a word is, so that the
            // order depends on when the store was last opened.
            let mut hits: Vec<MemoryId> = recall.hits.iter().map(|hit| hit.memory.id).collect();
            hits.sort_unstable();
            recalls.push(hits);
        }
    }
    let n0 = Some("n0".parse().unwrap());
    Observed {
        memories: store.scan(&Scan { limit: 1_000, ..Scan::default() }).unwrap(),
        in_namespace: store.scan(&Scan { limit: 1_000, namespace: n0, after: None }).unwrap(),
        documents: store.documents("c", "", None, 100).unwrap(),
        pending: store.pending_embeddings(100).unwrap().into_iter().map(|p| (p.id, p.texts)).collect(),
        stats,
        recalls,
    }
}

fn vectors(texts: &[String]) -> Vec<Embedding> {
    texts.iter().map(|text| Embedding::normalized(vec![text.len() as f32, 7.0]).unwrap()).collect()
}

fn check(steps: &[Step], engine: EngineKind, folder: &Path) -> Result<(), TestCaseError> {
    let oracle = InMemoryStore::new(options(engine));
    let mut store = DurableStore::open(folder, options(engine)).unwrap();
    let mut script = Script::default();
    let start = Timestamp::from_millis(1_795_514_400_000);
    let mut now = start;
    let mut generation = EmbeddingGeneration("g0".into());
    for (number, step) in steps.iter().enumerate() {
        now = now.plus_millis(10);
        match step {
            Step::Apply(acts) => {
                let batch: Vec<Operation> = acts.iter().map(|act| script.operation(act)).collect();
                let expected = oracle.apply(&batch, now).unwrap();
                let found = store.apply(&batch, now).unwrap();
                script.learn(&expected);
                prop_assert_eq!(comparable(found), comparable(expected), "outcomes of step {}", number);
            }
            Step::Wait(millis) => now = now.plus_millis(*millis),
            Step::Reopen => {
                drop(store);
                store = DurableStore::open(folder, options(engine)).unwrap();
            }
            Step::Upkeep(task) => {
                oracle.maintain(*task, now).unwrap();
                store.maintain(*task, now).unwrap();
            }
            Step::Generation(name) => {
                generation = EmbeddingGeneration(format!("g{name}"));
                oracle.set_generation(&generation).unwrap();
                store.set_generation(&generation).unwrap();
            }
            Step::Embed(limit) => {
                let pending = oracle.pending_embeddings(*limit).unwrap();
                let made: Vec<_> = pending.iter().map(|p| (p.id, vectors(&p.texts))).collect();
                oracle.store_embeddings(&generation, made.clone()).unwrap();
                store.store_embeddings(&generation, made).unwrap();
            }
        }
        let (found, expected) = (observe(&store, now, start), observe(&oracle, now, start));
        prop_assert_eq!(found, expected, "state after step {} ({:?})", number, step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_redb_store_equals_the_oracle(steps in vec(step(), 1..25)) {
        let folder = tempfile::tempdir().unwrap();
        check(&steps, EngineKind::Redb, folder.path())?;
    }

    #[test]
    fn the_sled_store_equals_the_oracle(steps in vec(step(), 1..25)) {
        let folder = tempfile::tempdir().unwrap();
        check(&steps, EngineKind::Sled, folder.path())?;
    }
}
