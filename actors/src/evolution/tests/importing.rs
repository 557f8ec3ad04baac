//! Skills that arrive while the store, the engine or the user does something else.

use mneme_base::ContentHash;
use mneme_evolution::context::ContextId;
use mneme_evolution::gate::{Decision, Verdict};
use mneme_evolution::registry::{CardState, SkillCard};

use super::*;

const FILE: &[u8] = b"up betimes and to the office\n";

fn card(lineage: Vec<MemoryId>) -> SkillCard {
    let scores = Verdict {
        decision: Decision::Accept,
        reasons: Vec::new(),
        gain: None,
        over_placebo: None,
        over_retrieval: None,
        over_parent: None,
        forgetting: None,
        alpha: 0.05,
        plateau: false,
    };
    let mut centroid = vec![0.0; mneme_engine_api::fake::FAKE_DIMENSIONS];
    centroid[0] = 1.0;
    SkillCard {
        adapter: AdapterId::from_bytes([7; 16]),
        base_hash: FakeEngine::default().info().base_hash,
        parent: None,
        level: AdapterLevel::Lora,
        context: ContextId(1),
        centroid: Embedding::normalized(centroid).unwrap(),
        radius: 0.2,
        lineage,
        judged_on: Vec::new(),
        scores,
        scale: 0.1,
        seed: 1,
        file_hash: ContentHash::of(FILE),
        bytes: FILE.len() as u64,
        cpu_seconds: 1.0,
        made: NOW,
    }
}

fn upload(card: &SkillCard) -> SkillUpload {
    let data = [card.export("adapter.txt").as_bytes(), FILE].concat();
    SkillUpload { hash: ContentHash::of(&data), total: data.len() as u64, offset: 0, data }
}

fn file_of(folder: &Path, card: &SkillCard) -> PathBuf {
    folder.join("adapters").join(card.adapter.to_string()).join("adapter.txt")
}

async fn state_of(system: &System) -> Option<CardState> {
    system.evolution.report(deadline_in(SOON)).await.unwrap().adapters.first().map(|entry| entry.state)
}

#[tokio::test]
async fn a_memory_that_is_forgotten_while_its_skill_arrives_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let engine = Arc::new(Gated::default());
    let system = start_with(&store, Arc::clone(&engine) as Arc<dyn Engine>, folder.path(), true).await;
    // No text of the user: the loop itself never saw it.
    let mut note = NewMemory::note(Namespace::default(), "the spade is in the shed", "test");
    note.provenance.trust = mneme_base::TrustTier::Observed;
    let operation = Operation { op_id: OpId::generate(), kind: OperationKind::Remember(note) };
    let outcome = system.memory.apply(operation, deadline_in(SOON)).await.unwrap();
    let Ok(mneme_memory::OperationResult::Remembered(receipt)) = outcome.result else { panic!("refused") };
    engine.held.store(true, Ordering::Release);
    let card = card(vec![receipt.id]);
    let evolution = system.evolution.clone();
    let part = upload(&card);
    let import = tokio::spawn(async move { evolution.import_skill(part, deadline_in(SOON)).await });
    eventually(async || engine.waits.load(Ordering::Acquire).then_some(())).await;
    forget(&system, receipt.id).await;
    engine.held.store(false, Ordering::Release);
    let refused = import.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("learned a forgotten memory"), "{refused}");
    eventually(async || (!file_of(folder.path(), &card).exists()).then_some(())).await;
    assert_eq!(state_of(&system).await, None);
    system.stop().await;
}

#[tokio::test]
async fn whoever_gives_up_on_an_import_finds_it_taken_or_gone_and_never_a_card_without_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let engine = Arc::new(Gated::default());
    let system = start_with(&store, Arc::clone(&engine) as Arc<dyn Engine>, folder.path(), true).await;
    let card = card(Vec::new());
    engine.held.store(true, Ordering::Release);
    // The deadline passes while the engine reads: nothing is taken in.
    let soon = deadline_in(Duration::from_millis(200));
    let (evolution, part) = (system.evolution.clone(), upload(&card));
    let import = tokio::spawn(async move { evolution.import_skill(part, soon).await });
    eventually(async || engine.waits.load(Ordering::Acquire).then_some(())).await;
    tokio::time::sleep_until(soon).await;
    engine.held.store(false, Ordering::Release);
    assert!(matches!(import.await.unwrap(), Err(ActorError::DeadlineExceeded { .. })));
    eventually(async || (!file_of(folder.path(), &card).exists()).then_some(())).await;
    assert_eq!(state_of(&system).await, None);
    // The one who asks goes away: it is taken in all the same, and asking again says so.
    engine.held.store(true, Ordering::Release);
    engine.waits.store(false, Ordering::Release);
    let (evolution, part) = (system.evolution.clone(), upload(&card));
    let import = tokio::spawn(async move { evolution.import_skill(part, deadline_in(SOON)).await });
    eventually(async || engine.waits.load(Ordering::Acquire).then_some(())).await;
    import.abort();
    engine.held.store(false, Ordering::Release);
    let again = system.evolution.import_skill(upload(&card), deadline_in(SOON)).await.unwrap();
    assert!(again.taken.unwrap().2.contains("it is here already"));
    assert!(file_of(folder.path(), &card).exists());
    assert_eq!(state_of(&system).await, Some(CardState::Superseded));
    system.stop().await;
}

#[tokio::test]
async fn an_import_is_acknowledged_when_its_row_is_written_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let card = card(Vec::new());
    // The engine is seen first, so that the import's own row is the first that is refused.
    eventually(async || {
        let _ = system.evolution.command(Command::Resume, deadline_in(SOON)).await;
        (!store.rows().is_empty()).then_some(())
    })
    .await;
    store.refuse(true);
    for _ in 0..2 {
        let refused = system.evolution.import_skill(upload(&card), deadline_in(SOON)).await;
        assert!(matches!(refused, Err(ActorError::Store(_))), "{refused:?}");
    }
    store.refuse(false);
    let taken = system.evolution.import_skill(upload(&card), deadline_in(SOON)).await.unwrap().taken.unwrap();
    assert_eq!(state_of(&system).await, Some(CardState::Superseded));
    assert!(store.rows().iter().any(|row| matches!(row.change, Change::Imported { .. })), "{taken:?}");
    // One whose row the store will never take is refused, and leaves nothing.
    let other = SkillCard { adapter: AdapterId::from_bytes([8; 16]), ..card.clone() };
    store.rejects.store(true, Ordering::Release);
    let refused = system.evolution.import_skill(upload(&other), deadline_in(SOON)).await.unwrap_err();
    assert!(refused.to_string().contains("does not take the decision"), "{refused}");
    eventually(async || (!file_of(folder.path(), &other).exists()).then_some(())).await;
    system.stop().await;
}

#[tokio::test]
async fn the_missing_file_of_a_known_adapter_is_brought_back_by_its_skill() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let card = card(Vec::new());
    let import = async || {
        let receipt = system.evolution.import_skill(upload(&card), deadline_in(SOON)).await.unwrap();
        receipt.taken.unwrap().2
    };
    assert!(import().await.starts_with("taken in"));
    fs_err::remove_file(file_of(folder.path(), &card)).unwrap();
    assert!(import().await.contains("its file is here again"));
    assert_eq!(fs_err::read(file_of(folder.path(), &card)).unwrap(), FILE);
    // The answer to the last part was lost, and it comes again alone.
    let whole = upload(&card);
    let half = whole.data.len() / 2;
    let part = |offset: usize, data: &[u8]| SkillUpload { offset: offset as u64, data: data.to_vec(), ..whole.clone() };
    system.evolution.import_skill(part(0, &whole.data[..half]), deadline_in(SOON)).await.unwrap();
    for _ in 0..2 {
        let last = system.evolution.import_skill(part(half, &whole.data[half..]), deadline_in(SOON)).await.unwrap();
        assert!(last.taken.unwrap().2.contains("it is here already"));
    }
    system.evolution.command(Command::Retire { adapter: card.adapter }, deadline_in(SOON)).await.unwrap();
    let refused = system.evolution.import_skill(upload(&card), deadline_in(SOON)).await.unwrap_err();
    assert!(refused.to_string().contains("known already"), "{refused}");
    assert_eq!(fs_err::read_dir(folder.path().join("adapters/arriving")).unwrap().count(), 0);
    system.stop().await;
}

#[tokio::test]
async fn a_loop_that_is_switched_off_says_so_before_anything_is_uploaded() {
    let folder = tempfile::tempdir().unwrap();
    let system = start(&Store::new(), folder.path(), false).await;
    let refused = system.evolution.import_skill(upload(&card(Vec::new())), deadline_in(SOON)).await.unwrap_err();
    assert!(refused.to_string().contains("switched off"), "{refused}");
    assert!(!folder.path().join("adapters/arriving").exists());
    system.stop().await;
}
