//! The queue of memories that need vectors, and the change of generation.

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId};

use super::World;
use crate::domain::{ForgetSelector, NewMemory, RecallQuery};
use crate::store::{MaintenanceTask, OperationKind, StoreError};

pub(super) fn run(world: &World<'_>) {
    let start = EmbeddingGeneration(format!("model/{}", world.number()));
    world.store.set_generation(&start).expect("sets a generation");
    every_memory_waits_for_its_vectors(world, &start);
    vectors_are_used_and_a_new_generation_makes_all_wait(world, start);
    vectors_out_of_bounds_are_refused(world);
    every_task_of_upkeep_runs(world);
}

fn vector(components: &[f32]) -> Embedding {
    Embedding::normalized(components.to_vec()).expect("has a direction")
}

/// Embeds everything that waits, each text by a function.
fn drain(world: &World<'_>, generation: &EmbeddingGeneration, embed: &dyn Fn(&str) -> Embedding) {
    loop {
        let page = world.store.pending_embeddings(3).expect("lists");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3 && page.is_sorted_by_key(|pending| pending.id), "oldest first");
        let made = page.iter().map(|pending| (pending.id, pending.texts.iter().map(|text| embed(text)).collect()));
        world.store.store_embeddings(generation, made.collect()).expect("stores");
    }
}

fn every_memory_waits_for_its_vectors(world: &World<'_>, generation: &EmbeddingGeneration) {
    drain(world, generation, &|_| vector(&[1.0, 0.0]));
    assert_eq!(world.store.stats().embeddings_pending, 0);
    let space = world.namespace();
    let turn = |position, text: &str| NewMemory {
        thread: Some("talk".into()),
        position: Some(position),
        speaker: Some("Anna".into()),
        ..NewMemory::note(space.clone(), text, "test")
    };
    let first = world.remember(turn(1, "shall we sail"));
    let second = world.remember(turn(2, "yes, on Sunday"));
    let pending = world.store.pending_embeddings(10).expect("lists");
    assert_eq!(pending.iter().map(|pending| pending.id).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(world.store.vectors(&[second.id]).expect("reads"), [None], "none before it is made");
    let texts = &pending[1].texts;
    assert_eq!(texts.len(), 2, "the text, and the text with its context");
    assert!(texts[0].contains("on Sunday") && !texts[0].contains("sail"));
    assert!(texts[1].contains("on Sunday") && texts[1].contains("shall we sail") && texts[1].contains("Anna"));
    let forgotten = OperationKind::Forget(ForgetSelector::Ids(vec![first.id]));
    assert!(world.apply(forgotten).is_ok());
    assert_eq!(world.store.pending_embeddings(10).expect("lists").len(), 1, "the forgotten need none");
    let views = vec![vector(&[1.0, 0.0]), vector(&[1.0, 0.0])];
    let late = vec![(first.id, views.clone()), (MemoryId::from_bytes([7; 16]), views)];
    world.store.store_embeddings(generation, late).expect("skips what is not there");
    assert_eq!(world.store.stats().embeddings_pending, 1);
}

fn vectors_are_used_and_a_new_generation_makes_all_wait(world: &World<'_>, start: EmbeddingGeneration) {
    let space = world.namespace();
    let cat = world.note(&space, "a small animal that purrs");
    let car = world.note(&space, "a machine with four wheels");
    let meaning = |text: &str| if text.contains("purrs") { vector(&[1.0, 0.1]) } else { vector(&[0.1, 1.0]) };
    drain(world, &start, &meaning);
    let query = RecallQuery::new(space, "kitten", 1);
    let ask = |embedding: &Embedding| {
        let recall = world.store.recall(&query, Some(embedding), world.now()).expect("recalls");
        assert!(recall.degraded.is_empty(), "{:?}", recall.degraded);
        recall.hits.into_iter().map(|hit| hit.memory.id).collect::<Vec<_>>()
    };
    let kept = |id| world.store.vectors(&[id]).expect("reads")[0].clone();
    assert_eq!(kept(cat.id), Some(vector(&[1.0, 0.1])), "the vector of the text alone");
    assert_eq!(kept(MemoryId::from_bytes([7; 16])), None, "nobody has no vector");
    assert_eq!(ask(&vector(&[1.0, 0.0])), [cat.id], "found by meaning alone");
    assert_eq!(ask(&vector(&[0.0, 1.0])), [car.id]);
    let without = world.store.recall(&query, None, world.now()).expect("recalls");
    assert_eq!(without.degraded, ["embedding"]);

    let next = EmbeddingGeneration(format!("{start}+"));
    let stats = world.store.stats();
    world.store.set_generation(&next).expect("sets a generation");
    assert_eq!(world.store.stats().embeddings_pending, stats.memories + stats.superseded);
    assert_eq!(ask(&vector(&[1.0, 0.0])), [cat.id], "old vectors serve until they are replaced");
    let late = vec![(cat.id, vec![vector(&[0.0, 1.0]); 2])];
    world.store.store_embeddings(&start, late).expect("takes late vectors");
    assert_eq!(ask(&vector(&[1.0, 0.0])), [cat.id], "vectors of an old generation replace none");
    drain(world, &next, &meaning);
    world.store.set_generation(&next).expect("setting it again is nothing new");
    assert_eq!(world.store.stats().embeddings_pending, 0);
    assert_eq!(ask(&vector(&[1.0, 0.0])), [cat.id]);
}

fn vectors_out_of_bounds_are_refused(world: &World<'_>) {
    let space = world.namespace();
    let note = world.note(&space, "waits for vectors");
    let refused = |views| {
        let generation = EmbeddingGeneration("bounds".into());
        matches!(
            world.store.store_embeddings(&generation, vec![(note.id, views)]),
            Err(StoreError::InvalidQuery { field: "embeddings", .. })
        )
    };
    assert!(refused(vec![]) && refused(vec![vector(&[1.0]), vector(&[1.0, 0.0])]));
    let nameless = EmbeddingGeneration(String::new());
    assert!(matches!(world.store.set_generation(&nameless), Err(StoreError::InvalidQuery { field: "generation", .. })));
}

fn every_task_of_upkeep_runs(world: &World<'_>) {
    for task in [
        MaintenanceTask::Purge,
        MaintenanceTask::Compact,
        MaintenanceTask::Index,
        MaintenanceTask::Cleanup,
        MaintenanceTask::Audit,
    ] {
        let report = world.store.maintain(task, world.now()).expect("upkeep runs");
        assert!(report.measure.is_none_or(f64::is_finite), "{task:?}");
    }
}
