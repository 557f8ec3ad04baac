//! Bad input and bad manners: each is refused in words, and the daemon goes on serving everybody else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use mneme_tests::{Daemon, Raw, Setup, eventually};
use serde_json::json;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const FAKE: &str = env!("CARGO_BIN_EXE_e2e-mneme-engine-fake");

fn setup(folder: &Path) -> Setup {
    Setup::new(MNEMED, folder)
}

fn still_serves(daemon: &Daemon) {
    assert!(daemon.client().ok("ping", json!({}))["boot"].is_string());
}

#[test]
fn a_frame_over_the_limit_is_refused_and_the_connection_closed() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).set("server.frame_bytes_max=64KiB").start();
    let mut raw = daemon.connect();
    // Sending may already fail half way: the daemon does not read what it refuses.
    raw.send(&vec![b'x'; 65 << 10]);
    let error = raw.line().expect("the reason is told");
    assert_eq!(error["error"]["data"]["kind"], "frame_too_large", "{error}");
    assert_eq!(raw.line(), None);
    still_serves(&daemon);
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    let mut raw = daemon.connect();
    for (bytes, kind) in [
        (&b"\xff\xfe{}\n"[..], "parse_error"),
        (b"{\"jsonrpc\":\n", "parse_error"),
        (b"[]\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"memory.stats\"}\n", "hello_required"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"no.such\"}\n", "method_not_found"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"a\":1}}\n", "invalid_params"),
    ] {
        raw.send(bytes);
        let answer = raw.line().expect("it is told");
        assert_eq!(answer["error"]["data"]["kind"], kind, "{answer}");
    }
    assert!(raw.ok("ping", json!({}))["boot"].is_string());
}

#[test]
fn a_version_that_nobody_speaks_is_refused_with_those_that_are_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    let mut raw = daemon.connect();
    let answer = raw.call("hello", json!({"protocol": 99, "client": "test"}));
    assert_eq!(answer["error"]["data"]["kind"], "unsupported_version");
    assert!(answer["error"]["message"].as_str().unwrap().contains("speaks 1 to 1"), "{answer}");
    // The client may try again with another one.
    assert!(raw.ok("hello", json!({"protocol": 1, "client": "test"}))["limits"].is_object());
    assert_eq!(raw.kind("hello", json!({"protocol": 1, "client": "test"})), "invalid_request");
}

#[test]
fn a_client_that_trickles_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).set("server.slow_frame_timeout=200ms").start();
    let mut raw = daemon.connect();
    raw.send(b"{\"jsonrpc\"");
    let error = raw.line().expect("the reason is told");
    assert!(error["error"]["message"].as_str().unwrap().contains("did not arrive within 200 ms"), "{error}");
    assert_eq!(raw.line(), None);
    still_serves(&daemon);
}

#[test]
fn a_thousand_connections_are_served_and_one_more_than_allowed_is_told_to_wait() {
    let folder = tempfile::tempdir().unwrap();
    // The test and its daemon need a file descriptor each for a connection.
    let _ = Command::new("true").status();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = 2_048;
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        println!("skipped: this machine allows fewer than {wanted} open files");
        return;
    }
    let raised = rustix::process::Rlimit { current: Some(wanted), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let daemon = setup(folder.path()).set("server.connections_max=1000").start();
    // The look whether it listens was a connection too: wait until it is gone.
    let mut connections: Vec<Raw> = Vec::new();
    for _ in 0..1_000 {
        let mut raw = daemon.connect();
        while raw.call("ping", json!({})).get("error").is_some() {
            raw = daemon.connect();
        }
        connections.push(raw);
    }
    let mut one_more = daemon.connect();
    let answer = one_more.line().expect("it is told");
    assert_eq!(answer["error"]["data"]["kind"], "busy", "{answer}");
    assert!(answer["error"]["data"]["retry_after_ms"].as_u64().unwrap() > 0);
    for raw in &mut connections {
        assert!(raw.ok("ping", json!({}))["boot"].is_string());
    }
    drop(connections);
    eventually("the places are free again", || {
        let mut raw = daemon.connect();
        raw.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n");
        raw.line().is_some_and(|answer| answer.get("result").is_some())
    });
}

#[test]
fn a_client_that_dies_during_its_request_costs_nobody_anything() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    for _ in 0..20 {
        let mut client = daemon.client();
        client.request("memory.remember", json!({"text": "from a client that dies"}), json!({}));
        client.request("generate", json!({"prompt": "a", "tokens_max": 400}), json!({}));
        client.send(b"{\"jsonrpc\":\"2.0\",\"id\":9,");
        drop(client);
    }
    let mut client = daemon.client();
    eventually("its generations are cancelled", || {
        let status = client.ok("task.status", json!({}));
        status["tasks"].as_array().unwrap().iter().all(|task| task["state"] != "running")
    });
    still_serves(&daemon);
}

#[test]
fn a_generation_whose_deadline_passed_or_whose_client_died_leaves_the_engine_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let daemon =
        setup(folder.path()).set(format!("engine.program={FAKE}")).variable("FAKE_ENGINE_FAULT", "slow").start();
    let mut client = daemon.client();
    let tasks = |client: &mut Raw| client.ok("task.status", json!({}))["tasks"].as_array().unwrap().clone();
    let long = json!({"prompt": "a", "tokens_max": 4});
    let answer = client.call_with("generate", long.clone(), json!({"deadline_ms": 200}));
    assert_eq!(answer["error"]["data"]["kind"], "deadline_exceeded", "{answer}");
    assert_eq!(tasks(&mut client)[0]["state"], "failed", "its client did not go away");
    // A client that only stops sending still gets its answer; one that is gone has its generation cancelled.
    let mut gone = daemon.client();
    gone.request("generate", long, json!({"deadline_ms": 600_000}));
    eventually("it runs", || tasks(&mut client)[0]["state"] == "running");
    drop(gone);
    eventually("it is cancelled", || tasks(&mut client)[0]["state"] == "cancelled");
    // The one lane is free: this would wait for both otherwise.
    let answer =
        client.call_with("generate", json!({"prompt": "quick", "tokens_max": 4}), json!({"deadline_ms": 20_000}));
    assert!(answer["result"]["text"].is_string(), "{answer}");
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    let mut client = daemon.client();
    let id = client.request("generate", json!({"prompt": "a", "tokens_max": 200}), json!({}));
    client.stop_sending();
    assert!(client.answer(id)["result"]["text"].is_string());
    assert_eq!(client.line(), None, "then the daemon closes too");
}

#[test]
fn a_client_that_waits_for_an_answer_is_not_idle() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path())
        .set(format!("engine.program={FAKE}"))
        .set("server.idle_timeout=1s")
        .variable("FAKE_ENGINE_FAULT", "slow")
        .start();
    let mut client = daemon.client();
    let id = client.request("generate", json!({"prompt": "a", "tokens_max": 4}), json!({"deadline_ms": 2_500}));
    let answer = client.answer(id);
    assert_eq!(answer["error"]["data"]["kind"], "deadline_exceeded", "{answer}");
    assert!(client.ok("ping", json!({}))["boot"].is_string(), "it is still heard");
}

#[test]
fn another_user_is_refused_by_name_even_if_the_file_lets_it_in() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = setup(folder.path()).start();
    let script =
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.recv(4096).decode())";
    // Not the first one on the path: it may lie in a folder that other users cannot enter.
    let python = "/usr/bin/python3";
    let as_nobody = |path: &Path| {
        Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "--", python, "-c", script]).arg(path).output()
    };
    let Ok(output) = as_nobody(&daemon.socket) else {
        println!("skipped: setpriv or python3 is not installed");
        return;
    };
    if String::from_utf8_lossy(&output.stderr).starts_with("setpriv") {
        println!("skipped: {python} is not installed");
        return;
    }
    assert!(String::from_utf8_lossy(&output.stderr).contains("PermissionError"), "{output:?}");
    // Even with the doors open, the peer's uid decides.
    let run = daemon.socket.parent().unwrap();
    fs_err::set_permissions(run, std::fs::Permissions::from_mode(0o755)).unwrap();
    fs_err::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let output = as_nobody(&daemon.socket).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() && String::from_utf8_lossy(&output.stderr).contains("Permission denied") {
        println!("skipped: a folder above the temporary one is closed to other users");
        return;
    }
    assert!(text.contains("\"kind\":\"forbidden\""), "{output:?}");
    still_serves(&daemon);
}

#[test]
fn a_socket_path_over_the_systems_limit_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(110));
    let (status, words) =
        setup(folder.path()).variable("MNEME_PATHS__RUNTIME_DIR", &long.display().to_string()).run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    assert!(words.contains("107"), "{words}");
}

#[test]
fn a_second_daemon_on_the_same_folder_is_refused_and_says_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).start();
    let other = tempfile::tempdir().unwrap();
    let run = other.path().display().to_string();
    let (status, words) = setup(folder.path()).variable("MNEME_PATHS__RUNTIME_DIR", &run).run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    assert!(words.contains(&format!("pid {}", daemon.pid())) && words.contains("in use"), "{words}");
    still_serves(&daemon);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be stops root too, unlike permissions.
    fs_err::write(folder.path().join("state"), "in the way").unwrap();
    let (status, words) = setup(folder.path()).run_to_end();
    assert_eq!(status.code(), Some(78), "{words}");
    assert!(words.contains("state") && words.contains("hint:"), "{words}");
}

#[test]
fn more_than_a_connection_may_have_under_way_is_busy_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path())
        .set(format!("engine.program={FAKE}"))
        .set("server.requests_in_flight_max=2")
        .variable("FAKE_ENGINE_FAULT", "hang")
        .start();
    let mut client = daemon.client();
    let generate = json!({"prompt": "a", "tokens_max": 4});
    client.request("generate", generate.clone(), json!({"deadline_ms": 20_000}));
    client.request("generate", generate.clone(), json!({"deadline_ms": 20_000}));
    let answer = client.call("ping", json!({}));
    assert_eq!(answer["error"]["data"]["kind"], "busy", "{answer}");
    assert!(answer["error"]["data"]["retry_after_ms"].as_u64().unwrap() > 0);
    // Another connection has places of its own.
    still_serves(&daemon);
}

#[test]
fn a_full_mailbox_is_busy_and_not_a_growing_queue() {
    let folder = tempfile::tempdir().unwrap();
    let daemon =
        setup(folder.path()).set(format!("engine.program={FAKE}")).variable("FAKE_ENGINE_FAULT", "hang").start();
    let mut client = daemon.client();
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..40 {
        client.request("generate", json!({"prompt": "a", "tokens_max": 4}), json!({"deadline_ms": 20_000}));
    }
    // 32 fit into the generator's queue: the others are answered at once, while the engine hangs.
    for _ in 0..8 {
        let answer = client.line().expect("it is told");
        kinds.insert(answer["error"]["data"]["kind"].as_str().unwrap_or("none").to_owned());
        assert!(answer["error"]["data"]["retry_after_ms"].as_u64().unwrap_or(0) > 0, "{answer}");
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["busy"]);
}

#[test]
fn a_deadline_that_passes_before_work_starts_is_told_and_the_work_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let daemon =
        setup(folder.path()).set(format!("engine.program={FAKE}")).variable("FAKE_ENGINE_FAULT", "hang").start();
    let mut client = daemon.client();
    client.request("generate", json!({"prompt": "a", "tokens_max": 4}), json!({"deadline_ms": 20_000}));
    let answer = client.call_with("generate", json!({"prompt": "b", "tokens_max": 4}), json!({"deadline_ms": 50}));
    assert_eq!(answer["error"]["data"]["kind"], "deadline_exceeded", "{answer}");
    // Recall does not wait for the engine that hangs.
    let recall = client.ok("memory.recall", json!({"query": "anything"}));
    assert!(recall["hits"].as_array().unwrap().is_empty());
}

/// Asks something new, which a dead engine is started again for, and tells whether one was.
fn engine_was_replaced(client: &mut Raw) -> bool {
    let restarts = client.ok("admin.status", json!({}))["engine_restarts"].as_u64();
    client.ok("memory.recall", json!({"query": format!("tea, asked at {:?}", std::time::Instant::now())}));
    restarts >= Some(1)
}

#[test]
fn an_engine_that_hangs_or_dies_costs_one_call_and_is_replaced() {
    for fault in ["hang", "abort", "garbage", "kill", "memory", "stopped"] {
        let folder = tempfile::tempdir().unwrap();
        let daemon =
            setup(folder.path()).set(format!("engine.program={FAKE}")).variable("FAKE_ENGINE_FAULT", fault).start();
        let mut client = daemon.client();
        client.ok("memory.remember", json!({"text": "tea is at four", "trust": "user"}));
        let answer =
            client.call_with("generate", json!({"prompt": "tea", "tokens_max": 4}), json!({"deadline_ms": 1_000}));
        let kind = answer["error"]["data"]["kind"].as_str().unwrap_or("none").to_owned();
        assert!(kind == "deadline_exceeded" || kind == "engine_unavailable", "{fault}: {answer}");
        eventually(&format!("{fault}: recall is whole again"), || {
            let recall = client.ok("memory.recall", json!({"query": "when is tea"}));
            recall["hits"][0]["memory"]["text"] == "tea is at four" && recall["degraded"].as_array().unwrap().is_empty()
        });
        eventually(&format!("{fault}: it was replaced"), || engine_was_replaced(&mut client));
    }
}

#[test]
fn an_engine_that_was_stopped_while_it_was_idle_is_found_out_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = setup(folder.path()).set(format!("engine.program={FAKE}")).start();
    let mut client = daemon.client();
    client.ok("memory.remember", json!({"text": "tea is at four", "trust": "user"}));
    let recall_is_whole = |client: &mut Raw| {
        let recall = client.ok("memory.recall", json!({"query": "when is tea"}));
        recall["hits"][0]["memory"]["text"] == "tea is at four" && recall["degraded"].as_array().unwrap().is_empty()
    };
    eventually("recall is whole", || recall_is_whole(&mut client));
    let engine = rustix::process::Pid::from_raw(daemon.children()[0]).unwrap();
    rustix::process::kill_process(engine, rustix::process::Signal::STOP).unwrap();
    // Nobody waits for it longer than for any other answer.
    let before = std::time::Instant::now();
    client.ok("memory.recall", json!({"query": "when is tea then"}));
    assert!(before.elapsed() < std::time::Duration::from_secs(5), "{:?}", before.elapsed());
    eventually("it was replaced", || engine_was_replaced(&mut client));
    eventually("recall is whole again", || {
        let recall = client.ok("memory.recall", json!({"query": "is tea at four"}));
        recall["degraded"].as_array().unwrap().is_empty()
    });
}
