//! Start, stop, crash, reload: nothing acknowledged is lost, and every end says why.

use std::path::Path;

use mneme_tests::{Setup, eventually};
use rustix::process::Signal;
use serde_json::json;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const FAKE: &str = env!("CARGO_BIN_EXE_e2e-mneme-engine-fake");

fn setup(folder: &Path) -> Setup {
    Setup::new(MNEMED, folder)
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_a_stale_socket() {
    let folder = tempfile::tempdir().unwrap();
    let setup = setup(folder.path());
    let mut ids = Vec::new();
    for round in 0..3 {
        let daemon = setup.start();
        let mut client = daemon.client();
        for id in &ids {
            assert!(client.ok("memory.get", json!({"id": id}))["text"].is_string());
        }
        for number in 0..20 {
            let text = format!("note {number} of round {round}");
            ids.push(client.ok("memory.remember", json!({"text": text}))["id"].clone());
        }
        daemon.kill();
        assert!(setup.socket().exists(), "a killed daemon leaves its socket");
    }
    let daemon = setup.start();
    assert_eq!(daemon.client().ok("memory.stats", json!({}))["memories"], 60);
}

#[cfg(not(feature = "lance"))]
#[test]
fn a_copy_that_this_build_cannot_keep_is_a_fault_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (status, words) = setup(folder.path()).set("memory.lance=auto").run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    assert!(words.contains("built without the feature lance") && words.contains("hint: "), "{words}");
    let (status, words) = setup(folder.path()).set("memory.lance=file:///tmp/x").run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    assert!(words.contains("an absolute folder"), "{words}");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_daemon_gives_its_allocator_few_arenas_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let arenas = |daemon: &mneme_tests::Daemon| {
        let environment = fs_err::read_to_string(format!("/proc/{}/environ", daemon.pid())).unwrap();
        let found: Vec<&str> =
            environment.split('\0').filter_map(|entry| entry.strip_prefix("MALLOC_ARENA_MAX=")).collect();
        assert_eq!(found.len(), 1, "{environment}");
        found[0].to_owned()
    };
    assert_eq!(arenas(&setup(folder.path()).start()), "2");
    assert_eq!(arenas(&setup(folder.path()).variable("MALLOC_ARENA_MAX", "7").start()), "7");
}

#[test]
fn the_same_op_id_is_one_change_even_across_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let setup = setup(folder.path());
    let op = json!({"op_id": "000102030405060708090a0b0c0d0e0f"});
    let daemon = setup.start();
    let first = daemon.client().call_with("memory.remember", json!({"text": "once"}), op.clone());
    daemon.kill();
    let daemon = setup.start();
    let mut client = daemon.client();
    let second = client.call_with("memory.remember", json!({"text": "once"}), op.clone());
    assert_eq!(second["result"]["id"], first["result"]["id"]);
    assert_eq!(second["result"]["replayed"], true);
    let other = client.call_with("memory.remember", json!({"text": "something else"}), op);
    assert_eq!(other["error"]["data"]["kind"], "conflict", "{other}");
    assert_eq!(client.ok("memory.stats", json!({}))["memories"], 1);
}

#[test]
fn a_terminated_daemon_answers_what_is_under_way_and_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let setup = setup(folder.path());
    let daemon = setup.start();
    let mut client = daemon.client();
    let id = client.request("generate", json!({"prompt": "the", "tokens_max": 300}), json!({}));
    daemon.signal(Signal::TERM);
    let answer = client.answer(id);
    // Whether it had begun or not decides between the two, never a closed connection.
    let fine = answer["result"]["text"].is_string() || answer["error"]["data"]["kind"] == "shutting_down";
    assert!(fine, "{answer}");
    let (status, words) = daemon.wait();
    assert!(status.success(), "{words}");
    assert!(!setup.socket().exists(), "a daemon that ends well takes its socket with it");
    assert!(!words.contains("restarted"), "{words}");
}

#[test]
fn an_engine_that_starts_or_works_does_not_hold_up_the_end() {
    // A generation that would go on for minutes, and an engine that never says that it is there.
    for fault in ["slow", "silent"] {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent");
        fs_err::write(&silent, "#!/bin/sh\nexec cat > /dev/null\n").unwrap();
        fs_err::set_permissions(&silent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let program = if fault == "silent" { silent.display().to_string() } else { FAKE.to_owned() };
        let daemon = setup(folder.path())
            .set(format!("engine.program={program}"))
            .set("engine.start_timeout=5m")
            .set("server.drain_timeout=100ms")
            .variable("FAKE_ENGINE_FAULT", fault)
            .start();
        let mut client = daemon.client();
        client.request("generate", json!({"prompt": "a", "tokens_max": 4}), json!({"deadline_ms": 600_000}));
        eventually("it runs", || daemon.client().ok("task.status", json!({}))["tasks"][0]["state"] == "running");
        // Whoever only asks after the engine is answered meanwhile.
        assert!(client.ok("admin.status", json!({}))["engine"].is_string());
        let (status, words) = daemon.stop();
        assert!(status.success(), "{words}");
    }
}

#[test]
fn a_drain_over_the_socket_ends_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    daemon.client().ok("admin.drain", json!({}));
    let (status, words) = daemon.wait();
    assert!(status.success(), "{words}");
}

#[test]
fn a_changed_configuration_is_taken_and_a_faulty_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join(".config/mneme/config.toml");
    fs_err::create_dir_all(config.parent().unwrap()).unwrap();
    fs_err::write(&config, "[server]\nrequest_timeout = \"20s\"\n").unwrap();
    let daemon = setup(folder.path()).start();
    let idle = |daemon: &mneme_tests::Daemon| daemon.client().call("hello", json!({})).to_string();
    assert!(idle(&daemon).contains("invalid"));
    let limit = |daemon: &mneme_tests::Daemon| {
        let mut raw = daemon.connect();
        raw.ok("hello", json!({"protocol": 1, "client": "test"}))["limits"]["idle_timeout_ms"].as_u64().unwrap()
    };
    assert_eq!(limit(&daemon), 900_000);
    // As editors do: written beside, then renamed over.
    let beside = config.with_extension("tmp");
    fs_err::write(&beside, "[server]\nidle_timeout = \"2m\"\n").unwrap();
    fs_err::rename(&beside, &config).unwrap();
    daemon.signal(Signal::HUP);
    eventually("the new value is in force", || limit(&daemon) == 120_000);
    fs_err::write(&config, "[server]\nidle_timeout = \"never\"\n").unwrap();
    daemon.signal(Signal::HUP);
    fs_err::write(&config, "[server]\nidle_timeout = \"3m\"\n").unwrap();
    daemon.signal(Signal::HUP);
    eventually("a right one after a faulty one is taken", || limit(&daemon) == 180_000);
    let (status, words) = daemon.stop();
    assert!(status.success(), "{words}");
}

#[test]
fn a_faulty_configuration_is_refused_with_file_line_key_and_bound() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join(".config/mneme/config.toml");
    fs_err::create_dir_all(config.parent().unwrap()).unwrap();
    fs_err::write(&config, "[server]\n\nconnections_max = 0\n").unwrap();
    let (status, words) = setup(folder.path()).run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    for part in ["config.toml", "3", "connections_max", "0", "1 to 65536"] {
        assert!(words.contains(part), "{part} in {words}");
    }
}

#[test]
fn a_watched_folder_is_followed_through_changes_renames_deletions_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let notes = tempfile::tempdir().unwrap();
    let setup = setup(folder.path()).set("watch.settle=20ms").set("watch.poll=1s");
    fs_err::write(notes.path().join("garden.md"), "# Garden\n\nThe spade is in the shed.\n").unwrap();
    let daemon = setup.start();
    let mut client = daemon.client();
    let added = client.ok("watch.add", json!({"folder": notes.path()}));
    assert_eq!(added["files"], 1, "{added}");
    let finds = |client: &mut mneme_tests::Raw, query: &str, text: &str| {
        let recall = client.ok("memory.recall", json!({"query": query, "limit": 3}));
        recall["hits"].as_array().unwrap().iter().any(|hit| hit["memory"]["text"].as_str().unwrap().contains(text))
    };
    let recall = client.ok("memory.recall", json!({"query": "where is the spade", "limit": 1}));
    let origin = &recall["hits"][0]["memory"]["origin"];
    assert!(origin["path"].as_str().unwrap().ends_with("garden.md") && origin["lines"].is_array(), "{recall}");
    // An editor's atomic rename.
    let beside = notes.path().join(".garden.tmp");
    fs_err::write(&beside, "# Garden\n\nThe spade is in the cellar.\n").unwrap();
    fs_err::rename(&beside, notes.path().join("garden.md")).unwrap();
    eventually("the change is seen", || finds(&mut client, "where is the spade", "cellar"));
    // What is new comes in before what is old goes, so that at no moment there is nothing.
    eventually("the former text is gone", || !finds(&mut client, "where is the spade", "shed"));
    // A burst of files.
    for number in 0..50 {
        fs_err::write(notes.path().join(format!("{number}.txt")), format!("number {number} likes pears")).unwrap();
    }
    eventually("the burst is seen", || client.ok("watch.list", json!({}))["folders"][0]["files"] == 51);
    fs_err::remove_file(notes.path().join("garden.md")).unwrap();
    eventually("the deletion is seen", || !finds(&mut client, "where is the spade", "cellar"));
    // What changes while the daemon is away is seen at its start.
    let (status, words) = daemon.stop();
    assert!(status.success(), "{words}");
    fs_err::write(notes.path().join("late.txt"), "the kettle is in the attic").unwrap();
    let daemon = setup.start();
    let mut client = daemon.client();
    eventually("the late file is seen", || finds(&mut client, "where is the kettle", "attic"));
    let left = client.ok("watch.remove", json!({"folder": notes.path(), "forget": true}));
    assert!(left["folders"].as_array().unwrap().is_empty());
    assert_eq!(client.ok("memory.stats", json!({}))["memories"], 0);
}

#[test]
fn a_folder_that_is_none_or_overlaps_another_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let notes = tempfile::tempdir().unwrap();
    let inside = notes.path().join("inside");
    fs_err::create_dir(&inside).unwrap();
    let daemon = setup(folder.path()).start();
    let mut client = daemon.client();
    assert_eq!(client.kind("watch.add", json!({"folder": "relative"})), "invalid_params");
    assert_eq!(client.kind("watch.add", json!({"folder": "/nonexistent"})), "invalid_params");
    client.ok("watch.add", json!({"folder": notes.path()}));
    assert_eq!(client.kind("watch.add", json!({"folder": inside})), "invalid_params");
    assert_eq!(client.kind("watch.remove", json!({"folder": inside})), "not_found");
}

#[test]
fn an_engine_whose_daemon_was_killed_does_not_outlive_it_even_when_it_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let daemon =
        setup(folder.path()).set(format!("engine.program={FAKE}")).variable("FAKE_ENGINE_FAULT", "hang").start();
    let mut client = daemon.client();
    client.request("generate", json!({"prompt": "a", "tokens_max": 4}), json!({"deadline_ms": 60_000}));
    eventually("the engine runs", || !daemon.children().is_empty());
    let engine = rustix::process::Pid::from_raw(daemon.children()[0]).unwrap();
    daemon.kill();
    eventually("the engine is gone", || {
        // A zombie that nobody has collected yet counts as gone.
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", engine.as_raw_nonzero())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

/// Writes the user's configuration file.
fn configure(folder: &Path, text: &str) {
    let file = folder.join(".config/mneme/config.toml");
    fs_err::create_dir_all(file.with_file_name("")).expect("the folder can be made");
    // As editors do: a reader sees the old text or the new one, never half of it.
    let draft = file.with_extension("draft");
    fs_err::write(&draft, text).expect("the file can be written");
    fs_err::rename(draft, file).expect("the file can be replaced");
}

#[test]
fn a_reload_tells_what_is_in_force_and_what_waits_for_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "[memory]\nsource_quota_per_hour = 1000\n");
    let daemon = setup(folder.path()).start();
    let mut client = daemon.client();
    let before = client.ok("admin.reload", json!({}));
    assert_eq!(before, json!({"applied": [], "restart_needed": []}));
    configure(
        folder.path(),
        "[server]\nconnections_max = 2\n[memory]\nsource_quota_per_hour = 2\nindex_threads = 1\n[watch]\npoll = \"2s\"\n",
    );
    let after = client.ok("admin.reload", json!({}));
    assert_eq!(
        after["applied"],
        json!(["server.connections_max = 2", "memory.source_quota_per_hour = 2", "watch.poll = \"2s\""])
    );
    assert_eq!(after["restart_needed"], json!(["memory.index_threads"]));
    // In force means in force: the third connection is one too many, the third write of a source too.
    let _second = daemon.client();
    let third = daemon.connect().line().unwrap();
    assert_eq!(third["error"]["data"]["kind"], "busy", "{third}");
    let source = "agent:scribe";
    let mut write =
        |text: &str| client.call("memory.remember", json!({"text": text, "source": source, "trust": "untrusted"}));
    for text in ["one", "two"] {
        let answer = write(text);
        assert!(answer["result"]["id"].is_string(), "{answer}");
    }
    assert_eq!(write("three")["error"]["data"]["kind"], "quota_exceeded");
}

#[test]
fn a_configuration_that_is_not_valid_is_refused_with_its_line_and_the_last_good_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "[server]\nconnections_max = 3\n");
    let daemon = setup(folder.path()).start();
    let mut client = daemon.client();
    configure(folder.path(), "[server]\nconnections_max = 0\n");
    let refused = client.call("admin.reload", json!({}));
    assert_eq!(refused["error"]["data"]["kind"], "invalid_params", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("connections_max") && message.contains("config.toml:2"), "{message}");
    // Three may still connect.
    let _others = [daemon.client(), daemon.client()];
    configure(folder.path(), "[server]\nconnections_max = 4\n");
    let mended = client.ok("admin.reload", json!({}));
    assert_eq!(mended["applied"], json!(["server.connections_max = 4"]));
    daemon.client();
}
