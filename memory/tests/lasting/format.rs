//! The rows of format 1, as they are written and read for ever, and rows that are damaged.

use std::fmt::Write;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use mneme_base::{Embedding, EmbeddingGeneration, Namespace, Provenance, TrustTier};
use mneme_memory::state::{EngineKind, RamEngine, StateEngine, Table, WriteBatch};
use mneme_memory::{Document, DurableStore, ForgetSelector, MemoryStore, NewMemory, OperationKind, Scan, StoreError};

use crate::following::Copy;
use crate::support::{id_of, note, now, options, outcome};

/// A store with one of each row, the same on every machine.
fn golden_store() -> (Arc<RamEngine>, DurableStore) {
    let engine = Arc::new(RamEngine::default());
    let store = DurableStore::over(engine.clone(), Path::new(""), options(EngineKind::Memory)).unwrap();
    store.attach(Arc::new(Copy::default())).unwrap();
    let generation = EmbeddingGeneration("model/1".into());
    store.set_generation(&generation).unwrap();
    let memory = NewMemory {
        speaker: Some("Anna".into()),
        thread: Some("talk".into()),
        position: Some(7),
        metadata: [("title".to_owned(), "Sailing".to_owned())].into(),
        valid_to: Some(now().plus_millis(1_000)),
        provenance: Provenance {
            client: "cli".into(),
            session: Some("s1".into()),
            source: "file:/notes".into(),
            trust: TrustTier::Observed,
            location: Some(mneme_base::SourceLocation { path: "/notes/a.md".into(), line_first: 3, line_last: 9 }),
        },
        ..NewMemory::note("work/notes".parse().unwrap(), "the boat leaves at noon", "cli")
    };
    let id = id_of(outcome(&store, 1, OperationKind::Remember(memory), now()));
    let hearsay = NewMemory {
        provenance: Provenance { source: "web".into(), trust: TrustTier::Untrusted, ..Provenance::user("mcp") },
        ..NewMemory::note(Namespace::default(), "from the web", "mcp")
    };
    outcome(&store, 2, OperationKind::Remember(hearsay), now().plus_millis(1));
    outcome(
        &store,
        3,
        OperationKind::Supersede {
            id,
            by: NewMemory::note("work/notes".parse().unwrap(), "the boat leaves at one", "cli"),
        },
        now().plus_millis(2),
    );
    let gone = id_of(outcome(&store, 4, note("forgotten"), now().plus_millis(3)));
    outcome(&store, 5, OperationKind::Forget(ForgetSelector::Ids(vec![gone])), now().plus_millis(4));
    let row = Document { collection: "log".into(), key: "a/1".into(), value: Some(vec![0, 1, 255]) };
    outcome(&store, 6, OperationKind::Documents(vec![row]), now().plus_millis(5));
    let embedding = Embedding::normalized(vec![0.6, 0.8]).unwrap();
    store.store_embeddings(&generation, vec![(id, vec![embedding.clone(), embedding])]).unwrap();
    (engine, store)
}

fn dump(engine: &dyn StateEngine) -> String {
    let mut lines = String::new();
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    };
    for table in Table::ALL {
        engine
            .scan(table, Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
                writeln!(lines, "{} {} {}", table.name(), hex(key), hex(value)).unwrap();
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    lines
}

fn load(text: &str) -> RamEngine {
    let bytes = |hex: &str| {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<u8>>()
    };
    let engine = RamEngine::default();
    let mut batch = WriteBatch::default();
    for line in text.lines() {
        let mut parts = line.split(' ');
        let name = parts.next().unwrap();
        let table = Table::ALL.into_iter().find(|table| table.name() == name).unwrap();
        batch.put(table, bytes(parts.next().unwrap()), bytes(parts.next().unwrap()));
    }
    engine.commit(&batch).unwrap();
    engine
}

#[test]
fn rows_of_format_1_are_written_and_read_as_ever() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1.rows");
    let (engine, written) = golden_store();
    // A new golden file is made on purpose only: MNEME_BLESS=1. A released format never changes.
    if std::env::var_os("MNEME_BLESS").is_some() {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, dump(engine.as_ref())).unwrap();
    }
    let golden = fs_err::read_to_string(&path).unwrap();
    assert_eq!(dump(engine.as_ref()), golden, "what is written today is what was written in format 1");
    let store = DurableStore::over(Arc::new(load(&golden)), Path::new(""), options(EngineKind::Memory)).unwrap();
    let all = |store: &DurableStore| store.scan(&Scan { limit: 100, ..Scan::default() }).unwrap();
    assert_eq!(all(&store), all(&written));
    assert_eq!(store.documents("log", "", None, 10).unwrap(), written.documents("log", "", None, 10).unwrap());
    assert_eq!(store.pending_embeddings(10).unwrap(), written.pending_embeddings(10).unwrap());
    let (found, expected) = (store.stats(), written.stats());
    assert_eq!(
        (found.memories, found.quarantined, found.superseded, found.purge_pending, found.embeddings_pending),
        (
            expected.memories,
            expected.quarantined,
            expected.superseded,
            expected.purge_pending,
            expected.embeddings_pending
        )
    );
    assert!(outcome(&store, 4, note("forgotten"), now()).replayed, "operation ids too");
}

#[test]
fn a_damaged_row_is_an_error_and_no_panic() {
    let (engine, store) = golden_store();
    drop(store);
    let golden = dump(engine.as_ref());
    for (number, line) in golden.lines().enumerate() {
        let (rest, value) = line.rsplit_once(' ').unwrap();
        if !matches!(rest.split(' ').next(), Some("memory" | "embedding" | "meta")) || value.len() < 4 {
            continue;
        }
        for damaged in [&value[..value.len() / 4 * 2], "", "09", "01ffffffffffffffffffff"] {
            let text: String = golden
                .lines()
                .enumerate()
                .map(|(at, line)| if at == number { format!("{rest} {damaged}\n") } else { format!("{line}\n") })
                .collect();
            // Either it says what is damaged, or the row carries no structure that could be damaged.
            let opened = DurableStore::over(Arc::new(load(&text)), Path::new(""), options(EngineKind::Memory));
            if rest.starts_with("memory") {
                assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "{rest} {damaged}");
            }
        }
    }
}
