//! The daemon keeps a Lance copy where it is told to: it follows, it forgets, and it comes back after a kill. Built with
//! `--features mneme-tests/lance` only.

use std::path::{Path, PathBuf};

use mneme_tests::{Setup, eventually};
use serde_json::json;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const SECRET: &str = "kQ7vX2pLw9TzR4mB8nYcJ6hG";

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn hold(folder: &Path, needle: &str) -> bool {
    let mut found = Vec::new();
    files(folder, &mut found);
    // A file may be removed while it is looked at.
    let holds = |path: &PathBuf| {
        fs_err::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
    };
    found.iter().any(holds)
}

#[test]
fn the_copy_follows_forgets_and_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("copy");
    let setup = Setup::new(MNEMED, folder.path()).set(format!("memory.lance={}", place.display()));
    let daemon = setup.start();
    let mut client = daemon.client();
    let text = format!("the code word is {SECRET}");
    let id = client.ok("memory.remember", json!({"text": text}))["id"].clone();
    client.ok("memory.remember", json!({"text": "Anna plays the oboe on Tuesdays"}));
    client.ok("admin.compact", json!({}));
    eventually("the copy follows", || hold(&place, SECRET) && hold(&place, "oboe"));
    assert_eq!(client.ok("admin.status", json!({}))["health"], "healthy");

    let receipt = client.ok("memory.forget", json!({"select": {"ids": [id]}, "purge_now": true}));
    assert!(!hold(folder.path(), SECRET), "{receipt}: some file still holds it");
    assert!(!hold(&place, id.as_str().unwrap()), "{receipt}: some file still names it");
    assert!(hold(&place, "oboe"));
    client.ok("memory.remember", json!({"text": "Ben repairs clocks"}));
    daemon.kill();

    let daemon = setup.start();
    let mut client = daemon.client();
    client.ok("memory.remember", json!({"text": "Cleo keeps bees"}));
    eventually("the copy is taken up again", || {
        client.ok("admin.compact", json!({}));
        hold(&place, "clocks") && hold(&place, "bees") && hold(&place, "oboe")
    });
    assert_eq!(client.ok("admin.status", json!({}))["health"], "healthy");
    let (status, words) = daemon.stop();
    assert!(status.success(), "{words}");
    assert!(!words.contains(id.as_str().unwrap()), "the log names what was forgotten: {words}");
    assert_eq!(fs_err::read(place.join("lock")).unwrap(), b"", "it ended in good order");

    // Switched off: the store no longer keeps the journal for it, and the tables stay.
    let daemon = Setup::new(MNEMED, folder.path()).start();
    daemon.client().ok("memory.remember", json!({"text": "Dan sails"}));
    let (_, words) = daemon.stop();
    assert!(words.contains("memory.lance is off"), "{words}");
    assert!(hold(&place, "oboe"));
}
