//! One training job of each level, on the stand-in engine: which level is chosen, and what happens when it cannot be trained.

use std::path::Path;

use mneme_tests::{Daemon, Raw, Setup, eventually};
use serde_json::{Value, json};

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const FAKE: &str = env!("CARGO_BIN_EXE_e2e-mneme-engine-fake");
const DIARY: &str = include_str!("../data/pepys-1660.jsonl");
/// What is asked for, in the words of the diary: the same situation as its entries.
const PROMPT: &str = "Up betimes, and to my office, where all the morning, and so home to dinner";

fn setup(folder: &Path) -> Setup {
    // The suite itself keeps the machine busy, and a busy machine trains nothing.
    Setup::new(MNEMED, folder)
        .set(format!("engine.program={FAKE}"))
        .set("evolution.load_max=1")
        .set("evolution.pause_on_battery=false")
        .set("evolution.level_max=L3")
}

/// A daemon that has read some days of the diary.
fn start(setup: &Setup, days: usize) -> Daemon {
    let daemon = setup.start();
    let mut client = daemon.client();
    let memories: Vec<Value> =
        DIARY.lines().take(days).map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    client.ok("memory.import", json!({"memories": memories}));
    eventually("the texts are in view", || {
        client.ok("evolve.status", json!({}))["texts_waiting"].as_u64() >= Some(days as u64)
    });
    daemon
}

/// Decisions, oldest first.
fn decisions(client: &mut Raw) -> Vec<Value> {
    let mut rows = client.ok("evolve.log", json!({"limit": 1_000}))["decisions"].as_array().expect("a list").clone();
    rows.reverse();
    rows
}

/// Orders a job and waits until it is decided; the proposal's words and the decision.
fn job(client: &mut Raw) -> (String, String) {
    let before = decisions(client).len();
    client.ok("evolve.run", json!({}));
    let (mut proposal, mut decision) = (None, None);
    eventually("the job is decided", || {
        for row in &decisions(client)[before..] {
            match row["to"].as_str().unwrap_or_default() {
                "propose" => proposal = row["reason"].as_str().map(str::to_owned),
                to @ ("shadow" | "reject") => decision = Some(to.to_owned()),
                _ => {}
            }
        }
        decision.is_some()
    });
    (proposal.expect("it was proposed"), decision.expect("it was decided"))
}

/// Answers that had to have a structure.
fn structured(client: &mut Raw) {
    for _ in 0..6 {
        let constraint = json!({"json_schema": {"type": "string"}});
        let answer = client.ok("generate", json!({"prompt": PROMPT, "tokens_max": 3, "constraint": constraint}));
        assert!(answer["fills"][0].as_str().unwrap_or_default().starts_with('"'), "{answer}");
    }
}

#[test]
fn a_failure_of_structure_is_met_by_a_control_network() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(&setup(folder.path()), 160);
    let mut client = daemon.client();
    structured(&mut client);
    let (proposal, decision) = job(&mut client);
    assert!(proposal.starts_with("ControlNet on"), "{proposal}");
    assert_eq!(decision, "shadow", "its gates hold");
    let status = client.ok("evolve.status", json!({}));
    assert_eq!(status["adapters"][0]["level"], "control_net", "{status}");
}

#[test]
fn selected_layers_are_trained_only_after_low_rank_updates_gain_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(&setup(folder.path()), 160);
    let mut client = daemon.client();
    let (proposal, decision) = job(&mut client);
    assert!(proposal.starts_with("Lora on"), "{proposal}");
    assert_eq!(decision, "shadow");
    let memories: Vec<Value> = DIARY.lines().skip(160).map(|line| serde_json::from_str(line).unwrap()).collect();
    client.ok("memory.import", json!({"memories": memories}));
    eventually("it is committed", || decisions(&mut client).iter().any(|row| row["to"] == "commit"));
    // The stand-in's low-rank updates hold so many texts; the next one, which starts from this one, has no room for more.
    let (proposal, decision) = job(&mut client);
    assert!(proposal.starts_with("Lora on") && decision == "reject", "{proposal}: {decision}");
    let (proposal, _) = job(&mut client);
    assert!(proposal.starts_with("Layers on"), "{proposal}");
}

#[test]
fn a_level_that_the_engine_cannot_train_after_all_is_left_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let setup = setup(folder.path()).variable("FAKE_ENGINE_UNTRAINABLE", "control_net");
    let daemon = start(&setup, 160);
    let mut client = daemon.client();
    structured(&mut client);
    let (proposal, decision) = job(&mut client);
    assert!(proposal.starts_with("Lora on"), "{proposal}");
    assert_eq!(decision, "shadow");
    let rows = decisions(&mut client);
    let said = |words: &str| rows.iter().any(|row| row["reason"].as_str().unwrap().contains(words));
    assert!(said("ControlNet on") && said("cannot train ControlNet, another level is chosen"), "{rows:?}");
}

#[test]
fn a_trainer_whose_daemon_is_gone_before_it_begins_trains_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let trainer = |parent: u32| {
        let job = folder.path().join("none.json");
        let mut command = std::process::Command::new(FAKE);
        command.arg("train").arg(job).env("MNEME_TRAINER_PARENT", parent.to_string());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // This process is its parent, so it looks for its job.
    let (status, words) = trainer(std::process::id());
    assert!(status == Some(1) && words.contains("none.json"), "{status:?}: {words}");
    assert_eq!(trainer(1), (Some(75), String::new()));
}
