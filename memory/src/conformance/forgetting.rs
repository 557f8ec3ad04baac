//! What is forgotten is gone at once, stays gone, and takes nothing along that should stay.

use mneme_base::{MemoryId, TrustTier};

use super::{World, from};
use crate::domain::{ForgetReceipt, ForgetSelector, NewMemory, RecallQuery};
use crate::store::{MaintenanceTask, Operation, OperationKind, OperationResult, Refusal, Scan};

pub(super) fn run(world: &World<'_>) {
    what_is_forgotten_is_gone_at_once(world);
    each_selector_takes_what_it_names(world);
    what_was_forgotten_can_be_remembered_anew(world);
    revoking_a_source_brings_back_what_it_displaced(world);
    forgetting_the_middle_of_a_chain_joins_its_ends(world);
    a_purge_completes_the_receipt(world);
    remembering_and_forgetting_in_one_batch_leaves_nothing(world);
}

fn forget(world: &World<'_>, selector: ForgetSelector) -> ForgetReceipt {
    match world.apply(OperationKind::Forget(selector)) {
        Ok(OperationResult::Forgotten(receipt)) => receipt,
        other => panic!("expected a receipt, got {other:?}"),
    }
}

fn what_is_forgotten_is_gone_at_once(world: &World<'_>) {
    let space = world.namespace();
    let receipt = world.note(&space, "the password hint is the dog's name");
    let kept = world.note(&space, "the dog likes apples");
    let forgotten = forget(world, ForgetSelector::Ids(vec![receipt.id, receipt.id, MemoryId::from_bytes([8; 16])]));
    assert_eq!(forgotten.ids, [receipt.id]);
    assert_eq!(forgotten.purged_at, None);
    assert_eq!(world.store.get(receipt.id).expect("reads"), None);
    assert_eq!(world.recalled(&space, "dog"), ["the dog likes apples"]);
    let page = world.store.scan(&Scan { namespace: Some(space.clone()), after: None, limit: 10 }).expect("scans");
    assert_eq!(page.iter().map(|memory| memory.id).collect::<Vec<_>>(), [kept.id]);
    let query = RecallQuery { as_of: Some(forgotten.hidden_at), ..RecallQuery::new(space, "password hint", 10) };
    let then = world.store.recall(&query, None, world.now()).expect("recalls");
    assert!(then.hits.iter().all(|hit| hit.memory.id != receipt.id), "also not as of before");
    let nothing = forget(world, ForgetSelector::Ids(vec![receipt.id]));
    assert!(nothing.ids.is_empty() && nothing.purged_at.is_some(), "nothing forgotten, nothing outstanding");
    let corroborate = OperationKind::Corroborate { id: receipt.id };
    assert_eq!(world.apply(corroborate), Err(Refusal::NotFound { id: receipt.id }));
}

fn each_selector_takes_what_it_names(world: &World<'_>) {
    let (space, other) = (world.namespace(), world.namespace());
    let source = format!("file:/{}", world.number());
    let make = |namespace: &mneme_base::Namespace, text: &str, source: &str, thread: Option<&str>| {
        world
            .remember(NewMemory {
                provenance: from(source, TrustTier::Observed),
                thread: thread.map(str::to_owned),
                ..NewMemory::note(namespace.clone(), text, "test")
            })
            .id
    };
    let by_source = make(&other, "from the source elsewhere", &source, None);
    let in_thread = make(&space, "in the thread", "x", Some("t"));
    let other_thread = make(&space, "in another thread", "x", Some("t2"));
    let elsewhere = make(&other, "in a thread of the same name elsewhere", "x", Some("t"));
    let longer_source = make(&space, "of a longer name", &format!("{source}/more"), None);
    assert_eq!(forget(world, ForgetSelector::Source(source)).ids, [by_source]);
    let thread = ForgetSelector::Thread { namespace: space.clone(), thread: "t".into() };
    assert_eq!(forget(world, thread).ids, [in_thread]);
    let mut rest = [other_thread, longer_source];
    rest.sort_unstable();
    assert_eq!(forget(world, ForgetSelector::Namespace(space)).ids, rest);
    assert!(world.store.get(elsewhere).expect("reads").is_some());
}

fn what_was_forgotten_can_be_remembered_anew(world: &World<'_>) {
    let space = world.namespace();
    let first = world.note(&space, "the key is under the mat");
    forget(world, ForgetSelector::Ids(vec![first.id]));
    let again = world.note(&space, "the key is under the mat");
    assert!(!again.duplicate && again.id != first.id);
    assert_eq!(world.recall(&space, "key").hits.len(), 1);
}

fn revoking_a_source_brings_back_what_it_displaced(world: &World<'_>) {
    let space = world.namespace();
    let source = format!("agent:{}", world.number());
    let told = |source: &str, text: &str| NewMemory {
        provenance: from(source, TrustTier::Reported),
        ..NewMemory::note(space.clone(), text, "test")
    };
    let truth = world.remember(told("agent:before", "the meeting is on Monday"));
    let by = told(&source, "the meeting is on Friday");
    assert!(world.apply(OperationKind::Supersede { id: truth.id, by }).is_ok());
    assert_eq!(world.recalled(&space, "meeting"), ["the meeting is on Friday"]);
    forget(world, ForgetSelector::Source(source));
    assert_eq!(world.recalled(&space, "meeting"), ["the meeting is on Monday"]);
    assert_eq!(world.store.get(truth.id).expect("reads").expect("is there").superseded_by, None);
}

fn forgetting_the_middle_of_a_chain_joins_its_ends(world: &World<'_>) {
    let space = world.namespace();
    let first = world.note(&space, "draft one");
    let replace = |id, text: &str| {
        let by = NewMemory::note(space.clone(), text, "test");
        match world.apply(OperationKind::Supersede { id, by }) {
            Ok(OperationResult::Superseded(receipt)) => receipt.id,
            other => panic!("{other:?}"),
        }
    };
    let middle = replace(first.id, "draft two");
    let last = replace(middle, "draft three");
    forget(world, ForgetSelector::Ids(vec![middle]));
    let get = |id| world.store.get(id).expect("reads").expect("is there");
    assert_eq!(get(first.id).superseded_by.map(|(id, _)| id), Some(last));
    assert_eq!(get(last).supersedes, Some(first.id));
    forget(world, ForgetSelector::Ids(vec![last]));
    assert!(world.recall(&space, "draft").hits.is_empty(), "forgetting the newest does not bring the older back");
}

fn a_purge_completes_the_receipt(world: &World<'_>) {
    let space = world.namespace();
    let note = world.note(&space, "gone for good");
    let operation = world.operation(OperationKind::Forget(ForgetSelector::Ids(vec![note.id])));
    let outcome = world.apply_all(std::slice::from_ref(&operation)).remove(0);
    assert!(world.store.stats().purge_pending > 0);
    let now = world.now();
    let report = world.store.maintain(MaintenanceTask::Purge, now).expect("purges");
    assert!(report.items > 0);
    assert_eq!(world.store.stats().purge_pending, 0);
    let replay = world.apply_all(&[operation]).remove(0);
    let (Ok(OperationResult::Forgotten(before)), Ok(OperationResult::Forgotten(after))) =
        (outcome.result, replay.result)
    else {
        panic!("forgets")
    };
    assert_eq!((before.purged_at, after.purged_at), (None, Some(now)));
    let nothing = world.store.maintain(MaintenanceTask::Purge, world.now()).expect("purges");
    assert_eq!(nothing.items, 0);
}

fn remembering_and_forgetting_in_one_batch_leaves_nothing(world: &World<'_>) {
    let space = world.namespace();
    let remember = |text: &str| world.operation(OperationKind::Remember(NewMemory::note(space.clone(), text, "test")));
    let batch: [Operation; 4] = [
        remember("here and gone"),
        remember("here and gone"),
        world.operation(OperationKind::Forget(ForgetSelector::Namespace(space.clone()))),
        remember("here and gone"),
    ];
    let outcomes = world.apply_all(&batch);
    let Ok(OperationResult::Forgotten(receipt)) = &outcomes[2].result else { panic!("forgets") };
    assert_eq!(receipt.ids.len(), 1, "the second was evidence for the first");
    let page = world.store.scan(&Scan { namespace: Some(space), after: None, limit: 10 }).expect("scans");
    assert_eq!((page.len(), page[0].evidence), (1, 0));
}
