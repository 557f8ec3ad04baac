//! Faults of the state engine, and disks that are full or nearly.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mneme_base::{Lsn, OpId};
use mneme_memory::state::EngineKind;
use mneme_memory::{
    Document, DurableOptions, DurableStore, ForgetSelector, MaintenanceTask, MemoryStore, Operation, OperationKind,
    Refusal, StoreError, StoreHealth,
};

use crate::failing::Failing;
use crate::support::{ENGINES, files_with, id_of, note, now, options, outcome};

#[test]
fn after_a_fault_nothing_is_acknowledged_and_nothing_of_the_batch_is_seen() {
    let engine = Arc::new(Failing::default());
    let store = DurableStore::over(engine.clone(), Path::new(""), options(EngineKind::Memory)).unwrap();
    let id = id_of(outcome(&store, 1, note("written before"), now()));
    engine.broken.store(true, Ordering::SeqCst);
    let batch = [Operation { op_id: OpId::new(2), kind: note("never acknowledged") }];
    assert!(matches!(store.apply(&batch, now()), Err(StoreError::Io { .. })));
    engine.broken.store(false, Ordering::SeqCst);
    assert!(matches!(store.apply(&batch, now()), Err(StoreError::Closed { .. })), "a write is not tried again");
    assert!(matches!(store.get(id), Err(StoreError::Closed { .. })));
    let forget = [Operation { op_id: OpId::new(3), kind: OperationKind::Forget(ForgetSelector::Ids(vec![id])) }];
    assert!(matches!(store.apply(&forget, now()), Err(StoreError::Closed { .. })));
    assert!(matches!(store.stats().health, StoreHealth::Failed { .. }));
    assert_eq!(store.stats().lsn, Lsn(1));
}

#[test]
fn a_nearly_full_disk_refuses_writes_but_not_forgetting() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let store = DurableStore::open(folder.path(), options(EngineKind::Redb)).unwrap();
        id_of(outcome(&store, 1, note("takes room"), now()))
    };
    let full = DurableOptions { disk_watermark_bytes: u64::MAX, ..options(EngineKind::Redb) };
    let store = DurableStore::open(folder.path(), full).unwrap();
    let forget = OperationKind::Forget(ForgetSelector::Ids(vec![id]));
    assert!(matches!(store.stats().health, StoreHealth::ReadOnly { .. }));
    assert!(store.get(id).unwrap().is_some(), "reads go on");
    assert!(outcome(&store, 1, note("takes room"), now()).replayed, "what was done before is told again");
    // Others that share the commit are refused, each for itself.
    let document =
        |value| OperationKind::Documents(vec![Document { collection: "log".into(), key: "a".into(), value }]);
    let kinds = [note("more"), forget, document(Some(vec![1])), document(None)];
    let batch: Vec<Operation> =
        kinds.into_iter().zip(2..).map(|(kind, op)| Operation { op_id: OpId::new(op), kind }).collect();
    let outcomes = store.apply(&batch, now()).unwrap();
    let refused: Vec<bool> =
        outcomes.iter().map(|outcome| matches!(outcome.result, Err(Refusal::ReadOnly { .. }))).collect();
    assert_eq!(refused, [true, false, true, false], "{outcomes:?}");
    assert_eq!(store.get(id).unwrap(), None);
}

#[test]
fn the_log_of_a_nearly_full_daemon_is_still_written() {
    let folder = tempfile::tempdir().unwrap();
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    // Twice of what is free: others may fill or empty the disk meanwhile by less than that.
    let low = DurableOptions { disk_watermark_bytes: 2 * free.f_bavail * free.f_frsize, ..options(EngineKind::Redb) };
    let store = DurableStore::open(folder.path(), low).unwrap();
    let refused = outcome(&store, 1, note("more"), now());
    assert!(matches!(refused.result, Err(Refusal::ReadOnly { .. })), "{refused:?}");
    let row = Document { collection: "log".into(), key: "a".into(), value: Some(vec![1]) };
    assert!(outcome(&store, 2, OperationKind::Documents(vec![row]), now()).result.is_ok());
}

/// A file system of its own, in memory; `None` where the machine does not allow it.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(megabytes: u32) -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(&format!("size={megabytes}m")).then_some(disk)
    }
    fn mount(&self, options: &str) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(self.0.path()).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_purge_without_room_is_put_off_and_the_store_goes_on() {
    for engine in ENGINES {
        let Some(disk) = SmallDisk::new(48) else {
            println!("skipped: a file system in memory needs root");
            return;
        };
        let folder = disk.0.path().join("store");
        let store = DurableStore::open(&folder, options(engine)).unwrap();
        let id = id_of(outcome(&store, 1, note("kQ7vX2pLw9TzR4mB8nYcJ6hG1sDfA0eU"), now()));
        outcome(&store, 2, OperationKind::Forget(ForgetSelector::Ids(vec![id])), now());
        let put_off = store.maintain(MaintenanceTask::Purge, now());
        assert!(matches!(put_off, Err(StoreError::NoRoom { .. })), "{engine}: {put_off:?}");
        assert_eq!(store.stats().purge_pending, 1);
        assert_eq!(store.stats().health, StoreHealth::Healthy);
        assert!(outcome(&store, 3, note("goes on"), now()).result.is_ok(), "{engine}");
        assert!(disk.mount("remount,size=512m"), "the disk has room again");
        assert_eq!(store.maintain(MaintenanceTask::Purge, now()).unwrap().items, 1);
        assert_eq!(files_with(&folder, b"kQ7vX2pLw9TzR4mB8nYcJ6hG1sDfA0eU"), 0, "{engine}");
    }
}
