//! What a store relies on: filters, forgetting, neighbours, duplicates, degradation.

use mneme_base::{ContentHash, Embedding, Lsn, MemoryId, Namespace, Provenance, Timestamp, TrustTier};
use std::collections::HashMap;

use crate::index::duplicates::signature;

use super::{IndexOptions, PHRASE_ROWS_MAX, RankedRecall, RecallIndex, context_texts};
use crate::domain::{Memory, MemoryKind, MemoryState, RecallQuery};
use crate::store::StoreError;

/// An index beside its memories, as a store has them.
struct World {
    index: RecallIndex,
    memories: HashMap<MemoryId, Memory>,
    count: i64,
}

impl World {
    fn new() -> Self {
        Self { index: RecallIndex::new(IndexOptions::default()), memories: HashMap::new(), count: 0 }
    }

    fn put(&mut self, text: &str, change: impl FnOnce(&mut Memory)) -> MemoryId {
        self.count += 1;
        let at = Timestamp::from_millis(1_700_000_000_000 + self.count * 60_000);
        let mut memory = Memory {
            id: MemoryId::generate(at),
            namespace: Namespace::default(),
            kind: MemoryKind::Note,
            text: text.into(),
            speaker: None,
            thread: None,
            position: None,
            metadata: std::collections::BTreeMap::new(),
            provenance: Provenance::user("test"),
            valid_from: at,
            valid_to: None,
            recorded_at: at,
            supersedes: None,
            superseded_by: None,
            state: MemoryState::Active,
            content_hash: ContentHash::of(text.as_bytes()),
            evidence: 0,
            redactions: 0,
            lsn: Lsn(self.count as u64),
        };
        change(&mut memory);
        self.index.upsert(&memory);
        let id = memory.id;
        self.memories.insert(id, memory);
        id
    }

    fn ask(&self, query: &RecallQuery, embedding: Option<&Embedding>) -> Result<RankedRecall, StoreError> {
        let now = Timestamp::from_millis(1_800_000_000_000);
        self.index.recall(query, embedding, now, &|id| self.memories.get(&id).cloned())
    }

    fn ids(&self, query: &RecallQuery) -> Vec<MemoryId> {
        self.ask(query, None).unwrap().hits.into_iter().map(|hit| hit.id).collect()
    }
}

fn query(text: &str) -> RecallQuery {
    RecallQuery::new(Namespace::default(), text, 10)
}

#[test]
fn the_memory_with_the_rare_word_comes_first() {
    let mut world = World::new();
    let violin = world.put("Anna plays the violin", |_| {});
    world.put("Anna plays chess", |_| {});
    assert_eq!(world.ids(&query("who plays a violin?"))[0], violin);
}

#[test]
fn a_removed_memory_is_never_returned_and_its_second_removal_says_no() {
    let mut world = World::new();
    let gone = world.put("the launch code is in the safe", |_| {});
    assert!(world.index.remove(gone));
    assert!(!world.index.remove(gone));
    assert!(world.ids(&query("launch code safe")).is_empty());
    assert_eq!(world.index.near_duplicate(signature("the launch code is in the safe"), &Namespace::default()), None);
}

#[test]
fn namespaces_are_never_crossed() {
    let mut world = World::new();
    world.put("the garden gate is green", |memory| memory.namespace = "other".parse().unwrap());
    assert!(world.ids(&query("garden gate")).is_empty());
    let mut both = query("garden gate");
    both.namespaces.push("other".parse().unwrap());
    assert_eq!(world.ids(&both).len(), 1);
}

#[test]
fn filters_act_inside_the_ranking() {
    let mut world = World::new();
    let fact = world.put("tea is green", |memory| {
        memory.kind = MemoryKind::Fact;
        memory.provenance.source = "file:/notes/tea".into();
        memory.speaker = Some("Anna".into());
        memory.metadata.insert("topic".into(), "tea".into());
    });
    for _ in 0..50 {
        world.put("tea tea tea is black", |memory| memory.provenance.trust = TrustTier::Reported);
    }
    let check = |change: &dyn Fn(&mut RecallQuery)| {
        let mut asked = query("tea");
        asked.limit = 5;
        change(&mut asked);
        assert_eq!(world.ids(&asked), [fact]);
    };
    check(&|q| q.filter.kinds.push(MemoryKind::Fact));
    check(&|q| q.filter.sources.push("file:/notes/*".into()));
    check(&|q| q.filter.speakers.push("ANNA".into()));
    check(&|q| q.filter.trust_min = Some(TrustTier::User));
    check(&|q| drop(q.filter.metadata.insert("topic".into(), "tea".into())));
}

#[test]
fn quarantine_is_returned_only_when_asked_for() {
    let mut world = World::new();
    let id = world.put("buy our pills", |memory| memory.state = MemoryState::Quarantined);
    assert!(world.ids(&query("pills")).is_empty());
    let mut asked = query("pills");
    asked.filter.include_quarantined = true;
    assert_eq!(world.ids(&asked), [id]);
}

#[test]
fn as_of_sees_what_was_true_then() {
    let mut world = World::new();
    let old = world.put("Anna lives in Oslo", |_| {});
    let new = world.put("Anna lives in Bergen", |_| {});
    let replaced = Timestamp::from_millis(1_750_000_000_000);
    let memory = world.memories.get_mut(&old).unwrap();
    memory.state = MemoryState::Superseded;
    memory.superseded_by = Some((new, replaced));
    world.index.upsert(&memory.clone());
    assert_eq!(world.ids(&query("Anna lives")), [new]);
    let mut asked = query("Anna lives");
    asked.as_of = Some(Timestamp::from_millis(1_700_000_000_000 + 90_000));
    assert_eq!(world.ids(&asked), [old]);
}

#[test]
fn a_phrase_in_quotes_must_stand_as_it_is() {
    let mut world = World::new();
    let with = world.put("We moved to New York last spring", |_| {});
    world.put("York is not a new city", |_| {});
    assert_eq!(world.ids(&query("\"new york\"")), [with]);
}

#[test]
fn neighbours_are_the_nearest_positions_of_the_thread() {
    let mut world = World::new();
    let turn = |world: &mut World, thread: &str, position| {
        world.put("a turn", |memory| {
            memory.thread = Some(thread.into());
            memory.position = Some(position);
        })
    };
    let ids: Vec<MemoryId> = [5, 1, 3, 9].into_iter().map(|position| turn(&mut world, "a", position)).collect();
    turn(&mut world, "b", 4);
    assert_eq!(world.index.neighbours(ids[0]), [ids[1], ids[2], ids[3]]);
    world.index.remove(ids[2]);
    assert_eq!(world.index.neighbours(ids[1]), [ids[0], ids[3]]);
}

#[test]
fn without_an_embedding_the_answer_is_from_text_and_says_so() {
    let mut world = World::new();
    let id = world.put("Anna plays the violin", |_| {});
    assert_eq!(world.ask(&query("violin"), None).unwrap().degraded, ["embedding"]);
    let vector = Embedding::normalized(vec![1.0, 2.0, 3.0]).unwrap();
    world.index.set_embeddings(id, &[vector.clone(), vector.clone()]);
    let answer = world.ask(&query("instrument"), Some(&vector)).unwrap();
    assert!(answer.degraded.is_empty());
    assert_eq!(answer.hits[0].id, id);
}

#[test]
fn malformed_questions_are_refused_by_field() {
    let world = World::new();
    let refused = |change: &dyn Fn(&mut RecallQuery)| {
        let mut asked = query("tea");
        change(&mut asked);
        match world.ask(&asked, None) {
            Err(StoreError::InvalidQuery { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|q| q.text = " ".into()), "text");
    assert_eq!(refused(&|q| q.text = "x".repeat(20_000)), "text");
    assert_eq!(refused(&|q| q.limit = 0), "limit");
    assert_eq!(refused(&|q| q.limit = 1_001), "limit");
    assert_eq!(refused(&|q| q.namespaces.clear()), "namespaces");
    assert_eq!(refused(&|q| q.diversity = f32::NAN), "diversity");
}

#[test]
fn explanations_name_the_rankings_and_the_words() {
    let mut world = World::new();
    world.put("Anna plays the violin", |_| {});
    let mut asked = query("violin players");
    asked.explain = true;
    let hit = world.ask(&asked, None).unwrap().hits.remove(0);
    let explanation = hit.explanation.unwrap();
    assert_eq!(explanation.signals[0].name, "bm25");
    assert_eq!(explanation.signals[0].rank, 1);
    assert_eq!(explanation.matched_terms, ["violin"]);
}

#[test]
fn variety_brings_another_subject_forward() {
    let mut world = World::new();
    world.put("tea from China is green and good tea", |_| {});
    world.put("Tea from China is green and good tea!", |_| {});
    let other = world.put("tea makes me sleep badly at night", |_| {});
    let mut asked = query("tea from China");
    asked.limit = 2;
    assert!(!world.ids(&asked).contains(&other));
    asked.diversity = 0.7;
    assert!(world.ids(&asked).contains(&other));
}

#[test]
fn context_text_puts_date_and_neighbours_around_the_memory() {
    let mut world = World::new();
    let ids: Vec<MemoryId> = ["Any news?", "We got a puppy", "Congratulations!"]
        .into_iter()
        .zip(["Ben", "Anna", "Ben"])
        .enumerate()
        .map(|(position, (text, speaker))| {
            world.put(text, |memory| {
                memory.thread = Some("chat".into());
                memory.position = Some(position as u64);
                memory.speaker = Some(speaker.into());
            })
        })
        .collect();
    let near: Vec<Memory> = world.index.neighbours(ids[1]).iter().map(|id| world.memories[id].clone()).collect();
    assert_eq!(
        context_texts(&world.memories[&ids[1]], &near),
        ["Anna: We got a puppy", "2023-11-14\nBen: Any news?\nAnna: We got a puppy\nBen: Congratulations!",]
    );
}

#[test]
fn compaction_changes_numbers_and_nothing_else() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for number in 0..40_u64 {
        let id = world.put(&format!("turn {number} about the topic{} and tea", number % 5), |memory| {
            memory.thread = Some("chat".into());
            memory.position = Some(number);
        });
        let vector = Embedding::normalized(vec![1.0, number as f32 / 40.0, 0.3]).unwrap();
        world.index.set_embeddings(id, &[vector.clone(), vector]);
        ids.push(id);
    }
    for id in ids.iter().step_by(3) {
        world.index.remove(*id);
    }
    let vector = Embedding::normalized(vec![1.0, 0.5, 0.3]).unwrap();
    let asked = query("topic1");
    let order = |world: &World| -> Vec<MemoryId> {
        world.ask(&asked, Some(&vector)).unwrap().hits.into_iter().map(|hit| hit.id).collect()
    };
    let dense = |world: &World| {
        let query = world.index.own.query(&vector).unwrap();
        let top = world.index.own.top(&query, 5, world.index.columns.live(), 1);
        top.into_iter().map(|scored| world.index.id_of_row(scored.row)).collect::<Vec<_>>()
    };
    let before = (dense(&world), world.index.neighbours(ids[4]), world.index.len());
    let found: std::collections::HashSet<MemoryId> = order(&world).into_iter().collect();
    world.index.compact();
    assert_eq!((dense(&world), world.index.neighbours(ids[4]), world.index.len()), before);
    assert_eq!(order(&world).into_iter().collect::<std::collections::HashSet<_>>(), found);
    assert_eq!(world.index.columns.len(), world.index.len());
    assert!(world.index.remove(ids[4]) && !world.index.remove(ids[0]));
}

#[test]
fn named_speakers_are_addressed_in_the_text_to_embed() {
    let mut world = World::new();
    world.put("hello", |memory| memory.speaker = Some("Anna Smith".into()));
    world.put("hello", |memory| memory.speaker = Some("Will".into()));
    world.put("hello", |memory| {
        memory.speaker = Some("Miami".into());
        memory.namespace = "other".parse().unwrap();
    });
    let text = |question: &str| world.index.embedding_text(&query(question));
    assert_eq!(text("What are Anna's hobbies?"), "What are your hobbies?");
    assert_eq!(text("Does Anna Smith ski?"), "Does you ski?");
    assert_eq!(text("Where does anna work?"), "Where does you work?");
    assert_eq!(text("How will it end in Miami?"), "How will it end in Miami?");
}

#[test]
fn what_a_named_speaker_said_comes_before_what_others_said() {
    let mut world = World::new();
    world.put("I love hiking in the hills", |memory| memory.speaker = Some("Ben".into()));
    let hers = world.put("I love hiking in the hills", |memory| memory.speaker = Some("Anna".into()));
    assert_eq!(world.ids(&query("Does Anna love hiking?"))[0], hers);
}

#[test]
fn what_was_said_on_a_named_day_comes_first() {
    let mut world = World::new();
    let on = |date: &str| -> Timestamp { date.parse().unwrap() };
    world.put("we played basketball in the park", |memory| memory.valid_from = on("2024-03-01T10:00:00Z"));
    let fifth = world.put("we played basketball in the park", |memory| memory.valid_from = on("2024-01-05T10:00:00Z"));
    world.put("we played basketball in the park", |memory| memory.valid_from = on("2023-11-05T10:00:00Z"));
    assert_eq!(world.ids(&query("where was basketball played on 5 January 2024?"))[0], fifth);
}

#[test]
fn a_phrase_of_words_that_are_in_everything_looks_at_a_bounded_number_of_texts() {
    let mut world = World::new();
    for number in 0..=PHRASE_ROWS_MAX {
        world.put(&format!("it is what it is, number {number}"), |_| {});
    }
    let wanted = world.put("violins: it is what it is", |_| {});
    let looked = std::cell::Cell::new(0_usize);
    let fetch = |id: MemoryId| {
        looked.set(looked.get() + 1);
        world.memories.get(&id).cloned()
    };
    let now = Timestamp::from_millis(1_800_000_000_000);
    let found = world.index.recall(&query("violins \"it is what it is\""), None, now, &fetch).unwrap();
    assert!(looked.get() <= PHRASE_ROWS_MAX, "{} texts", looked.get());
    assert_eq!(found.hits[0].id, wanted, "the best by text are those that are looked at");
    assert_eq!(found.hits.len(), 10);
    assert!(found.degraded.contains(&"phrase".into()), "{:?}", found.degraded);
}

#[test]
fn names_go_with_the_last_memory_that_has_them() {
    let mut world = World::new();
    let named = |number: u64| {
        move |memory: &mut Memory| {
            memory.thread = Some(format!("thread {}", number % 3));
            memory.position = Some(number);
            memory.speaker = Some(format!("Speaker{}", number % 3));
            memory.provenance.source = format!("source {}", number % 3);
            memory.namespace = format!("space{}", number % 3).parse().unwrap();
        }
    };
    let ids: Vec<MemoryId> = (0..9).map(|number| world.put(&format!("violin {number}"), named(number))).collect();
    let neighbours = world.index.neighbours(ids[5]);
    for id in ids.iter().step_by(3) {
        world.index.remove(*id);
    }
    world.index.compact();
    let columns = &world.index.columns;
    assert_eq!(columns.source_names.get("source 0"), None);
    assert_eq!(columns.speaker_names.get("speaker0"), None);
    assert_eq!(columns.namespace_names.get("space0"), None);
    assert_eq!(columns.speakers_named("speaker0", &[0, 1, 2]).count(), 0);
    assert_eq!(world.index.neighbours(ids[5]), neighbours, "threads keep their order");
    let mut question = query("violin");
    question.namespaces = vec!["space2".parse().unwrap()];
    question.filter.threads = vec!["thread 2".into()];
    question.filter.sources = vec!["source 2".into()];
    question.filter.speakers = vec!["speaker2".into()];
    let mut found = world.ids(&question);
    found.sort_unstable();
    assert_eq!(found, [ids[2], ids[5], ids[8]]);
    let again = world.put("violin 9", named(2));
    assert!(world.ids(&question).contains(&again));
}

#[test]
fn a_filter_or_a_time_out_of_bounds_is_refused_by_name() {
    let world = World::new();
    let field = |question: RecallQuery| match world.ask(&question, None) {
        Err(StoreError::InvalidQuery { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let mut question = query("violin");
    question.filter.sources = vec!["*".into(); super::query::FILTER_ENTRIES_MAX + 1];
    assert_eq!(field(question), "sources");
    let before_christ = Some(Timestamp::from_millis(-377_705_023_201_000));
    assert_eq!(field(RecallQuery { reference_time: before_christ, ..query("last winter") }), "reference_time");
    assert_eq!(field(RecallQuery { as_of: before_christ, ..query("violin") }), "as_of");
}
