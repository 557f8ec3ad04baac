//! Every store passes the same suite, also after it was closed and opened again.

use mneme_memory::state::EngineKind;
use mneme_memory::{DurableOptions, DurableStore, InMemoryStore, conformance};

fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions { engine, engine_cache_bytes: 8 << 20, disk_watermark_bytes: 0, ..DurableOptions::default() }
}

#[test]
fn the_oracle_conforms() {
    conformance::run(&InMemoryStore::default());
}

#[test]
fn the_durable_store_conforms_over_memory() {
    conformance::run(&DurableStore::in_memory(options(EngineKind::Memory)).unwrap());
}

#[test]
fn the_durable_store_conforms_over_redb_and_again_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        conformance::run(&DurableStore::open(folder.path(), options(EngineKind::Redb)).unwrap());
    }
}

#[test]
fn the_durable_store_conforms_over_sled_and_again_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        conformance::run(&DurableStore::open(folder.path(), options(EngineKind::Sled)).unwrap());
    }
}
