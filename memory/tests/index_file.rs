//! The recall index as a file: opening from it gives what building from the rows gives, and nothing that happens to it matters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Namespace, OpId, Timestamp};
use mneme_memory::{
    DurableOptions, DurableStore, ForgetSelector, MaintenanceTask, MemoryStore, NewMemory, Operation, OperationKind,
    OperationResult, RecallQuery, Scan,
};

const WORDS: [&str; 8] = ["harbour", "lantern", "violin", "copper", "orchard", "glacier", "saffron", "compass"];
const DIMENSIONS: usize = 32;

fn options() -> DurableOptions {
    DurableOptions {
        engine_cache_bytes: 8 << 20,
        disk_watermark_bytes: 0,
        index_file_rows_min: Some(0),
        ..DurableOptions::default()
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_795_514_400_000)
}

fn generation() -> EmbeddingGeneration {
    EmbeddingGeneration("g".into())
}

fn vector(seed: u64) -> Embedding {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    Embedding::normalized((0..DIMENSIONS).map(|_| next()).collect()).unwrap()
}

fn memory(number: u64) -> NewMemory {
    let at = number as usize;
    let text = format!("number{number} {} {}", WORDS[at % 8], WORDS[at / 8 % 8]);
    let mut memory = NewMemory::note(Namespace::default(), text, "test");
    memory.speaker = Some(["Anna Berg", "Ben", "Chloe"][at % 3].into());
    memory.thread = Some(format!("thread {}", number / 10));
    memory.position = Some(number % 10);
    memory.metadata = BTreeMap::from([("part".to_owned(), (number % 5).to_string())]);
    memory
}

fn apply(store: &DurableStore, op: u64, kind: OperationKind) -> OperationResult {
    let operation = Operation { op_id: OpId::new(u128::from(op)), kind };
    store.apply(&[operation], now()).unwrap().remove(0).result.unwrap()
}

fn remember(store: &DurableStore, numbers: std::ops::Range<u64>) -> Vec<MemoryId> {
    let ids: Vec<MemoryId> = numbers
        .clone()
        .map(|number| match apply(store, number, OperationKind::Remember(memory(number))) {
            OperationResult::Remembered(receipt) => receipt.id,
            other => panic!("{other:?}"),
        })
        .collect();
    let vectors = ids.iter().zip(numbers).map(|(id, number)| (*id, vec![vector(number), vector(number + 1_000_000)]));
    store.store_embeddings(&generation(), vectors.collect()).unwrap();
    ids
}

fn index_file(folder: &Path) -> Option<PathBuf> {
    let entries = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "recall"))
}

/// What questions of every kind find: ids, in no order where the order depends on statistics of dead rows.
fn answers(store: &DurableStore) -> Vec<BTreeSet<MemoryId>> {
    let ask = |text: &str, change: &dyn Fn(&mut RecallQuery), embedding: Option<&Embedding>| {
        let mut query = RecallQuery::new(Namespace::default(), text, 400);
        change(&mut query);
        let found = store.recall(&query, embedding, now()).unwrap();
        found.hits.into_iter().map(|hit| hit.memory.id).collect::<BTreeSet<MemoryId>>()
    };
    let mut answers: Vec<_> = WORDS.iter().map(|word| ask(word, &|_| {}, None)).collect();
    answers.push(ask("number17", &|query| query.filter.speakers.push("Ben".into()), None));
    answers.push(ask("copper", &|query| query.filter.threads.push("thread 3".into()), None));
    answers.push(ask("violin", &|query| drop(query.filter.metadata.insert("part".into(), "2".into())), None));
    answers.push(ask("glacier", &|query| query.as_of = Some(now().plus_millis(-1)), None));
    for number in [3, 55, 120] {
        let found =
            store.recall(&RecallQuery::new(Namespace::default(), "unheard", 1), Some(&vector(number)), now()).unwrap();
        answers.push(found.hits.into_iter().map(|hit| hit.memory.id).collect());
    }
    answers
}

/// The same store built from its rows.
fn rebuilt(folder: &Path) -> DurableStore {
    fs_err::remove_file(index_file(folder).unwrap()).unwrap();
    let store = DurableStore::open(folder, options()).unwrap();
    assert!(!store.opened_from_index_file());
    store
}

#[test]
fn a_store_opens_from_its_file_with_everything_that_came_later() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(folder.path(), options()).unwrap();
    let ids = remember(&store, 0..150);
    apply(&store, 1_000, OperationKind::Forget(ForgetSelector::Ids(ids[20..30].to_vec())));
    assert!(store.write_index_file().unwrap() > 0);
    remember(&store, 150..200);
    apply(&store, 1_001, OperationKind::Supersede { id: ids[40], by: memory(900) });
    apply(&store, 1_002, OperationKind::Forget(ForgetSelector::Ids(vec![ids[55], ids[60]])));
    store.store_embeddings(&generation(), vec![(ids[120], vec![vector(7_777), vector(7_778)])]).unwrap();
    let expected = answers(&store);
    drop(store);

    let store = DurableStore::open(folder.path(), options()).unwrap();
    assert!(store.opened_from_index_file());
    assert_eq!(answers(&store), expected);
    let near = apply(
        &store,
        2_000,
        OperationKind::Remember(NewMemory::note(Namespace::default(), "NUMBER3  copper, harbour!", "test")),
    );
    assert!(matches!(near, OperationResult::Remembered(receipt) if receipt.near_duplicate_of == Some(ids[3])));
    let expected = answers(&store);
    drop(store);
    assert_eq!(answers(&rebuilt(folder.path())), expected);
}

#[test]
fn a_file_that_was_flipped_cut_or_swapped_is_replaced_by_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(folder.path(), options()).unwrap();
    remember(&store, 0..40);
    store.write_index_file().unwrap();
    let older = fs_err::read(index_file(folder.path()).unwrap()).unwrap();
    remember(&store, 40..60);
    store.write_index_file().unwrap();
    let expected = answers(&store);
    drop(store);
    let whole = fs_err::read(index_file(folder.path()).unwrap()).unwrap();
    let mut broken: Vec<Vec<u8>> = vec![Vec::new(), older, whole[..whole.len() / 2].to_vec()];
    for at in (8..whole.len()).step_by(whole.len() / 12) {
        broken.push(whole.clone());
        broken.last_mut().unwrap()[at] ^= 4;
    }
    for bytes in broken {
        let path = index_file(folder.path()).unwrap();
        fs_err::write(&path, bytes).unwrap();
        let store = DurableStore::open(folder.path(), options()).unwrap();
        assert!(!store.opened_from_index_file());
        assert_eq!(answers(&store), expected);
        // Upkeep writes a new one, which the next opening reads.
        store.maintain(MaintenanceTask::Index, now()).unwrap();
        drop(store);
        let store = DurableStore::open(folder.path(), options()).unwrap();
        assert!(store.opened_from_index_file());
        assert_eq!(answers(&store), expected);
    }
}

#[test]
fn files_are_written_while_others_write_and_forget() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(folder.path(), options()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for step in 0..12 {
                let ids = remember(&store, step * 20..step * 20 + 20);
                apply(&store, 10_000 + step, OperationKind::Forget(ForgetSelector::Ids(ids[..5].to_vec())));
            }
        });
        while !writer.is_finished() {
            store.write_index_file().unwrap();
        }
    });
    let expected = answers(&store);
    drop(store);
    let store = DurableStore::open(folder.path(), options()).unwrap();
    assert!(store.opened_from_index_file());
    assert_eq!(answers(&store), expected);
    assert_eq!(store.scan(&Scan { limit: 1_000, ..Scan::default() }).unwrap().len(), 180);
}

#[test]
fn names_that_were_forgotten_are_in_no_file_after_the_purge() {
    const CANARY: &str = "kq7vx2plw9tzr4mb8nycj6hg1sdfa0eu";
    let holds = |folder: &Path| {
        let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        files.into_iter().any(|path| fs_err::read(path).unwrap().windows(CANARY.len()).any(|w| w == CANARY.as_bytes()))
    };
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(folder.path(), options()).unwrap();
    remember(&store, 0..30);
    let secret = NewMemory { speaker: Some(CANARY.into()), thread: Some(CANARY.into()), ..memory(77) };
    let OperationResult::Remembered(receipt) = apply(&store, 500, OperationKind::Remember(secret)) else { panic!() };
    store.write_index_file().unwrap();
    assert!(holds(folder.path()), "the scan has to be able to find it");
    apply(&store, 501, OperationKind::Forget(ForgetSelector::Ids(vec![receipt.id])));
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    assert!(index_file(folder.path()).is_some(), "a new one is written in its place");
    assert!(!holds(folder.path()));
    let expected = answers(&store);
    drop(store);
    let store = DurableStore::open(folder.path(), options()).unwrap();
    assert!(store.opened_from_index_file());
    assert_eq!(answers(&store), expected);
}

#[test]
fn a_store_that_has_become_small_keeps_no_file_and_no_journal() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(folder.path(), options()).unwrap();
    remember(&store, 0..10);
    store.write_index_file().unwrap();
    drop(store);
    let small = DurableOptions { index_file_rows_min: None, ..options() };
    let store = DurableStore::open(folder.path(), small).unwrap();
    assert!(store.opened_from_index_file());
    store.maintain(MaintenanceTask::Index, now()).unwrap();
    assert_eq!(index_file(folder.path()), None);
    remember(&store, 10..20);
    assert_eq!(store.project().unwrap(), 0);
}
