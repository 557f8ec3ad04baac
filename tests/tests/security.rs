//! What hostile content may not do: lead out of a watched folder, block the daemon, or pass itself off as something else.

use std::path::Path;
use std::process::Command;

use mneme_tests::{Setup, eventually};
use serde_json::{Value, json};

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const MNEME: &str = env!("CARGO_BIN_EXE_e2e-mneme");

fn count(client: &mut mneme_tests::Raw) -> Value {
    client.ok("memory.stats", json!({}))["memories"].clone()
}

#[test]
fn links_pipes_and_hidden_files_of_a_watched_folder_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (outside, notes) = (folder.path().join("outside"), folder.path().join("notes"));
    fs_err::create_dir(&outside).unwrap();
    fs_err::create_dir(&notes).unwrap();
    fs_err::write(outside.join("secret.md"), "the vault opens with nightingale").unwrap();
    fs_err::write(notes.join("plain.md"), "the gate opens with sparrow").unwrap();
    fs_err::write(notes.join(".hidden.md"), "the cellar opens with thrush").unwrap();
    std::os::unix::fs::symlink(outside.join("secret.md"), notes.join("link.md")).unwrap();
    std::os::unix::fs::symlink(&outside, notes.join("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(notes.join("pipe.md")).status().unwrap().success());
    let daemon = Setup::new(MNEMED, folder.path()).set("watch.settle=20ms").set("watch.poll=1s").start();
    let mut client = daemon.client();
    // A path that walks back up is one path, not two.
    let roundabout = notes.join("../notes");
    let added = client.ok("watch.add", json!({"folder": roundabout, "namespace": "notes"}));
    assert_eq!(added["files"], 1, "{added}");
    assert_eq!(added["folder"], json!(fs_err::canonicalize(&notes).unwrap()));
    assert_eq!(count(&mut client), 1);
    // The file gives way to a link while the folder is watched: what it said goes, what the link says does not come.
    fs_err::remove_file(notes.join("plain.md")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret.md"), notes.join("plain.md")).unwrap();
    eventually("the file's text is forgotten", || count(&mut client) == 0);
    let found = client.ok("memory.recall", json!({"query": "nightingale", "namespaces": ["notes"]}));
    assert_eq!(found["hits"], json!([]), "{found}");
}

#[test]
fn an_import_is_as_bounded_as_a_write_and_its_labels_stay() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Setup::new(MNEMED, folder.path()).start();
    let mut client = daemon.client();
    // Content that speaks of files and commands is content.
    let hostile = ["../../../etc/passwd", "$(touch owned); `id`", "<script>alert(1)</script>", "\u{202e}txt.exe\u{0}"];
    let memories: Vec<Value> = hostile
        .iter()
        .map(|text| json!({"text": text, "trust": "untrusted", "source": "web:evil.example", "speaker": "../root"}))
        .collect();
    let answer = client.call("memory.import", json!({"memories": memories}));
    let (imported, refused) = (&answer["result"]["imported"], &answer["result"]["refused"]);
    let together = imported.as_u64().unwrap() + refused.as_array().unwrap().len() as u64;
    assert_eq!(together, hostile.len() as u64, "each was taken in or refused by name: {answer}");
    let recalled = client.ok("memory.recall", json!({"query": "etc passwd touch script", "limit": 10}));
    assert_eq!(recalled["hits"], json!([]), "what is not trusted stays in quarantine: {recalled}");
    let too_long = "x".repeat(2 << 20);
    let refused = client.call("memory.import", json!({"memories": [{"text": too_long}]}));
    assert_eq!(refused["result"]["imported"], 0, "{refused}");
    assert!(refused["result"]["refused"][0][1].as_str().unwrap().contains("at most"), "{refused}");
    let too_many: Vec<Value> = (0..1_001).map(|number| json!({"text": format!("note {number}")})).collect();
    assert_eq!(client.kind("memory.import", json!({"memories": too_many})), "invalid_params");
    assert!(!folder.path().join("owned").exists());
}

#[test]
fn lines_that_are_no_memories_are_refused_by_number_and_the_exit_status_tells() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path());
    let daemon = setup.start();
    let bad = folder.path().join("bad.jsonl");
    fs_err::write(&bad, "{\"text\": \"good\"}\n{\"text\": 7}\nnot json\n").unwrap();
    let run = |file: &Path| {
        Command::new(MNEME)
            .args(["--socket", &setup.socket().display().to_string(), "import"])
            .arg(file)
            .env_clear()
            .env("HOME", folder.path())
            .output()
            .unwrap()
    };
    let refused = run(&bad);
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    let words = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(words.contains("2 lines were refused") && words.contains("line 2") && words.contains("line 3"), "{words}");
    assert_eq!(count(&mut daemon.client()), 1, "what is good is taken in");
    let missing = run(&folder.path().join("nothing.jsonl"));
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("nothing.jsonl"));
    let _ = daemon;
}
