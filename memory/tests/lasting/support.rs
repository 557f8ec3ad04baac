//! Stores and operations for the tests of this folder.

use std::path::Path;
use std::time::Duration;

use mneme_base::{MemoryId, Namespace, OpId, Timestamp};
use mneme_memory::state::EngineKind;
use mneme_memory::{
    DurableOptions, MemoryStore, NewMemory, Operation, OperationKind, OperationOutcome, OperationResult,
};

/// What has not come by then is a hang.
pub(crate) const HANG: Duration = Duration::from_secs(10);
pub(crate) const ENGINES: [EngineKind; 2] = [EngineKind::Redb, EngineKind::Sled];

pub(crate) fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions { engine, engine_cache_bytes: 8 << 20, disk_watermark_bytes: 0, ..DurableOptions::default() }
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_millis(1_795_514_400_000)
}

pub(crate) fn note(text: &str) -> OperationKind {
    OperationKind::Remember(NewMemory::note(Namespace::default(), text, "test"))
}

pub(crate) fn outcome(store: &dyn MemoryStore, op: u128, kind: OperationKind, at: Timestamp) -> OperationOutcome {
    store.apply(&[Operation { op_id: OpId::new(op), kind }], at).unwrap().remove(0)
}

pub(crate) fn id_of(outcome: OperationOutcome) -> MemoryId {
    match outcome.result.unwrap() {
        OperationResult::Remembered(receipt) | OperationResult::Superseded(receipt) => receipt.id,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn files_with(folder: &Path, needle: &[u8]) -> usize {
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
