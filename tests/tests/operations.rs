//! What an operator relies on: backup and restore, export and import, limits of the system.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mneme_tests::Setup;
use serde_json::{Value, json};

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const MNEME: &str = env!("CARGO_BIN_EXE_e2e-mneme");

fn mneme(setup: &Setup, arguments: &[&str]) -> Output {
    Command::new(MNEME)
        .args(["--socket", &setup.socket().display().to_string()])
        .args(arguments)
        .env_clear()
        .env("HOME", &setup.folder)
        .output()
        .unwrap()
}

/// Runs the daemon's program for a restore.
fn restore(setup: &Setup, backup: &Path) -> Output {
    setup.command().arg("--restore").arg(backup).stdout(Stdio::piped()).output().unwrap()
}

#[test]
fn a_backup_is_restored_by_a_command_and_what_was_there_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (setup, backup) = (Setup::new(MNEMED, folder.path()), folder.path().join("backup"));
    let daemon = setup.start();
    let mut client = daemon.client();
    client.ok("memory.remember", json!({"text": "tea is at four"}));
    client.ok("admin.backup", json!({"folder": backup}));
    client.ok("memory.remember", json!({"text": "coffee is at nine"}));
    let refused = restore(&setup, &backup);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("stop the daemon first"), "{words}");
    daemon.stop();
    let nothing = restore(&setup, &folder.path().join("nothing"));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("the store is as it was"), "{nothing:?}");
    let restored = restore(&setup, &backup);
    assert!(restored.status.success(), "{restored:?}");
    let said: Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!(said["memories"], 1);
    assert!(Path::new(said["kept"].as_str().unwrap()).join("state").is_dir(), "{said}");
    let daemon = setup.start();
    let mut client = daemon.client();
    let texts = |client: &mut mneme_tests::Raw| {
        let all = client.ok("memory.export", json!({}));
        all["memories"].as_array().unwrap().iter().map(|memory| memory["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&mut client), ["tea is at four"]);
    client.ok("memory.remember", json!({"text": "and goes on"}));
    daemon.stop();
}

#[test]
fn an_export_that_is_imported_again_revives_nothing_that_was_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path());
    let daemon = setup.start();
    let mut client = daemon.client();
    let old = client.ok("memory.remember", json!({"text": "the boat leaves at noon"}));
    client.ok("memory.supersede", json!({"id": old["id"], "by": {"text": "the boat leaves at one"}}));
    let file = folder.path().join("memories.jsonl").display().to_string();
    assert!(mneme(&setup, &["export", &file]).status.success());
    let imported = mneme(&setup, &["--json", "import", &file]);
    let said: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!((&said["imported"], &said["duplicates"], &said["superseded"]), (&json!(0), &json!(1), &json!(1)));
    assert_eq!(client.ok("memory.stats", json!({}))["memories"], 1);
    daemon.stop();
}

/// Answers a greeting and one page of an export as a daemon did, promises another page, and is gone.
fn die_after_a_page(listener: &UnixListener, hello: &Value, page: &Value) {
    let mut reader = BufReader::new(listener.accept().unwrap().0);
    for result in [hello, page] {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let request: Value = serde_json::from_str(&line).unwrap();
        writeln!(reader.get_mut(), "{}", json!({"jsonrpc": "2.0", "id": request["id"], "result": result})).unwrap();
    }
}

#[test]
fn an_export_that_breaks_off_leaves_the_former_one_and_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path());
    let daemon = setup.start();
    let mut client = daemon.client();
    client.ok("memory.remember", json!({"text": "the boat leaves at noon"}));
    let exports = folder.path().join("exports");
    fs_err::create_dir(&exports).unwrap();
    let file = exports.join("memories.jsonl");
    assert!(mneme(&setup, &["export", file.to_str().unwrap()]).status.success());
    let former = fs_err::read_to_string(&file).unwrap();
    client.ok("memory.remember", json!({"text": "the train leaves at one"}));
    let mut page = client.ok("memory.export", json!({}));
    page["next"] = page["memories"][1]["id"].clone();
    let hello = daemon.connect().ok("hello", json!({"protocol": 1, "client": "test"}));
    daemon.stop();
    let socket = folder.path().join("dying.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let dying = std::thread::spawn(move || die_after_a_page(&listener, &hello, &page));
    let broken = Command::new(MNEME)
        .args(["--socket", socket.to_str().unwrap(), "--timeout", "1", "export", file.to_str().unwrap()])
        .output()
        .unwrap();
    dying.join().unwrap();
    assert!(!broken.status.success(), "{broken:?}");
    assert_eq!(fs_err::read_to_string(&file).unwrap(), former);
    assert_eq!(fs_err::read_dir(&exports).unwrap().count(), 1, "no draft is left");
}

#[test]
fn a_page_of_an_export_is_bounded_in_bytes_and_a_forget_in_ids() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Setup::new(MNEMED, folder.path()).start();
    let mut client = daemon.client();
    for part in 0..2 {
        let long = |number: usize| json!({"text": format!("{part} {number} {}", "word ".repeat(12_000))});
        client.ok("memory.import", json!({"memories": (0..40).map(long).collect::<Vec<_>>()}));
    }
    let mut after = Value::Null;
    let mut seen = std::collections::BTreeSet::new();
    let mut pages = 0;
    loop {
        let page = client.ok("memory.export", json!({"after": after, "limit": 1_000}));
        pages += 1;
        for memory in page["memories"].as_array().unwrap() {
            assert!(seen.insert(memory["id"].as_str().unwrap().to_owned()), "none comes twice");
        }
        after = page["next"].clone();
        if after.is_null() {
            break;
        }
    }
    assert_eq!(seen.len(), 80);
    assert!(pages > 1, "80 memories of 60 kB are more than one page");
    let many: Vec<&String> = seen.iter().cycle().take(1_001).collect();
    assert_eq!(client.kind("memory.forget", json!({"select": {"ids": many}})), "invalid_params");
    daemon.stop();
}

#[test]
fn a_daemon_that_is_given_few_files_asks_for_as_many_as_its_connections_need() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path()).set("server.connections_max=600");
    let own = setup.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 256; exec \"$0\" \"$@\""])
        .arg(own.get_program())
        .args(own.get_args())
        .env_clear();
    for (name, value) in own.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    mneme_tests::eventually("the daemon listens", || setup.socket().exists());
    let limits = fs_err::read_to_string(format!("/proc/{}/limits", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let Ok(limits) = limits else {
        println!("skipped: this system does not tell a process's limits");
        return;
    };
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft >= 1_112, "{line}");
}
