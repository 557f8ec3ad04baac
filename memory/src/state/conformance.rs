//! The suite that every state engine passes. Panics at the first difference, as a test does.

use std::ops::{Bound, ControlFlow};

use crate::state::{StateEngine, Table, WriteBatch, scan_prefix};

fn rows(engine: &dyn StateEngine, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    engine
        .scan(table, from, to, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("a healthy engine scans");
    rows
}

fn keys(engine: &dyn StateEngine, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Vec<Vec<u8>> {
    rows(engine, table, from, to).into_iter().map(|(key, _)| key).collect()
}

/// Runs the suite. `open` opens the same store again each time it is called (after the engine before was dropped); an
/// engine that keeps nothing (`durable` is false) is only checked within one opening.
pub fn run(open: &dyn Fn() -> std::sync::Arc<dyn StateEngine>, durable: bool) {
    let handle = open();
    let engine = handle.as_ref();
    assert_eq!(engine.get(Table::Meta, b"absent").expect("reads"), None);

    let mut batch = WriteBatch::default();
    for key in [&b"b"[..], b"a", b"ab", b"", &[0], &[255, 255]] {
        batch.put(Table::Memory, key, [b"value of ", key].concat());
    }
    batch.put(Table::Embedding, *b"a", vec![7; 100_000]);
    engine.commit(&batch).expect("commits");
    let expected: Vec<Vec<u8>> = vec![vec![], vec![0], b"a".to_vec(), b"ab".to_vec(), b"b".to_vec(), vec![255, 255]];
    assert_eq!(keys(engine, Table::Memory, Bound::Unbounded, Bound::Unbounded), expected, "keys in byte order");
    assert_eq!(engine.get(Table::Embedding, b"a").expect("reads"), Some(vec![7; 100_000]), "tables are apart");
    assert_eq!(keys(engine, Table::Index, Bound::Unbounded, Bound::Unbounded), Vec::<Vec<u8>>::new());
    assert_eq!(
        keys(engine, Table::Memory, Bound::Excluded(b"a"), Bound::Included(b"b")),
        vec![b"ab".to_vec(), b"b".to_vec()]
    );
    assert_eq!(
        keys(engine, Table::Memory, Bound::Included(b"b"), Bound::Excluded(b"a")),
        Vec::<Vec<u8>>::new(),
        "a range that ends before it starts is empty"
    );

    let mut seen = 0;
    engine
        .scan(Table::Memory, Bound::Unbounded, Bound::Unbounded, &mut |_, _| {
            seen += 1;
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("scans");
    assert_eq!(seen, 2, "a scan ends when it is told to");
    let mut with_prefix = Vec::new();
    scan_prefix(engine, Table::Memory, b"a", &mut |key, _| {
        with_prefix.push(key.to_vec());
        ControlFlow::Continue(())
    })
    .expect("scans");
    assert_eq!(with_prefix, vec![b"a".to_vec(), b"ab".to_vec()]);

    let mut change = WriteBatch::default();
    change.delete(Table::Memory, *b"a");
    change.delete(Table::Memory, *b"never there");
    change.put(Table::Memory, *b"b", *b"new");
    engine.commit(&change).expect("commits");
    assert_eq!(engine.get(Table::Memory, b"a").expect("reads"), None);
    assert_eq!(engine.get(Table::Memory, b"b").expect("reads"), Some(b"new".to_vec()));
    engine.commit(&WriteBatch::default()).expect("an empty batch is fine");

    many_rows(engine);
    let before = all(engine);
    engine.rewrite().expect("rewrites");
    assert_eq!(all(engine), before, "a rewrite changes no row");
    let mut after = WriteBatch::default();
    after.put(Table::Meta, *b"after", *b"rewrite");
    engine.commit(&after).expect("commits after a rewrite");
    let before = all(engine);
    let kind = engine.kind();
    assert_eq!(engine.fault(), None);
    drop(handle);
    if durable {
        let again = open();
        assert_eq!(all(again.as_ref()), before, "reopening changes no row");
        assert_eq!(again.kind(), kind);
    }
}

fn many_rows(engine: &dyn StateEngine) {
    // More rows than fit one page or one copy batch, in an order that is not the key order.
    for part in 0..5_u32 {
        let mut batch = WriteBatch::default();
        for index in 0..1_000_u32 {
            let number = (index * 5 + part).wrapping_mul(2_654_435_761);
            batch.put(Table::Journal, number.to_be_bytes(), number.to_le_bytes());
        }
        engine.commit(&batch).expect("commits");
    }
    let found = rows(engine, Table::Journal, Bound::Unbounded, Bound::Unbounded);
    assert_eq!(found.len(), 5_000);
    assert!(found.is_sorted_by(|a, b| a.0 < b.0), "rows come in key order");
    let mut batch = WriteBatch::default();
    for (key, _) in found.iter().filter(|(key, _)| key[3] % 2 == 0) {
        batch.delete(Table::Journal, key.clone());
    }
    engine.commit(&batch).expect("commits");
    assert_eq!(
        rows(engine, Table::Journal, Bound::Unbounded, Bound::Unbounded).len(),
        5_000 - batch.len(),
        "what was deleted is gone"
    );
}

fn all(engine: &dyn StateEngine) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    Table::ALL
        .iter()
        .flat_map(|table| {
            rows(engine, *table, Bound::Unbounded, Bound::Unbounded)
                .into_iter()
                .map(|(key, value)| (*table, key, value))
        })
        .collect()
}
