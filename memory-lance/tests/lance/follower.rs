//! The copy follows the store, survives what a crash leaves, and forgets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::AsArray as _;
use mneme_base::{Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, Timestamp};
use mneme_memory::durable::{Projection, restore};
use mneme_memory::{
    DurableStore, ForgetSelector, MaintenanceTask, MemoryStore, NewMemory, OperationKind, OperationResult, StoreError,
    StoreHealth,
};
use mneme_memory_lance::rows::memories_to_batch;
use mneme_memory_lance::schema::Table;
use mneme_memory_lance::shared::Shared;
use mneme_memory_lance::{ArrowStorage, LanceOptions, LanceProjection, StorageError};

use crate::support::{apply, attach, embed, files, in_copy, in_store, lance, memory, now, options, remember, vector};

#[test]
fn the_copy_is_what_the_store_is_after_every_kind_of_change() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let place = place.to_str().unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let ids = remember(&store, 0..40);
    embed(&store, &ids, 8);
    let copy = attach(&store, place);
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store), "what was there before it was attached");
    assert_eq!(copy.vectors().unwrap().len(), 40);

    remember(&store, 40..60);
    apply(&store, 900, OperationKind::Supersede { id: ids[3], by: memory(700) });
    apply(&store, 901, OperationKind::Forget(ForgetSelector::Ids(ids[5..9].to_vec())));
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
    assert_eq!(copy.vectors().unwrap().len(), 36, "vectors of forgotten memories are gone");
    // Nothing new: no version is made.
    assert_eq!(store.project().unwrap(), 0);

    // Vectors of other dimensions take the place of the old ones.
    embed(&store, &ids[10..20], 16);
    store.project().unwrap();
    let vectors = copy.vectors().unwrap();
    assert_eq!(vectors.len(), 10);
    assert!(vectors.iter().all(|row| row.generation.0 == "g16" && row.embeddings.len() == 2));
    let row = vectors.iter().find(|row| row.id == ids[12]).unwrap();
    assert!(row.embeddings[1].cosine(&vector(1_002, 16)).unwrap() > 0.999_99);

    drop((store, copy));
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place);
    remember(&store, 60..65);
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store), "it goes on where it was");
}

#[test]
fn a_copy_of_another_history_is_not_taken_for_that_of_a_restored_store() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 0..10);
    store.project().unwrap();
    let backup = folder.path().join("backup");
    store.backup(&backup).unwrap();
    remember(&store, 10..15);
    store.project().unwrap();
    let later = copy.checkpoint_lsn().unwrap();
    drop((store, copy));
    restore(&backup, &folder.path().join("restored")).unwrap();
    let store = DurableStore::open(&folder.path().join("restored"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    // Written before anybody looked at the copy: its checkpoint is no longer in the future.
    for number in 100..120 {
        remember(&store, number..number + 1);
    }
    assert!(store.lsn() > later);
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
    // It goes on from there.
    drop((store, copy));
    let store = DurableStore::open(&folder.path().join("restored"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 130..131);
    assert_eq!(store.project().unwrap(), 1, "it is not filled anew");
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn a_place_has_one_writer_and_no_scheme_that_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    // Not decoded: such a name is a name.
    let place = folder.path().join("a%20copy of it");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 0..3);
    store.project().unwrap();
    let mode = |path: PathBuf| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(place.clone()), mode(place.join("memories.lance"))), (0o700, 0o700), "it holds every text");
    let second = LanceProjection::open(place.to_str().unwrap(), lance());
    assert!(matches!(second, Err(StorageError::InUse { .. })), "{second:?}");
    drop((store, copy));
    LanceProjection::open(place.to_str().unwrap(), lance()).unwrap();
    for place in ["file:///tmp/x", "memory://x", "file+uring:///tmp/x"] {
        let refused = LanceProjection::new(place, lance());
        assert!(matches!(refused, Err(StorageError::Place { .. })), "{refused:?}");
    }
}

#[test]
fn damaged_indices_are_made_anew_and_stand_in_the_way_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    let ids = remember(&store, 0..40);
    embed(&store, &ids, 8);
    store.project().unwrap();
    store.maintain(MaintenanceTask::Index, now()).unwrap();
    drop((store, copy));
    let mut torn = Vec::new();
    for table in ["memories", "vectors"] {
        files(&place.join(format!("{table}.lance/_indices")), &mut torn);
    }
    assert!(torn.len() >= 2, "{torn:?}");
    for path in &torn {
        fs_err::write(path, b"torn").unwrap();
    }
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 40..45);
    apply(&store, 901, OperationKind::Forget(ForgetSelector::Ids(vec![ids[3]])));
    // The first step may find the damage; the next one has to be well.
    let _ = store.maintain(MaintenanceTask::Follow, now());
    store.maintain(MaintenanceTask::Follow, now()).unwrap();
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    store.maintain(MaintenanceTask::Index, now()).unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
    assert_eq!(copy.vectors().unwrap().len(), 39);
    assert_eq!(store.stats().health, StoreHealth::Healthy);
}

#[test]
fn vectors_that_are_half_way_to_another_width_are_filled_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    let ids = remember(&store, 0..30);
    embed(&store, &ids, 8);
    // The low ids have the new width, the high ones the old one.
    embed(&store, &ids[..15], 16);
    copy.reset().unwrap();
    store.project().unwrap();
    let widths = || {
        let rows = copy.vectors().unwrap();
        assert!(rows.iter().all(|row| row.embeddings[0].dimensions() == 16));
        rows.len()
    };
    assert_eq!(widths(), 15, "those of the generation that is made now");
    embed(&store, &ids[15..], 16);
    // One that was begun with the old model and comes late, for a memory that has none yet.
    let late = remember(&store, 30..31);
    store.store_embeddings(&EmbeddingGeneration("g8".into()), vec![(late[0], vec![vector(1, 8)])]).unwrap();
    store.project().unwrap();
    assert_eq!(widths(), 30);
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn what_was_not_synced_is_not_trusted_after_a_kill_either() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 0..10);
    store.project().unwrap();
    let old = place.join("memories.lance/data");
    let before = fs_err::read_dir(&old).unwrap().next().unwrap().unwrap().path();
    drop((store, copy));
    // Its process noted that a sync had failed, and was killed.
    fs_err::write(place.join("lock"), b"distrusted").unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert!(!before.exists(), "it is filled anew");
    assert_eq!(in_copy(&copy), in_store(&store));
    assert_eq!(fs_err::read(place.join("lock")).unwrap(), b"", "and trusted again");
}

#[test]
fn a_damaged_head_is_repaired_and_what_it_held_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    for round in 0..3 {
        remember(&store, round * 10..round * 10 + 10);
        store.project().unwrap();
    }
    drop((store, copy));
    let versions = place.join("memories.lance/_versions");
    let mut manifests: Vec<PathBuf> = fs_err::read_dir(&versions).unwrap().map(|entry| entry.unwrap().path()).collect();
    manifests.retain(|path| path.extension().is_some_and(|extension| extension == "manifest"));
    manifests.sort();
    // What a power cut leaves of files that were never synced: the newest is empty, the one before it is torn. Names count down.
    fs_err::write(&manifests[0], b"").unwrap();
    let torn = fs_err::read(&manifests[1]).unwrap();
    fs_err::write(&manifests[1], &torn[..torn.len() / 2]).unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));

    // Everything gone, or of another store: filled anew.
    drop((store, copy));
    fs_err::remove_dir_all(&place).unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn a_data_file_that_was_lost_under_the_open_mark_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    remember(&store, 0..10);
    store.project().unwrap();
    remember(&store, 10..20);
    store.project().unwrap();
    drop((store, copy));
    let mut data = Vec::new();
    files(&place.join("memories.lance/data"), &mut data);
    data.sort_by_key(|path| fs_err::metadata(path).unwrap().modified().unwrap());
    fs_err::write(data.last().unwrap(), b"").unwrap();
    // The process that wrote it was killed: its mark is still there.
    fs_err::write(place.join("lock"), b"working").unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn a_purge_leaves_no_byte_of_what_was_forgotten_in_any_file_of_the_copy() {
    const CANARY: &str = "kQ7vX2pLw9TzR4mB8nYcJ6hG1sDfA0eU";
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let holds = |needle: &[u8]| {
        let mut found = Vec::new();
        files(&place, &mut found);
        found.iter().any(|path| fs_err::read(path).unwrap().windows(needle.len()).any(|window| window == needle))
    };
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    let ids = remember(&store, 0..320);
    let secret = apply(&store, 500, OperationKind::Remember(NewMemory::note(Namespace::default(), CANARY, "test")));
    let OperationResult::Remembered(receipt) = secret else { panic!() };
    embed(&store, &[&ids[..], &[receipt.id]].concat(), 8);
    store.project().unwrap();
    let canary_vector: Vec<u8> = vector(320, 8).as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
    let id = receipt.id.to_string();
    assert!(holds(CANARY.as_bytes()) && holds(&canary_vector[..16]) && holds(id.as_bytes()), "the scan can find it");
    for task in [MaintenanceTask::Index, MaintenanceTask::Compact, MaintenanceTask::Cleanup] {
        store.maintain(task, now()).unwrap();
    }
    let mut indexed = Vec::new();
    files(&place.join("vectors.lance/_indices"), &mut indexed);
    let indexed =
        indexed.iter().any(|path| fs_err::read(path).unwrap().windows(16).any(|window| window == &canary_vector[..16]));
    assert!(indexed, "the vector is in an index too");
    apply(&store, 501, OperationKind::Forget(ForgetSelector::Ids(vec![receipt.id])));
    store.project().unwrap();
    // What a crash in the middle of a deletion leaves, and a head that was damaged.
    for table in ["memories", "vectors"] {
        let table = place.join(format!("{table}.lance"));
        fs_err::create_dir_all(table.join("quarantine")).unwrap();
        fs_err::create_dir_all(table.join("_deletions")).unwrap();
        for name in ["_versions/1.manifest#1", "_transactions/.tmp3xY", "_deletions/.tmpQ", "quarantine/7-0.manifest"] {
            fs_err::write(table.join(name), &id).unwrap();
        }
    }
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    assert!(!holds(CANARY.as_bytes()), "text");
    assert!(!holds(&canary_vector[..16]), "vector");
    assert!(!holds(id.as_bytes()), "id");
    assert_eq!(in_copy(&copy), in_store(&store));

    // The last version of a table without an index is the very deletion.
    apply(&store, 502, OperationKind::Forget(ForgetSelector::Ids(ids.clone())));
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    assert!(!ids.iter().any(|id| holds(id.to_string().as_bytes())), "ids, where nothing is left");
}

#[test]
fn a_purge_of_everything_before_there_was_an_index_leaves_no_id() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let _copy = attach(&store, place.to_str().unwrap());
    let ids = remember(&store, 0..3);
    embed(&store, &ids, 8);
    store.project().unwrap();
    // The last version of the vectors is the very deletion, and names what it deleted.
    apply(&store, 502, OperationKind::Forget(ForgetSelector::Ids(ids.clone())));
    store.maintain(MaintenanceTask::Purge, now()).unwrap();
    let mut found = Vec::new();
    files(&place, &mut found);
    for path in found {
        let bytes = fs_err::read(&path).unwrap();
        let names = |id: &MemoryId| bytes.windows(36).any(|window| window == id.to_string().as_bytes());
        assert!(!ids.iter().any(names), "{}", path.display());
    }
}

#[test]
fn upkeep_keeps_files_and_versions_few() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    let mut all = Vec::new();
    for round in 0..8 {
        let ids = remember(&store, round * 50..round * 50 + 50);
        let vectors = ids.iter().enumerate().map(|(at, id)| (*id, vec![spread(all.len() + at)]));
        store.store_embeddings(&EmbeddingGeneration("g8".into()), vectors.collect()).unwrap();
        all.extend(ids);
        store.project().unwrap();
    }
    let count = || {
        let mut found = Vec::new();
        files(&place, &mut found);
        found.len()
    };
    let before = count();
    for task in [MaintenanceTask::Compact, MaintenanceTask::Index, MaintenanceTask::Compact] {
        store.maintain(task, now()).unwrap();
    }
    copy.upkeep(MaintenanceTask::Cleanup, now()).unwrap();
    assert!(count() < before, "{} files, {before} before", count());
    assert_eq!(in_copy(&copy), in_store(&store));
    drop(copy);
    let mut storage =
        ArrowStorage::open(Shared::new(lance()).unwrap(), place.to_str().unwrap(), Table::Vectors, false).unwrap();
    let mut indexed = Vec::new();
    files(&place.join("vectors.lance/_indices"), &mut indexed);
    assert!(indexed.len() >= 2, "keys and vectors have an index: {indexed:?}");
    assert_eq!(storage.update_indices().unwrap().unindexed_rows, 0, "and they cover every row");
    for asked in [3, 207, 399] {
        let found = storage.nearest("vector", spread(asked).as_slice(), 5).unwrap();
        assert_eq!(found.num_rows(), 5);
        assert_eq!(found.column_by_name("id").unwrap().as_string::<i32>().value(0), all[asked].to_string());
    }
}

/// A vector far from that of every other number.
fn spread(number: usize) -> Embedding {
    let mut state = number as u64 + 1;
    let values = std::iter::repeat_with(|| {
        // Numerical Recipes' generator; the first steps of near seeds are near.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 - (1 << 23) as f32
    });
    Embedding::normalized(values.skip(4).take(8).collect()).unwrap()
}

#[test]
fn versions_and_moments_can_be_read_until_they_are_cleaned_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::in_memory(options()).unwrap();
    remember(&store, 0..20);
    let memories = in_store(&store);
    let open =
        || ArrowStorage::open(Shared::new(lance()).unwrap(), folder.path().to_str().unwrap(), Table::Memories, true);
    let mut table = open().unwrap();
    assert!(!table.exists());
    table.append(vec![memories_to_batch(&memories[..10]).unwrap()]).unwrap();
    let first = table.versions().unwrap().pop().unwrap();
    // Versions are told apart by their milliseconds.
    while table.versions().unwrap().len() < 2 || table.versions().unwrap().last().unwrap().at == first.at {
        table.upsert(memories_to_batch(&memories[5..20]).unwrap()).unwrap();
    }
    table.delete(&[memories[0].id.to_string(), "no'such".into()]).unwrap();
    assert_eq!(table.count().unwrap(), 19);
    let mut then = 0;
    assert_eq!(table.as_of(first.at, &mut |batch| then += batch.num_rows()).unwrap(), Some(first.version));
    assert_eq!(then, 10);
    let before = Timestamp::from_millis(first.at.as_millis() - 1);
    assert_eq!(table.as_of(before, &mut |_| panic!("no version is that old")).unwrap(), None);
    let mut some = 0;
    table.scan(Some("speaker IS NOT NULL AND position < 8"), &mut |batch| some += batch.num_rows()).unwrap();
    assert_eq!(some, 3);
    drop(table);
    assert_eq!(open().unwrap().count().unwrap(), 19);
}

#[test]
fn an_object_store_serves_as_well_as_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, "shared-memory://bucket/mneme");
    let ids = remember(&store, 0..30);
    embed(&store, &ids, 8);
    store.project().unwrap();
    apply(&store, 501, OperationKind::Forget(ForgetSelector::Ids(ids[..3].to_vec())));
    embed(&store, &ids[10..12], 16);
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
    assert_eq!(copy.vectors().unwrap().len(), 2);
    copy.reset().unwrap();
    assert_eq!(copy.checkpoint_lsn().unwrap(), Lsn::ZERO);
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn vectors_that_were_lost_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    let ids = remember(&store, 0..20);
    embed(&store, &ids, 8);
    store.project().unwrap();
    drop((store, copy));
    // The table of memories says that everything is there.
    fs_err::remove_dir_all(place.join("vectors.lance")).unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert_eq!(copy.vectors().unwrap().len(), 20);
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn a_place_that_cannot_be_reached_blocks_no_write_and_is_followed_once_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    fs_err::write(&place, b"a file is in the way").unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = Arc::new(LanceProjection::new(place.to_str().unwrap(), lance()).unwrap());
    store.attach(copy.clone()).unwrap();
    remember(&store, 0..10);
    assert!(matches!(store.maintain(MaintenanceTask::Follow, now()), Err(StoreError::Projection { .. })));
    remember(&store, 10..20);
    assert!(matches!(store.stats().health, StoreHealth::Degraded { .. }), "{:?}", store.stats().health);
    fs_err::remove_file(&place).unwrap();
    store.maintain(MaintenanceTask::Follow, now()).unwrap();
    assert_eq!(store.stats().health, StoreHealth::Healthy);
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn on_a_nearly_full_disk_nothing_is_added_but_what_is_forgotten_goes() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let place = place.to_str().unwrap();
    let store = DurableStore::open(&folder.path().join("store"), options()).unwrap();
    let copy = attach(&store, place);
    let ids = remember(&store, 0..10);
    store.project().unwrap();
    store.detach("lance").unwrap();
    drop(copy);
    let full = LanceOptions { disk_watermark_bytes: u64::MAX, ..lance() };
    let copy = LanceProjection::open(place, full).unwrap();
    let change = |lsn, change| mneme_memory::durable::JournalRecord { lsn: Lsn(lsn), change };
    let more = change(50, mneme_memory::durable::Change::Upserted(Box::new(in_store(&store).remove(0))));
    let gone = change(51, mneme_memory::durable::Change::Removed(ids[3]));
    let error = copy.apply(&[more.clone(), gone.clone()], Lsn(51)).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("lance tables are read-only: "), "{source}");
    assert_eq!(copy.memories().unwrap().len(), 9, "what is forgotten is gone all the same");
    assert!(copy.checkpoint_lsn().unwrap() < Lsn(50), "and what is not there is not said to be");
    assert!(copy.upkeep(MaintenanceTask::Compact, now()).is_err(), "compaction needs room");
    copy.upkeep(MaintenanceTask::Cleanup, now()).unwrap();
    copy.purge().unwrap();
    drop(copy);
    let copy = LanceProjection::open(place, lance()).unwrap();
    copy.apply(&[more, gone], Lsn(51)).unwrap();
    assert_eq!(copy.checkpoint_lsn().unwrap(), Lsn(51));
}

#[test]
fn old_versions_are_bounded_in_number_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let store = DurableStore::in_memory(options()).unwrap();
    let few = LanceOptions { keep_versions_seconds: 3_600, keep_versions_max: 5, ..lance() };
    let copy = Arc::new(LanceProjection::open(place, few).unwrap());
    store.attach(copy.clone()).unwrap();
    for round in 0..6 {
        remember(&store, round * 2..round * 2 + 2);
        store.project().unwrap();
    }
    let versions = || {
        let table = ArrowStorage::open(Shared::new(lance()).unwrap(), place, Table::Memories, false).unwrap();
        table.versions().unwrap().len()
    };
    assert!(versions() > 5);
    store.maintain(MaintenanceTask::Cleanup, now()).unwrap();
    assert_eq!(versions(), 5);
    assert_eq!(in_copy(&copy), in_store(&store));
}

#[test]
fn a_store_of_many_pages_is_copied_whole_and_in_few_versions() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("lance");
    let store = DurableStore::in_memory(options()).unwrap();
    let mut ids = Vec::new();
    for round in 0..5 {
        ids.extend(remember(&store, round * 500..round * 500 + 500));
    }
    embed(&store, &ids, 8);
    let copy = attach(&store, place.to_str().unwrap());
    store.project().unwrap();
    assert_eq!(in_copy(&copy), in_store(&store));
    assert_eq!(copy.vectors().unwrap().len(), 2_500);
    let mut manifests = Vec::new();
    files(&place.join("memories.lance/_versions"), &mut manifests);
    assert!(manifests.len() <= 4, "{}", manifests.len());
}

#[test]
fn a_store_with_a_copy_is_used_and_dropped_within_a_daemon_of_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (store, place) = (folder.path().join("store"), folder.path().join("lance"));
    runtime.block_on(async {
        let store = Arc::new(DurableStore::open(&store, options()).unwrap());
        let copy = LanceProjection::new(place.to_str().unwrap(), lance()).unwrap();
        store.attach(Arc::new(copy)).unwrap();
        remember(&store, 0..10);
        let follows = Arc::clone(&store);
        let step = tokio::task::spawn_blocking(move || follows.maintain(MaintenanceTask::Follow, now()));
        assert_eq!(step.await.unwrap().unwrap().items, 10);
        let second = LanceProjection::open(place.to_str().unwrap(), lance());
        assert!(matches!(second, Err(StorageError::InUse { .. })), "{second:?}");
        // Threads are ended without waiting, which a task must not do.
        drop(store);
    });
    assert_eq!(fs_err::read(place.join("lock")).unwrap(), b"", "the tables were left in good order");
    LanceProjection::open(place.to_str().unwrap(), lance()).unwrap();
}
