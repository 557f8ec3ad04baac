//! Skills that move from one machine to another, and files that only look like skills.

use std::path::{Path, PathBuf};
use std::process::Command;

use mneme_base::ContentHash;
use mneme_tests::{Daemon, Raw, Setup, eventually};
use serde_json::{Value, json};

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const MNEME: &str = env!("CARGO_BIN_EXE_e2e-mneme");
const FAKE: &str = env!("CARGO_BIN_EXE_e2e-mneme-engine-fake");
const DIARY: &str = include_str!("../data/pepys-1660.jsonl");
const PROMPT: &str = "Up betimes, and to my office, where all the morning, and so home to dinner";

fn setup(folder: &Path) -> Setup {
    Setup::new(MNEMED, folder)
        .set(format!("engine.program={FAKE}"))
        .set("evolution.load_max=1")
        .set("evolution.pause_on_battery=false")
}

fn diary(client: &mut Raw, days: std::ops::Range<usize>) {
    let lines = DIARY.lines().skip(days.start).take(days.len());
    let memories: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    client.ok("memory.import", json!({"memories": memories}));
}

fn texts_in_view(client: &mut Raw, texts: u64) {
    eventually("the texts are in view", || {
        client.ok("evolve.status", json!({}))["texts_waiting"].as_u64() >= Some(texts)
    });
}

fn entered(client: &mut Raw, station: &str) -> bool {
    let log = client.ok("evolve.log", json!({}));
    log["decisions"].as_array().expect("a list").iter().any(|row| row["to"] == station)
}

/// Trains an adapter and writes it to a file.
fn made(folder: &Path) -> (PathBuf, String) {
    let daemon = setup(&folder.join("there")).start();
    let mut client = daemon.client();
    diary(&mut client, 0..160);
    texts_in_view(&mut client, 160);
    client.ok("evolve.run", json!({}));
    eventually("its gates hold", || entered(&mut client, "shadow"));
    let adapter =
        client.ok("evolve.status", json!({}))["adapters"][0]["id"].as_str().expect("it has a name").to_owned();
    let file = folder.join("diary.skill");
    let (code, out, err) = mneme(&daemon, folder, &["evolve", "export", &adapter, &file.display().to_string()]);
    assert_eq!(code, Some(0), "{out}{err}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&file).expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
    (file, adapter)
}

fn mneme(daemon: &Daemon, home: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(MNEME)
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("MNEME_SOCKET", &daemon.socket)
        .output()
        .expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Everything below a folder, as paths from it.
fn paths(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let below = entries.flat_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let inner = paths(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")).collect::<Vec<_>>();
        if entry.path().is_dir() { inner } else { vec![name] }
    });
    below.collect()
}

#[test]
fn a_skill_moves_to_another_machine_and_serves_there_after_it_has_proved_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (file, adapter) = made(folder.path());
    // Small frames: it moves in many parts.
    let home = folder.path().join("here");
    let setup = setup(&home).set("server.frame_bytes_max=16KiB");
    let daemon = setup.start();
    let mut client = daemon.client();
    let path = file.display().to_string();
    let (code, out, err) = mneme(&daemon, folder.path(), &["evolve", "import", &path]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("serves nothing before it has passed a shadow here"), "{out}");
    let shown = client.ok("evolve.show", json!({"adapter": adapter}));
    assert_eq!((&shown["adapter"]["imported"], &shown["adapter"]["state"]), (&json!(true), &json!("superseded")));
    assert!(shown["lineage"].as_array().unwrap().len() > 20, "where it came from is kept");
    // None of these memories was ever here: that is no reason to take it for forgotten, after a restart neither.
    drop(client);
    assert!(daemon.stop().0.success());
    let daemon = setup.start();
    let mut client = daemon.client();
    assert_eq!(client.ok("evolve.status", json!({}))["adapters"][0]["state"], "superseded");
    let question = json!({"prompt": PROMPT, "tokens_max": 4});
    assert_eq!(client.ok("generate", question.clone())["adapters"], json!([]), "it serves nothing yet");
    let (code, out, err) = mneme(&daemon, folder.path(), &["evolve", "import", &path]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("it is here already"), "{out}");
    // The same person writes here: it is tried before anything is trained, and proves itself.
    for day in DIARY.lines().skip(160).take(20) {
        client.ok("memory.remember", serde_json::from_str(day).unwrap());
    }
    texts_in_view(&mut client, 20);
    client.ok("evolve.run", json!({}));
    eventually("it is tried", || entered(&mut client, "retrieve"));
    assert_eq!(client.ok("generate", question.clone())["adapters"], json!([]), "it is on trial");
    for day in DIARY.lines().skip(180) {
        client.ok("memory.remember", serde_json::from_str(day).unwrap());
    }
    eventually("it is committed", || entered(&mut client, "commit"));
    assert_eq!(client.ok("generate", question)["adapters"][0][0], adapter.as_str());
}

/// A skill's first line and the rest.
fn parts(skill: &[u8]) -> (Value, Vec<u8>) {
    let end = skill.iter().position(|byte| *byte == b'\n').expect("it has a line");
    (serde_json::from_slice(&skill[..end]).expect("the line is JSON"), skill[end + 1..].to_vec())
}

/// A skill whose card was changed and hashed again: a forger can do that.
fn forged(skill: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut line, rest) = parts(skill);
    let mut card: Value = serde_json::from_str(line["card"].as_str().expect("a card")).expect("it is JSON");
    change(&mut card);
    let card = card.to_string();
    line["hash"] = json!(ContentHash::of(card.as_bytes()));
    line["card"] = json!(card);
    [line.to_string().as_bytes(), b"\n", &rest].concat()
}

/// Sends a whole skill at once; the answer.
fn send(client: &mut Raw, skill: &[u8]) -> Value {
    let data = base64(skill);
    let hash = ContentHash::of(skill);
    client.call("evolve.import", json!({"hash": hash, "total": skill.len(), "offset": 0, "data": data}))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group =
        |group: &[u8]| {
            let bits =
                group.iter().enumerate().fold(0_u32, |bits, (place, byte)| bits | u32::from(*byte) << (16 - 8 * place));
            (0..4)
                .map(move |place| {
                    if place <= group.len() { char::from(SIGNS[(bits >> (18 - 6 * place)) as usize & 63]) } else { '=' }
                })
                .collect::<String>()
        };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn what_only_looks_like_a_skill_is_refused_in_words_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = made(folder.path());
    let skill = fs_err::read(&file).unwrap();
    let home = folder.path().join("here");
    let daemon = setup(&home).start();
    let mut client = daemon.client();
    let (line, rest) = parts(&skill);
    let mut flipped = skill.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let named = |name: &str| {
        let mut line = line.clone();
        line["file"] = json!(name);
        [line.to_string().as_bytes(), b"\n", &rest].concat()
    };
    let mut changed = line.clone();
    changed["card"] = json!(line["card"].as_str().unwrap().replacen("0.", "1.", 1));
    let changed = [changed.to_string().as_bytes(), b"\n", &rest].concat();
    let other_base = forged(&skill, |card| card["base_hash"] = json!(ContentHash::of(b"another base")));
    let unreadable = {
        let junk = vec![0xff; 64];
        let mut forged = forged(&skill, |card| {
            card["bytes"] = json!(junk.len());
            card["file_hash"] = json!(ContentHash::of(&junk));
        });
        forged.truncate(forged.iter().position(|byte| *byte == b'\n').unwrap() + 1);
        [forged, junk].concat()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no skill at all", b"hello".to_vec(), "card could not be read"),
        ("no line", vec![b'x'; 100_000], "card could not be read"),
        ("a damaged file", flipped, "hashes to"),
        ("a damaged card", changed, "card hashes to"),
        ("a file cut short", skill[..skill.len() - 1].to_vec(), "its card says"),
        ("a file that goes on", [&skill[..], b"more"].concat(), "its card says"),
        ("a path", named("../../../adapter.txt"), "a file name"),
        ("a file of the loop", named("job.json"), "a file name"),
        ("another base", other_base, "is bound to base"),
        ("a radius over everything", forged(&skill, |card| card["radius"] = json!(2.0)), "a radius"),
        ("a scale over 1", forged(&skill, |card| card["scale"] = json!(40.0)), "a scale"),
        ("a huge file that is claimed", forged(&skill, |card| card["bytes"] = json!(1_u64 << 60)), "a file"),
        ("another centre", forged(&skill, |card| card["centroid"] = json!([1.0, 0.0])), "dimensions"),
        ("no level", forged(&skill, |card| card["level"] = json!("composition")), "a level"),
        ("a file that the engine cannot read", unreadable, "cannot be used by the engine"),
    ];
    for (what, bytes, why) in cases {
        let answer = send(&mut client, &bytes);
        let message = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{what} was taken: {answer}"));
        assert!(message.contains(why), "{what}: {message}");
        assert_eq!(answer["error"]["data"]["kind"], "invalid_params", "{what}");
    }
    // The upload itself.
    let hash = ContentHash::of(b"x");
    let mut refused = |params: Value, why: &str| {
        let answer = client.call("evolve.import", params);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{why}: {answer}");
    };
    refused(json!({"hash": hash, "total": 1_u64 << 50, "offset": 0, "data": "eA=="}), "allowed are");
    refused(json!({"hash": hash, "total": 9, "offset": 5, "data": "eA=="}), "of this upload 0 bytes are here");
    refused(json!({"hash": hash, "total": 9, "offset": 9, "data": "eA=="}), "has 1 bytes at 9 of 9");
    refused(json!({"hash": hash, "total": 9, "offset": u64::MAX, "data": "eA=="}), "has 1 bytes at");
    refused(json!({"hash": hash, "total": 9, "offset": 0, "data": ""}), "has 0 bytes");
    refused(json!({"hash": hash, "total": 9, "offset": 0, "data": "%%"}), "not base64");
    refused(json!({"hash": "../x", "total": 9, "offset": 0, "data": "eA=="}), "hash is not");
    refused(json!({"hash": hash, "total": 1, "offset": 0, "data": "eQ=="}), "announced as");
    assert_eq!(client.kind("evolve.export", json!({"adapter": "00000000-0000-7000-8000-000000000000"})), "not_found");
    assert_eq!(paths(&home.join("state/adapters")), Vec::<String>::new(), "nothing is left of them");
    assert_eq!(client.ok("evolve.status", json!({}))["adapters"], json!([]));
    // After all that the real one is welcome.
    assert_eq!(send(&mut client, &skill)["result"]["received"], skill.len());
    assert!(!paths(&home.join("state/adapters")).is_empty());
}

#[test]
fn a_skill_made_of_a_forgotten_memory_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (file, adapter) = made(folder.path());
    let skill = fs_err::read(&file).unwrap();
    let daemon = setup(&folder.path().join("there")).start();
    let mut client = daemon.client();
    let learned = client.ok("evolve.show", json!({"adapter": adapter}))["lineage"][0].clone();
    client.ok("memory.forget", json!({"select": {"ids": [learned]}}));
    eventually("it is retired", || client.ok("evolve.status", json!({}))["adapters"][0]["state"] == "retired");
    assert!(
        client.call("evolve.export", json!({"adapter": adapter}))["error"]["message"]
            .as_str()
            .unwrap()
            .contains("retired")
    );
    assert!(send(&mut client, &skill)["error"]["message"].as_str().unwrap().contains("known already"));
    // Under another name neither.
    let renamed = forged(&skill, |card| card["adapter"] = json!("00000000-0000-7000-8000-000000000007"));
    let answer = send(&mut client, &renamed);
    assert!(answer["error"]["message"].as_str().unwrap().contains("learned a forgotten memory"), "{answer}");
}

#[test]
fn an_imported_adapter_can_be_retired_and_one_without_its_file_ends_its_trial() {
    let folder = tempfile::tempdir().unwrap();
    let (file, adapter) = made(folder.path());
    let skill = fs_err::read(&file).unwrap();
    let home = folder.path().join("here");
    let daemon = setup(&home).start();
    let mut client = daemon.client();
    diary(&mut client, 160..180);
    texts_in_view(&mut client, 20);
    assert!(send(&mut client, &skill)["result"]["adapter"].is_string());
    client.ok("evolve.run", json!({}));
    eventually("it is tried", || entered(&mut client, "retrieve"));
    let path = home.join("state/adapters").join(&adapter).join("adapter.txt");
    fs_err::remove_file(&path).unwrap();
    diary(&mut client, 180..190);
    eventually("its trial ends", || entered(&mut client, "reject"));
    // Its skill brings the file back; retired, it is gone with its folder.
    assert!(send(&mut client, &skill)["result"]["message"].as_str().unwrap().contains("its file is here again"));
    assert!(path.exists());
    let (code, out, err) = mneme(&daemon, folder.path(), &["evolve", "retire", &adapter]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(!path.exists());
    // The loop may have trained one of its own meanwhile.
    let status = client.ok("evolve.status", json!({}));
    let own = status["adapters"].as_array().unwrap().iter().find(|one| one["id"] == json!(adapter));
    assert_eq!(own.expect("it is listed")["state"], "retired", "{status}");
}
