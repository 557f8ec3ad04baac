//! What the watcher must not do: forget what is only out of sight, leave what is gone, do the same work again.

use std::path::Path;
use std::sync::Arc;

use mneme_base::{ManualClock, Namespace, OpId, Timestamp};
use mneme_engine_api::AbsentEngine;
use mneme_memory::{DurableOptions, InMemoryStore, NewMemory, Operation, OperationKind, Scan};

use super::rows::{FileRow, row_of};
use super::*;
use crate::system::{System, SystemOptions};
use crate::tunables::Tunables;

const SOON: Duration = Duration::from_secs(20);

async fn start(folder: &Path, watcher: WatcherOptions) -> System {
    let options = SystemOptions {
        store: Arc::new(InMemoryStore::new(DurableOptions::default())),
        engine: Arc::new(AbsentEngine { reason: "none".into() }),
        clock: Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000))),
        pending_operations_max: 4_096,
        pending_bytes_max: 1 << 20,
        evolution_enabled: false,
        adapters_dir: folder.join("adapters"),
        tunables: Tunables {
            group_commit_wait: Duration::ZERO,
            // Only `add` looks: each step of a test is one look.
            watcher: WatcherOptions { poll: Duration::from_hours(1), settle: Duration::from_hours(1), ..watcher },
            ..Tunables::default()
        },
    };
    System::start(options).await.unwrap()
}

async fn look(system: &System, folder: &Path) -> WatchFolder {
    system.watcher.add(folder.to_owned(), Namespace::default(), deadline_in(SOON)).await.unwrap()
}

async fn texts(system: &System) -> Vec<String> {
    let all = Scan { limit: 1_000, ..Scan::default() };
    let memories = system.memory.scan(all, deadline_in(SOON)).await.unwrap();
    let mut texts: Vec<String> = memories.into_iter().map(|memory| memory.text.trim().to_owned()).collect();
    texts.sort();
    texts
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, text).unwrap();
}

#[tokio::test]
async fn an_empty_folder_in_the_place_of_the_one_that_was_read_forgets_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (folder, away) = (home.path().join("notes"), home.path().join("away"));
    write(&folder, "a.md", "the boat leaves at noon");
    let system = start(home.path(), WatcherOptions::default()).await;
    look(&system, &folder).await;
    fs_err::rename(&folder, &away).unwrap();
    fs_err::create_dir(&folder).unwrap();
    let found = look(&system, &folder).await;
    assert!(found.problem.unwrap().contains("is its disk mounted?"));
    assert_eq!(texts(&system).await, ["the boat leaves at noon"]);
    fs_err::remove_dir(&folder).unwrap();
    fs_err::rename(&away, &folder).unwrap();
    assert_eq!(look(&system, &folder).await.problem, None);
    // The same folder, emptied: that is a deletion.
    fs_err::remove_file(folder.join("a.md")).unwrap();
    assert_eq!(look(&system, &folder).await.problem, None);
    assert!(texts(&system).await.is_empty());
    system.stop().await;
}

#[tokio::test]
async fn a_new_file_over_the_limit_pushes_out_none_that_is_in_memory() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (home.path().join("first"), home.path().join("second"));
    write(&first, "m.md", "first one");
    write(&second, "m.md", "second one");
    let system = start(home.path(), WatcherOptions { files_max: 3, ..WatcherOptions::default() }).await;
    look(&system, &first).await;
    look(&system, &second).await;
    for name in ["a.md", "b.md", "z.md"] {
        write(&first, name, name);
    }
    let found = look(&system, &first).await;
    assert_eq!(found.files, 2, "three in all folders together");
    assert!(found.problem.unwrap().contains("has 2 files more than may be watched"));
    let texts = texts(&system).await;
    assert!(texts.contains(&"first one".into()) && texts.contains(&"second one".into()), "{texts:?}");
    system.stop().await;
}

#[tokio::test]
async fn chunks_that_a_crash_left_without_a_row_go_with_the_next_look() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().canonicalize().unwrap().join("notes");
    write(&folder, "a.md", "the second version");
    let system = start(home.path(), WatcherOptions::default()).await;
    let file = folder.join("a.md");
    let orphan = NewMemory {
        thread: Some(format!("file:{}", file.display())),
        ..NewMemory::note(Namespace::default(), "the first version", "watch")
    };
    let operation = Operation { op_id: OpId::generate(), kind: OperationKind::Remember(orphan) };
    system.memory.apply(operation, deadline_in(SOON)).await.unwrap();
    let known =
        WatchFolder { folder, namespace: Namespace::default(), files: 0, scanned_at: None, problem: None, root: None };
    let mark = FileRow { unsettled: true, ..FileRow::default() };
    system.memory.put_documents(vec![row_of(&known, &file, Some(&mark))], deadline_in(SOON)).await.unwrap();
    look(&system, &known.folder).await;
    assert_eq!(texts(&system).await, ["the second version"]);
    // What goes takes everything of it along.
    fs_err::remove_file(&file).unwrap();
    write(&known.folder, "b.md", "another");
    look(&system, &known.folder).await;
    assert_eq!(texts(&system).await, ["another"]);
    system.stop().await;
}

#[tokio::test]
async fn what_is_too_long_for_a_row_or_a_title_is_read_once_and_not_at_every_look() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("notes");
    let deep = (0..9).map(|_| "d".repeat(150)).collect::<Vec<_>>().join("/");
    write(&folder, &format!("{deep}/deep.md"), "deep down");
    write(&folder, "long.md", &format!("# {}\n\nunder a long heading", "heading ".repeat(1_000)));
    // More than the journal's queue takes at once.
    write(&folder, "large.md", &"a line of a long file that has to be read in pieces\n\n".repeat(40_000));
    let system = start(home.path(), WatcherOptions::default()).await;
    let found = look(&system, &folder).await;
    assert_eq!((found.files, found.problem), (3, None));
    let lsn = system.memory.lsn();
    let texts = texts(&system).await;
    assert!(texts.contains(&"deep down".into()) && texts.iter().any(|text| text.contains("under a long heading")));
    look(&system, &folder).await;
    assert_eq!(system.memory.lsn(), lsn, "nothing has changed, so nothing is written");
    fs_err::remove_dir_all(folder.join("d".repeat(150))).unwrap();
    assert_eq!(look(&system, &folder).await.files, 2);
    system.watcher.remove(folder, true, deadline_in(SOON)).await.unwrap();
    assert!(self::texts(&system).await.is_empty());
    system.stop().await;
}

#[test]
fn a_burst_of_reports_is_one_message_and_a_bounded_list() {
    let reports = Reports::default();
    assert!(reports.add(vec![PathBuf::from("/a")]));
    assert!(!(0..10 * REPORTS_MAX).any(|number| reports.add(vec![PathBuf::from(format!("/{number}"))])));
    let taken = reports.take();
    assert!(taken.len() <= REPORTS_MAX && taken.contains(&PathBuf::new()), "too many means anywhere");
    assert!(reports.add(vec![PathBuf::from("/a")]), "and the next is told again");
}
