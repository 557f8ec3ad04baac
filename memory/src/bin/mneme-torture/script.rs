//! What the writer does, step by step: the same from the same seed on every store of the same state, so that the oracle can
//! follow it after the writer is dead.

use std::collections::BTreeSet;

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Namespace, OpId, Provenance, Timestamp, TrustTier};
use mneme_memory::domain::RECALL_LIMIT_MAX;
use mneme_memory::gate::Quotas;
use mneme_memory::state::EngineKind;
use mneme_memory::{
    Document, DurableOptions, ForgetSelector, MaintenanceTask, Memory, MemoryStore, NewMemory, Operation,
    OperationKind, RecallQuery, Scan, StoreError,
};

/// The store is kept at about this many memories: large enough for several pages and leaves, small enough that a comparison
/// takes milliseconds.
const MEMORIES_MAX: usize = 400;
/// Operations of one batch, at most.
const BATCH_MAX: u64 = 16;

/// Options of a tortured store.
pub(crate) fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions {
        engine,
        engine_cache_bytes: 8 << 20,
        disk_watermark_bytes: 0,
        quotas: Quotas::UNLIMITED,
        // The index is read from its file after every crash, wherever the last upkeep left one.
        index_file_rows_min: Some(1),
        ..DurableOptions::default()
    }
}

/// A small generator of numbers (splitmix64, Steele et al. 2014): the script must not depend on a library's version.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

fn now(step: u64) -> Timestamp {
    Timestamp::from_millis(1_795_514_400_000 + step as i64 * 1_000)
}

/// Does step `step`. Everything it writes follows from the seed, the number and the state of the store.
pub(crate) fn run_step(store: &dyn MemoryStore, seed: u64, step: u64) -> Result<(), StoreError> {
    let mut numbers = Numbers(seed ^ step.wrapping_mul(0x2545_f491_4f6c_dd1d));
    match step % 32 {
        7 | 23 => store.maintain(MaintenanceTask::Purge, now(step)).map(|_| ()),
        15 | 27 => store.maintain(MaintenanceTask::Index, now(step)).map(|_| ()),
        11 => store.maintain(MaintenanceTask::Cleanup, now(step)).map(|_| ()),
        3 | 13 | 19 | 29 => embed(store, step),
        31 => store.set_generation(&generation(step)),
        _ => store.apply(&batch(store, &mut numbers, step)?, now(step)).map(|_| ()),
    }
}

/// The generation that is set at steps 31, 63, ...
fn generation(step: u64) -> EmbeddingGeneration {
    EmbeddingGeneration(format!("generation-{}", (step + 1) / 32))
}

fn embed(store: &dyn MemoryStore, step: u64) -> Result<(), StoreError> {
    let vector = |text: &String| {
        let bytes = text.as_bytes();
        let components = (0..64).map(|at| 1.0 + f32::from(bytes[at * 7 % bytes.len()])).collect();
        Embedding::normalized(components).expect("positive components have a direction")
    };
    let pending = store.pending_embeddings(48)?;
    let made = pending.iter().map(|pending| (pending.id, pending.texts.iter().map(vector).collect())).collect();
    store.store_embeddings(&generation(step - step % 32), made)
}

fn batch(store: &dyn MemoryStore, numbers: &mut Numbers, step: u64) -> Result<Vec<Operation>, StoreError> {
    let known = store.scan(&Scan { limit: 10_000, ..Scan::default() })?;
    let count = 1 + numbers.below(BATCH_MAX);
    let mut operations: Vec<Operation> = (0..count)
        .map(|number| Operation {
            op_id: OpId::new((u128::from(step) << 16) | u128::from(number)),
            kind: operation(&known, numbers, step, number),
        })
        .collect();
    // The end of the batch before, sent again.
    if step > 0 && numbers.below(4) == 0 {
        let again = OperationKind::Documents(vec![]);
        operations.push(Operation { op_id: OpId::new(u128::from(step) << 16), kind: again });
    }
    Ok(operations)
}

fn operation(known: &[Memory], numbers: &mut Numbers, step: u64, number: u64) -> OperationKind {
    let pick = |numbers: &mut Numbers| known.get(numbers.below(known.len() as u64) as usize).map(|memory| memory.id);
    if known.len() > MEMORIES_MAX && number == 0 {
        let ids = known.iter().step_by(2).map(|memory| memory.id).collect();
        return OperationKind::Forget(ForgetSelector::Ids(ids));
    }
    match (numbers.below(16), pick(numbers)) {
        (0, Some(id)) => OperationKind::Forget(ForgetSelector::Ids(vec![id])),
        (1, Some(id)) => OperationKind::Corroborate { id },
        (2 | 3, Some(id)) => OperationKind::Supersede { id, by: memory(numbers, step, number) },
        (4 | 5, _) => OperationKind::Documents(vec![Document {
            collection: "log".into(),
            key: format!("{:02}", numbers.below(40)),
            value: (numbers.below(4) > 0).then(|| vec![step as u8; numbers.below(2_000) as usize]),
        }]),
        (6, _) if step % 64 == 1 => OperationKind::Forget(ForgetSelector::Source("web".into())),
        _ => OperationKind::Remember(memory(numbers, step, number)),
    }
}

fn memory(numbers: &mut Numbers, step: u64, number: u64) -> NewMemory {
    let space: Namespace = format!("space{}", numbers.below(3)).parse().expect("a valid namespace");
    let (source, trust) = [("user", TrustTier::User), ("agent", TrustTier::Reported), ("web", TrustTier::Untrusted)]
        [numbers.below(3) as usize];
    // Now and then the same text again; lengths from a line to several pages.
    let text = match numbers.below(8) {
        0 => format!("a saying that comes back {}", numbers.below(10)),
        1 => format!("step {step} number {number} {}", "word ".repeat(numbers.below(4_000) as usize)),
        _ => format!("step {step} number {number} {}", "word ".repeat(numbers.below(60) as usize)),
    };
    let thread = (numbers.below(2) == 0).then(|| format!("thread{}", numbers.below(5)));
    NewMemory {
        provenance: Provenance { source: source.into(), trust, ..Provenance::user("torture") },
        position: thread.is_some().then_some(step * 100 + number),
        thread,
        ..NewMemory::note(space, text, "torture")
    }
}

/// What a question of one word finds in all drawers. Which memories, not in what order: that depends on how many dead rows the index
/// still counts.
fn recalled(store: &dyn MemoryStore) -> Result<BTreeSet<MemoryId>, StoreError> {
    let space = |number: u64| format!("space{number}").parse().expect("a valid namespace");
    let mut query = RecallQuery::new(space(0), "saying", RECALL_LIMIT_MAX);
    query.namespaces.extend([space(1), space(2)]);
    let found = store.recall(&query, None, now(0))?;
    let said = found.hits.into_iter().filter(|hit| hit.memory.text.contains("saying"));
    Ok(said.map(|hit| hit.memory.id).collect())
}

/// Everything that can be observed of a store, for comparison.
pub(crate) fn observe(store: &dyn MemoryStore) -> Result<Observed, StoreError> {
    let stats = store.stats();
    Ok(Observed {
        lsn: stats.lsn.0,
        counts: [stats.memories, stats.quarantined, stats.superseded, stats.purge_pending, stats.embeddings_pending],
        memories: store.scan(&Scan { limit: 10_000, ..Scan::default() })?,
        documents: store.documents("log", "", None, 1_000)?,
        recalled: recalled(store)?,
        pending: store.pending_embeddings(1_000)?.into_iter().map(|pending| pending.id.to_string()).collect(),
    })
}

/// See [`observe`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    pub(crate) lsn: u64,
    counts: [u64; 5],
    memories: Vec<Memory>,
    documents: Vec<Document>,
    pending: Vec<String>,
    recalled: BTreeSet<MemoryId>,
}

impl Observed {
    /// In what two states differ, in words and numbers, without the content of memories.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let mut parts = Vec::new();
        if self.lsn != other.lsn {
            parts.push(format!("lsn {} and {}", self.lsn, other.lsn));
        }
        if self.counts != other.counts {
            parts.push(format!("counts {:?} and {:?}", self.counts, other.counts));
        }
        if self.memories != other.memories {
            let only = |a: &[Memory], b: &[Memory]| a.iter().filter(|memory| !b.contains(memory)).count();
            let (left, right) = (only(&self.memories, &other.memories), only(&other.memories, &self.memories));
            parts.push(format!("{left} memories on one side, {right} on the other"));
        }
        if self.documents != other.documents {
            parts.push("documents".into());
        }
        if self.pending != other.pending {
            parts.push("the queue".into());
        }
        if self.recalled != other.recalled {
            parts.push("what is recalled".into());
        }
        parts.join("; ")
    }
}
