//! The state engines: the conformance suite on each, and what only the disk engines do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::path::Path;
use std::sync::Arc;

use mneme_memory::StoreError;
use mneme_memory::state::{EngineKind, RamEngine, StateEngine, Table, WriteBatch, conformance, open_engine};

const CACHE_BYTES: usize = 8 << 20;
const DISK_ENGINES: [EngineKind; 2] = [EngineKind::Redb, EngineKind::Sled];

fn open(folder: &Path, kind: EngineKind) -> Result<Arc<dyn StateEngine>, StoreError> {
    open_engine(folder, kind, CACHE_BYTES)
}

#[test]
fn the_memory_engine_conforms() {
    conformance::run(&|| Arc::new(RamEngine::default()), false);
}

#[test]
fn the_redb_engine_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::run(&|| open(folder.path(), EngineKind::Redb).unwrap(), true);
}

#[test]
fn the_sled_engine_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::run(&|| open(folder.path(), EngineKind::Sled).unwrap(), true);
}

#[test]
fn a_second_opening_of_a_store_is_refused() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), kind).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::InUse { .. })), "{kind}");
        drop(first);
        open(folder.path(), kind).unwrap();
    }
}

#[test]
fn a_store_keeps_the_engine_that_it_was_made_with() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), EngineKind::Sled).unwrap());
    assert_eq!(open(folder.path(), EngineKind::Redb).unwrap().kind(), EngineKind::Sled);
}

#[test]
fn a_newer_format_is_refused_and_a_damaged_name_of_the_generation_is_reported() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), kind).unwrap());
        let current = folder.path().join("current.json");
        fs_err::write(&current, br#"{"format":9,"engine":"other","shape":1}"#).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::FormatTooNew { found: 9, supported: 1, .. })));
        fs_err::write(&current, b"{").unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::Corrupt { .. })));
    }
}

#[test]
fn leftovers_of_a_crashed_rewrite_are_removed() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), kind).unwrap());
        let leftover = folder.path().join("generation-2");
        fs_err::create_dir(&leftover).unwrap();
        fs_err::write(leftover.join("part"), b"half written").unwrap();
        let engine = open(folder.path(), kind).unwrap();
        assert!(!leftover.exists());
        engine.rewrite().unwrap();
        assert!(leftover.exists() && !folder.path().join("generation-1").exists());
    }
}

/// Counts the files below a folder that contain a byte string.
fn files_with(folder: &Path, needle: &[u8]) -> usize {
    let mut found = 0;
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += files_with(&path, needle);
        } else {
            let bytes = fs_err::read(&path).unwrap();
            found += usize::from(bytes.windows(needle.len()).any(|window| window == needle));
        }
    }
    found
}

#[test]
fn deleted_bytes_stay_in_the_files_until_a_rewrite_and_not_after() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let engine = open(folder.path(), kind).unwrap();
        // Bytes without repetition, so that no compression can hide them.
        let canary = b"kQ7vX2pLw9TzR4mB8nYcJ6hG1sDfA0eU";
        let mut batch = WriteBatch::default();
        batch.put(Table::Memory, *b"secret", *canary);
        (0..500_u32).for_each(|key| batch.put(Table::Memory, key.to_be_bytes(), vec![3; 200]));
        engine.commit(&batch).unwrap();
        assert!(files_with(folder.path(), canary) > 0, "{kind}: the scan has to be able to find it");
        let mut forget = WriteBatch::default();
        forget.delete(Table::Memory, *b"secret");
        engine.commit(&forget).unwrap();
        engine.rewrite().unwrap();
        assert_eq!(files_with(folder.path(), canary), 0, "{kind}");
        assert_eq!(engine.get(Table::Memory, &7_u32.to_be_bytes()).unwrap(), Some(vec![3; 200]), "{kind}");
    }
}

#[test]
fn commits_during_a_rewrite_and_a_copy_are_in_both() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let engine = open(folder.path(), kind).unwrap();
        let mut batch = WriteBatch::default();
        (0..20_000_u32).for_each(|key| batch.put(Table::Memory, key.to_be_bytes(), vec![1; 64]));
        engine.commit(&batch).unwrap();
        let writes_each = 50;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 0..writes_each {
                    let mut batch = WriteBatch::default();
                    // One row in front of the copier, one behind it, one deleted.
                    batch.put(Table::Memory, (number * 100_u32).to_be_bytes(), b"changed".to_vec());
                    batch.put(Table::Purge, number.to_be_bytes(), b"new".to_vec());
                    batch.delete(Table::Memory, (number * 100 + 50).to_be_bytes());
                    engine.commit(&batch).unwrap();
                }
            });
            engine.rewrite().unwrap();
            writer.join().unwrap();
        });
        engine.copy_to(&copy.path().join("copy")).unwrap();
        drop(engine);
        for place in [folder.path().to_owned(), copy.path().join("copy")] {
            let engine = open(&place, kind).unwrap();
            for number in 0..writes_each {
                let row = |table, key: u32| engine.get(table, &key.to_be_bytes()).unwrap();
                assert_eq!(row(Table::Memory, number * 100), Some(b"changed".to_vec()), "{kind} {number}");
                assert_eq!(row(Table::Purge, number), Some(b"new".to_vec()), "{kind} {number}");
                assert_eq!(row(Table::Memory, number * 100 + 50), None, "{kind} {number}");
            }
        }
    }
}

#[test]
fn a_copy_goes_only_into_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path(), EngineKind::Redb).unwrap();
    let target = tempfile::tempdir().unwrap();
    fs_err::write(target.path().join("mine"), b"precious").unwrap();
    assert!(engine.copy_to(target.path()).is_err());
    assert_eq!(fs_err::read(target.path().join("mine")).unwrap(), b"precious");
    assert_eq!(engine.fault(), None, "a refused copy is no fault of the engine");
}

/// The rows of a store with one of them.
fn with_one_row(folder: &Path, kind: EngineKind) {
    let engine = open(folder, kind).unwrap();
    let mut batch = WriteBatch::default();
    batch.put(Table::Memory, *b"key", *b"precious");
    engine.commit(&batch).unwrap();
}

#[test]
fn a_store_that_has_lost_the_name_of_its_generation_is_never_erased() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let current = folder.path().join("current.json");
        with_one_row(folder.path(), kind);
        fs_err::remove_file(&current).unwrap();
        let engine = open(folder.path(), EngineKind::Redb).unwrap();
        assert_eq!(engine.kind(), kind, "the files say which engine they are of");
        assert_eq!(engine.get(Table::Memory, b"key").unwrap(), Some(b"precious".to_vec()), "{kind}");
        assert!(current.exists(), "{kind}: and it is named again");
        // A rewrite's generation could be half a copy: it is not taken on trust, and not removed.
        engine.rewrite().unwrap();
        drop(engine);
        let second = folder.path().join("generation-2");
        let kept = fs_err::read(&current).unwrap();
        fs_err::remove_file(&current).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::Corrupt { .. })), "{kind}");
        fs_err::create_dir(folder.path().join("generation-1")).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::Corrupt { .. })), "{kind}");
        assert!(second.exists());
        fs_err::write(&current, kept).unwrap();
        let engine = open(folder.path(), kind).unwrap();
        assert_eq!(engine.get(Table::Memory, b"key").unwrap(), Some(b"precious".to_vec()), "{kind}");
    }
}

#[test]
fn a_name_whose_generation_is_gone_is_damage_and_no_new_store() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        with_one_row(folder.path(), kind);
        let (first, away) = (folder.path().join("generation-1"), folder.path().join("generation-7"));
        fs_err::rename(&first, &away).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::Corrupt { .. })), "{kind}");
        assert!(away.exists(), "{kind}");
        fs_err::create_dir(&first).unwrap();
        assert!(matches!(open(folder.path(), kind), Err(StoreError::Corrupt { .. })), "{kind}: an empty one too");
    }
}

#[test]
fn a_crash_while_the_first_files_are_made_leaves_nothing_in_the_way() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("generation-1");
        fs_err::create_dir(&first).unwrap();
        drop(open(folder.path(), kind).unwrap());
        fs_err::remove_file(folder.path().join("current.json")).unwrap();
        fs_err::remove_dir_all(&first).unwrap();
        fs_err::create_dir(&first).unwrap();
        fs_err::write(first.join("state.redb"), b"half a header").unwrap();
        fs_err::write(folder.path().join("making"), b"").unwrap();
        with_one_row(folder.path(), kind);
        assert!(!folder.path().join("making").exists());
        assert_eq!(open(folder.path(), kind).unwrap().kind(), kind);
    }
}

#[test]
fn a_rewrite_that_cannot_be_made_closes_nothing_and_is_made_later() {
    for kind in DISK_ENGINES {
        let folder = tempfile::tempdir().unwrap();
        with_one_row(folder.path(), kind);
        let engine = open(folder.path(), kind).unwrap();
        let in_the_way = folder.path().join("generation-2");
        fs_err::write(&in_the_way, b"a file where the new files should be").unwrap();
        assert!(matches!(engine.rewrite(), Err(StoreError::NotRewritten { .. })), "{kind}");
        assert_eq!(engine.fault(), None, "{kind}");
        let mut batch = WriteBatch::default();
        batch.put(Table::Memory, *b"after", *b"it");
        engine.commit(&batch).unwrap();
        fs_err::remove_file(&in_the_way).unwrap();
        engine.rewrite().unwrap();
        drop(engine);
        let engine = open(folder.path(), kind).unwrap();
        assert_eq!(engine.get(Table::Memory, b"after").unwrap(), Some(b"it".to_vec()), "{kind}");
    }
}
