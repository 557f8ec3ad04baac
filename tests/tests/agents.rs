//! `mneme mcp` as an agent drives it, and what must not hang or be lost when a generation takes long.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use mneme_tests::{Daemon, PATIENCE, Setup, eventually};
use serde_json::{Value, json};

/// Answers that nobody has asked for yet.
const ANSWERS_MAX: usize = 64;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const MNEME: &str = env!("CARGO_BIN_EXE_e2e-mneme");
const FAKE: &str = env!("CARGO_BIN_EXE_e2e-mneme-engine-fake");

/// The server on pipes; killed when dropped.
struct Agent {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Value>,
    /// Answers that came before they were asked for.
    early: Vec<Value>,
}

impl Agent {
    fn start(daemon: &Daemon) -> Self {
        let mut child = Command::new(MNEME)
            .args(["--socket", daemon.socket.to_str().unwrap(), "mcp"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, answers) = sync_channel(ANSWERS_MAX);
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("the server writes JSON"));
            }
        });
        let input = child.stdin.take().unwrap();
        let mut agent = Self { child, input, answers, early: Vec::new() };
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "suite"}});
        agent.send(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}));
        assert!(agent.answer(0)["result"].is_object());
        agent
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input, "{message}").unwrap();
    }

    fn begin(&mut self, id: u64, tool: &str, arguments: &Value) {
        let params = json!({"name": tool, "arguments": arguments});
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}));
    }

    fn answer(&mut self, id: u64) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.early.iter().position(|answer| answer["id"] == id) {
                return self.early.remove(place);
            }
            let left = until.saturating_duration_since(Instant::now());
            self.early.push(self.answers.recv_timeout(left).expect("the server answers in time"));
        }
    }

    fn call(&mut self, id: u64, tool: &str, arguments: &Value) -> Value {
        self.begin(id, tool, arguments);
        self.answer(id)["result"].clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn long_generations_hold_up_no_recall_and_a_cancelled_one_ends_in_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path()).set(format!("engine.program={FAKE}"));
    let daemon = setup.variable("FAKE_ENGINE_FAULT", "slow").start();
    let mut watching = daemon.client();
    let mut running = || {
        let tasks = watching.ok("task.status", json!({}))["tasks"].clone();
        tasks.as_array().unwrap().iter().filter(|task| task["state"] == "running").count()
    };
    let mut agent = Agent::start(&daemon);
    agent.call(1, "remember", &json!({"text": "tea is at four"}));
    for id in 10..16 {
        agent.begin(id, "generate", &json!({"prompt": "a"}));
    }
    eventually("generations are under way", || running() > 0);
    let found = agent.call(2, "recall", &json!({"query": "when is tea?"}));
    assert_eq!(found["structuredContent"]["hits"][0]["text"], "tea is at four", "{found}");
    for id in 10..16 {
        let params = json!({"requestId": id});
        agent.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
    }
    eventually("the daemon has stopped them", || running() == 0);
    let written = agent.call(3, "generate", &json!({"prompt": "quick"}));
    assert_eq!(written["isError"], false, "the engine is free again: {written}");
    assert!(agent.early.is_empty(), "what was cancelled got no answer");
}

#[test]
fn an_agent_replaces_what_agents_told_and_never_the_users_own_word() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Setup::new(MNEMED, folder.path()).start();
    let mut user = daemon.client();
    let own = user.ok("memory.remember", json!({"text": "Ada lives in Turin", "trust": "user"}));
    let mut agent = Agent::start(&daemon);
    let moved = json!({"text": "Ada moved to Rome", "supersedes": own["id"]});
    let refused = agent.call(1, "remember", &moved);
    assert_eq!(refused["isError"], true, "{refused}");
    assert!(refused["content"][0]["text"].as_str().unwrap().contains("may not replace"), "{refused}");
    let kept = user.ok("memory.get", json!({"id": own["id"]}));
    assert!(kept["superseded_by"].is_null(), "it is not hidden: {kept}");
    let told = agent.call(2, "remember", &json!({"text": "Ada drinks tea"}))["structuredContent"].clone();
    let newer = agent.call(3, "remember", &json!({"text": "Ada drinks coffee", "supersedes": told["id"]}));
    assert_eq!(newer["isError"], false, "{newer}");
    user.ok("memory.supersede", json!({"id": own["id"], "by": {"text": "Ada moved to Rome", "trust": "user"}}));
}

#[test]
fn a_forgotten_memory_is_a_resource_that_does_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Setup::new(MNEMED, folder.path()).start();
    let mut agent = Agent::start(&daemon);
    let kept = agent.call(1, "remember", &json!({"text": "tea is at four"}))["structuredContent"].clone();
    let uri = format!("mneme://memory/{}", kept["id"].as_str().unwrap());
    let read = |id: u64, agent: &mut Agent| {
        agent.send(&json!({"jsonrpc": "2.0", "id": id, "method": "resources/read", "params": {"uri": uri}}));
        agent.answer(id)
    };
    assert!(read(2, &mut agent)["result"]["contents"][0]["text"].is_string());
    agent.call(3, "forget", &json!({"ids": [kept["id"]]}));
    let gone = read(4, &mut agent);
    assert_eq!((&gone["error"]["code"], &gone["error"]["data"]["uri"]), (&json!(-32002), &json!(uri)), "{gone}");
}

/// Runs `mneme install claude-code --hooks` and tells how it ended.
fn install(home: &Path, settings: Option<&str>) -> (Option<i32>, String) {
    let output = Command::new(MNEME)
        .args(["install", "claude-code", "--hooks", "--yes"])
        .env_clear()
        .env("HOME", home)
        .envs(settings.map(|folder| ("CLAUDE_CONFIG_DIR", folder)))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_installed_goes_where_the_client_reads() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let elsewhere = home.join("elsewhere");
    assert_eq!(install(home, Some(elsewhere.to_str().unwrap())).0, Some(0));
    assert!(elsewhere.join(".claude.json").exists() && elsewhere.join("settings.json").exists());
    assert!(!home.join(".claude.json").exists() && !home.join(".claude").exists());
    let (code, words) = install(home, Some("relative"));
    assert!(code == Some(64) && words.contains("CLAUDE_CONFIG_DIR is relative"), "{words}");
    assert_eq!(install(home, None).0, Some(0));
    assert!(home.join(".claude.json").exists() && home.join(".claude/settings.json").exists());
    // A link into a disk that is not mounted is not replaced by a file.
    fs_err::remove_file(home.join(".claude.json")).unwrap();
    std::os::unix::fs::symlink(home.join("unmounted/claude.json"), home.join(".claude.json")).unwrap();
    let (code, words) = install(home, None);
    assert!(code == Some(64) && words.contains("is a link to a file that is not there"), "{words}");
    assert!(home.join(".claude.json").is_symlink());
}
