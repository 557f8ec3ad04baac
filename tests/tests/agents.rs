//! `mneme mcp` as an agent drives it, and what must not hang or be lost when a generation takes long.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use mneme_tests::{Daemon, PATIENCE, Setup, eventually};
use serde_json::{Value, json};

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
        let (sender, answers) = channel();
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
