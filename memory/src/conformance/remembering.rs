//! What is written can be read, once, in its own namespace, as it stood at a time.

use mneme_base::{OpId, TrustTier};

use super::{World, from};
use crate::domain::{MemoryState, NewMemory, RecallQuery, TEXT_BYTES_MAX};
use crate::store::{Document, Operation, OperationKind, OperationResult, Refusal, Scan, StoreError};

pub(super) fn run(world: &World<'_>) {
    what_is_remembered_is_there_at_once(world);
    sending_an_operation_twice_does_it_once(world);
    nearly_the_same_in_one_batch_is_named(world);
    a_batch_is_carried_out_in_order_and_a_refusal_leaves_the_others_alone(world);
    the_same_content_again_is_evidence_and_not_a_copy(world);
    a_superseded_memory_is_found_only_as_of_before(world);
    a_chain_of_replacements_keeps_its_links(world);
    what_is_trusted_less_replaces_nothing_that_is_trusted_more(world);
    what_is_untrusted_is_recalled_only_when_asked_for(world);
    namespaces_are_apart(world);
    pages_follow_each_other(world);
    documents_are_scanned_in_key_order(world);
    questions_out_of_bounds_are_refused(world);
    stats_count_what_is_there(world);
}

fn what_is_remembered_is_there_at_once(world: &World<'_>) {
    let space = world.namespace();
    let receipt = world.note(&space, "the boat leaves at noon");
    let memory = world.store.get(receipt.id).expect("reads").expect("is there");
    assert_eq!(memory.text, "the boat leaves at noon");
    assert_eq!((memory.lsn, memory.state, memory.evidence), (receipt.lsn, MemoryState::Active, 0));
    assert_eq!(world.recalled(&space, "when does the boat leave"), ["the boat leaves at noon"]);
    assert!(world.recall(&space, "boat").lsn >= receipt.lsn, "an answer says what it has seen");
}

fn sending_an_operation_twice_does_it_once(world: &World<'_>) {
    let space = world.namespace();
    let note = |text: &str| OperationKind::Remember(NewMemory::note(space.clone(), text, "test"));
    let first = world.operation(note("only once"));
    let again = first.clone();
    let other = Operation { kind: note("something else"), ..first.clone() };
    let outcomes = world.apply_all(&[first.clone(), again]);
    assert!(!outcomes[0].replayed && outcomes[1].replayed, "also within one batch");
    assert_eq!(outcomes[0].result, outcomes[1].result);
    let outcomes = world.apply_all(&[first.clone(), other]);
    assert!(outcomes[0].replayed);
    assert_eq!(outcomes[1].result, Err(Refusal::OpIdConflict { op_id: first.op_id }));
    let page = world.store.scan(&Scan { namespace: Some(space), after: None, limit: 10 }).expect("scans");
    assert_eq!((page.len(), page[0].evidence), (1, 0));
}

fn nearly_the_same_in_one_batch_is_named(world: &World<'_>) {
    let space = world.namespace();
    let note = |text: &str| world.operation(OperationKind::Remember(NewMemory::note(space.clone(), text, "test")));
    let texts =
        ["the old lighthouse stands north of the harbour", "The old lighthouse stands, north of the HARBOUR!", "cats"];
    let receipts: Vec<_> = world
        .apply_all(&texts.map(note))
        .into_iter()
        .map(|outcome| match outcome.result {
            Ok(OperationResult::Remembered(receipt)) => receipt,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(receipts[0].near_duplicate_of, None);
    assert_eq!(receipts[1].near_duplicate_of, Some(receipts[0].id));
    assert_eq!(receipts[2].near_duplicate_of, None);
}

fn a_batch_is_carried_out_in_order_and_a_refusal_leaves_the_others_alone(world: &World<'_>) {
    let space = world.namespace();
    let note = |text: String| OperationKind::Remember(NewMemory::note(space.clone(), text, "test"));
    let lsn = world.store.stats().lsn;
    let outcomes = world.apply_all(&[
        world.operation(note("first".into())),
        world.operation(note("x".repeat(TEXT_BYTES_MAX + 1))),
        world.operation(note("third".into())),
    ]);
    assert!(matches!(outcomes[1].result, Err(Refusal::Invalid { field: "text", .. })));
    let places: Vec<u64> = [&outcomes[0], &outcomes[2]]
        .into_iter()
        .map(|outcome| match &outcome.result {
            Ok(OperationResult::Remembered(receipt)) => receipt.lsn.0 - lsn.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(places, [1, 2], "a refused operation takes no place in the journal");
    assert_eq!(world.store.stats().lsn.0, lsn.0 + 2);
}

fn the_same_content_again_is_evidence_and_not_a_copy(world: &World<'_>) {
    let space = world.namespace();
    let first = world.note(&space, "tea at five");
    let again = world.remember(NewMemory {
        provenance: from("web:example", TrustTier::Untrusted),
        ..NewMemory::note(space.clone(), "tea at five", "other")
    });
    assert!(again.duplicate && again.id == first.id && again.lsn > first.lsn);
    let memory = world.store.get(first.id).expect("reads").expect("is there");
    assert_eq!((memory.evidence, memory.state), (1, MemoryState::Active));
    assert_eq!(memory.provenance.source, "user", "provenance never changes");
    let elsewhere = world.note(&world.namespace(), "tea at five");
    assert!(!elsewhere.duplicate, "namespaces do not share content");
}

fn a_superseded_memory_is_found_only_as_of_before(world: &World<'_>) {
    let space = world.namespace();
    let old = world.note(&space, "the office is in Lisbon");
    let recorded = world.store.get(old.id).expect("reads").expect("is there").recorded_at;
    let by = NewMemory::note(space.clone(), "the office moved to Porto", "test");
    let kind = OperationKind::Supersede { id: old.id, by };
    let Ok(OperationResult::Superseded(new)) = world.apply(kind.clone()) else { panic!("supersedes") };
    assert_eq!(world.recalled(&space, "where is the office"), ["the office moved to Porto"]);
    let query = RecallQuery { as_of: Some(recorded), ..RecallQuery::new(space.clone(), "where is the office", 10) };
    let then = world.store.recall(&query, None, world.now()).expect("recalls");
    assert_eq!(then.hits.iter().map(|hit| hit.memory.id).collect::<Vec<_>>(), [old.id]);
    let old_memory = world.store.get(old.id).expect("reads").expect("is kept");
    assert_eq!(old_memory.superseded_by.map(|(id, _)| id), Some(new.id));
    assert_eq!(world.store.get(new.id).expect("reads").expect("is there").supersedes, Some(old.id));
    assert_eq!(world.apply(kind), Err(Refusal::AlreadySuperseded { id: old.id, by: new.id }));
    let nobody = mneme_base::MemoryId::from_bytes([9; 16]);
    let kind = OperationKind::Supersede { id: nobody, by: NewMemory::note(space, "x", "test") };
    assert_eq!(world.apply(kind), Err(Refusal::NotFound { id: nobody }));
}

fn a_chain_of_replacements_keeps_its_links(world: &World<'_>) {
    let space = world.namespace();
    let a = world.note(&space, "version one of the plan");
    let supersede = |id, text: &str| {
        let by = NewMemory::note(space.clone(), text, "test");
        match world.apply(OperationKind::Supersede { id, by }) {
            Ok(OperationResult::Superseded(receipt)) => receipt,
            other => panic!("{other:?}"),
        }
    };
    let b = supersede(a.id, "version two of the plan");
    let same = supersede(b.id, "version two of the plan");
    assert!(same.duplicate && same.id == b.id, "replacing something by itself is evidence");
    let back = supersede(b.id, "version one of the plan");
    assert!(!back.duplicate && back.id != a.id, "what was replaced can be said again");
    assert_eq!(world.recalled(&space, "plan"), ["version one of the plan"]);
}

fn what_is_trusted_less_replaces_nothing_that_is_trusted_more(world: &World<'_>) {
    let tiers = [TrustTier::Untrusted, TrustTier::Reported, TrustTier::Observed, TrustTier::User];
    for (old_place, old_trust) in tiers.into_iter().enumerate() {
        for (new_place, new_trust) in tiers.into_iter().enumerate() {
            let space = world.namespace();
            let note = |trust, text: &str| NewMemory {
                provenance: from("test", trust),
                ..NewMemory::note(space.clone(), text, "test")
            };
            let old = world.remember(note(old_trust, "the office is in Lisbon"));
            let by = note(new_trust, "the office moved to Porto");
            let outcome = world.apply(OperationKind::Supersede { id: old.id, by });
            let replaced = world.store.get(old.id).expect("reads").expect("is kept").superseded_by.is_some();
            assert_eq!(replaced, new_place >= old_place, "{new_trust:?} over {old_trust:?}");
            match outcome {
                Ok(_) => assert!(replaced),
                Err(Refusal::Invalid { field, .. }) => assert_eq!((field, replaced), ("provenance.trust", false)),
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

fn what_is_untrusted_is_recalled_only_when_asked_for(world: &World<'_>) {
    let space = world.namespace();
    let hearsay = |text: &str| NewMemory {
        provenance: from("web:example.org", TrustTier::Untrusted),
        ..NewMemory::note(space.clone(), text, "test")
    };
    let receipt = world.remember(hearsay("the moon is made of cheese"));
    assert!(receipt.quarantined);
    assert_eq!(world.recalled(&space, "moon"), Vec::<String>::new());
    let mut query = RecallQuery::new(space.clone(), "moon", 10);
    query.filter.include_quarantined = true;
    let asked = world.store.recall(&query, None, world.now()).expect("recalls");
    assert_eq!(asked.hits[0].memory.state, MemoryState::Quarantined);
    assert!(world.apply(OperationKind::Corroborate { id: receipt.id }).is_ok());
    assert_eq!(world.recalled(&space, "moon"), ["the moon is made of cheese"]);

    let second = world.remember(hearsay("the sun is a lamp"));
    assert!(second.quarantined);
    let said_by_user = world.note(&space, "the sun is a lamp");
    assert!(said_by_user.duplicate && !said_by_user.quarantined, "somebody trusted says the same");

    let truth = world.note(&space, "water boils at a hundred degrees");
    let kind = OperationKind::Supersede { id: truth.id, by: hearsay("water boils at fifty degrees") };
    assert!(matches!(world.apply(kind), Err(Refusal::Invalid { field: "provenance.trust", .. })));
    let nobody = mneme_base::MemoryId::from_bytes([9; 16]);
    assert_eq!(world.apply(OperationKind::Corroborate { id: nobody }), Err(Refusal::NotFound { id: nobody }));
}

fn namespaces_are_apart(world: &World<'_>) {
    let (here, there) = (world.namespace(), world.namespace());
    world.note(&here, "a red bicycle");
    world.note(&there, "a blue bicycle");
    assert_eq!(world.recalled(&here, "bicycle"), ["a red bicycle"]);
    let query = RecallQuery { namespaces: vec![here, there], ..RecallQuery::new(world.namespace(), "bicycle", 10) };
    assert_eq!(world.store.recall(&query, None, world.now()).expect("recalls").hits.len(), 2);
}

fn pages_follow_each_other(world: &World<'_>) {
    let space = world.namespace();
    let mut expected: Vec<_> = (0..7).map(|n| world.note(&space, &format!("line number {n}")).id).collect();
    expected.sort_unstable();
    let mut seen = Vec::new();
    loop {
        let scan = Scan { namespace: Some(space.clone()), after: seen.last().copied(), limit: 3 };
        let page = world.store.scan(&scan).expect("scans");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3);
        seen.extend(page.into_iter().map(|memory| memory.id));
    }
    assert_eq!(seen, expected);
    let all = world.store.scan(&Scan { limit: 10_000, ..Scan::default() }).expect("scans");
    assert!(all.is_sorted_by_key(|memory| memory.id) && expected.iter().all(|id| all.iter().any(|m| m.id == *id)));
    assert!(world.store.scan(&Scan::default()).expect("scans").is_empty(), "a limit of zero is an empty page");
}

fn documents_are_scanned_in_key_order(world: &World<'_>) {
    let collection = format!("c{}", world.number());
    let row = |key: &str, value: Option<&str>| Document {
        collection: collection.clone(),
        key: key.into(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    let rows = vec![row("b/2", Some("two")), row("a", Some("first")), row("b/1", Some("one")), row("c", Some(""))];
    assert!(world.apply(OperationKind::Documents(rows)).is_ok());
    let read = |prefix: &str, after: Option<&str>, limit| {
        let rows = world.store.documents(&collection, prefix, after, limit).expect("reads");
        rows.into_iter().map(|row| row.key).collect::<Vec<_>>()
    };
    assert_eq!(read("", None, 10), ["a", "b/1", "b/2", "c"]);
    assert_eq!(read("b/", None, 10), ["b/1", "b/2"]);
    assert_eq!(read("", Some("a"), 2), ["b/1", "b/2"]);
    assert_eq!(read("b/", Some("a"), 10), ["b/1", "b/2"], "after a key before the prefix");
    assert_eq!(read("b/", Some("b/2"), 10), Vec::<String>::new());
    assert_eq!(read("b", Some("c"), 10), Vec::<String>::new(), "after a key behind the prefix");
    assert!(world.apply(OperationKind::Documents(vec![row("b/1", None), row("a", Some("changed"))])).is_ok());
    assert_eq!(read("", None, 10), ["a", "b/2", "c"]);
    let rows = world.store.documents(&collection, "a", None, 1).expect("reads");
    assert_eq!(rows[0].value.as_deref(), Some(&b"changed"[..]));
    let long = row(&"k".repeat(2_000), Some("x"));
    assert!(matches!(world.apply(OperationKind::Documents(vec![long])), Err(Refusal::Invalid { field: "key", .. })));
}

fn questions_out_of_bounds_are_refused(world: &World<'_>) {
    let space = world.namespace();
    let field = |query: &RecallQuery| match world.store.recall(query, None, world.now()) {
        Err(StoreError::InvalidQuery { field, .. }) => field,
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert_eq!(field(&RecallQuery::new(space.clone(), "", 10)), "text");
    assert_eq!(field(&RecallQuery::new(space.clone(), "x", 0)), "limit");
    assert_eq!(field(&RecallQuery::new(space.clone(), "x".repeat(20_000), 1)), "text");
    assert_eq!(field(&RecallQuery { namespaces: vec![], ..RecallQuery::new(space.clone(), "x", 1) }), "namespaces");
    assert_eq!(field(&RecallQuery { diversity: 2.0, ..RecallQuery::new(space.clone(), "x", 1) }), "diversity");
    assert!(world.recall(&space, "anything").hits.is_empty());
}

fn stats_count_what_is_there(world: &World<'_>) {
    let space = world.namespace();
    let before = world.store.stats();
    let old = world.note(&space, "counted as replaced");
    let by = NewMemory::note(space.clone(), "counted as active", "test");
    assert!(world.apply(OperationKind::Supersede { id: old.id, by }).is_ok());
    world.remember(NewMemory {
        provenance: from("web:counts", TrustTier::Untrusted),
        ..NewMemory::note(space.clone(), "counted as quarantined", "test")
    });
    let after = world.store.stats();
    assert_eq!(after.memories - before.memories, 2);
    assert_eq!(after.quarantined - before.quarantined, 1);
    assert_eq!(after.superseded - before.superseded, 1);
    assert_eq!(after.embeddings_pending - before.embeddings_pending, 3);
    assert_eq!(after.lsn.0 - before.lsn.0, 3);
    assert!(after.namespaces.contains(&(space, 2)));
    let op_id = OpId::new(u128::from(world.number()));
    let replay = Operation { op_id, kind: OperationKind::Corroborate { id: old.id } };
    assert!(world.apply_all(&[replay])[0].result.is_err(), "what is replaced needs no corroboration");
    assert_eq!(world.store.stats().lsn, after.lsn, "a refusal changes nothing");
}
