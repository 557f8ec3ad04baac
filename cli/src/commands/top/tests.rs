//! What a person sees, drawn into memory.

use std::collections::BTreeMap;
use std::time::Instant;

use mneme_base::{AdapterId, BootId, Lsn, TaskId, Timestamp};
use mneme_ipc::types::{
    AdapterView, DecisionView, EvolveStatusResult, GenerateResult, ModeParam, StatsResult, StatusResult, TaskState,
    TaskView, UncertaintyView,
};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::state::Focus;
use super::watch::Look;
use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

fn look(boot: u8, recalls: u64, at: Instant) -> Look {
    let adapter = AdapterId::from_bytes([boot; 16]);
    Look {
        at: Some(at),
        status: StatusResult {
            server: "mnemed 0.1.0".into(),
            boot: BootId::from_bytes([boot; 16]),
            pid: 1,
            started_at: NOW,
            health: "healthy".into(),
            rss_bytes: 30 << 20,
            connections: 3,
            requests: BTreeMap::from([("memory.recall".into(), recalls), ("ping".into(), 7)]),
            errors: BTreeMap::new(),
            lsn: Lsn(42),
            memories: 336,
            engine: "fake/1\u{1b}[2J".into(),
            engine_restarts: 2,
            actors: Vec::new(),
            state_dir: "state".into(),
        },
        memory: StatsResult {
            engine: "redb".into(),
            memories: 336,
            quarantined: 4,
            superseded: 5,
            purge_pending: 6,
            embeddings_pending: 0,
            namespaces: vec![("diary".parse().unwrap(), 300), ("default".parse().unwrap(), 36)],
            lsn: Lsn(42),
            disk_bytes: 5 << 20,
            index_bytes: 1 << 20,
            health: "healthy".into(),
        },
        loop_now: EvolveStatusResult {
            state: "train".into(),
            paused: None,
            observed: 9,
            trained: 2,
            accepted: 1,
            rejected: 1,
            rolled_back: 0,
            texts_waiting: 12,
            adapters: vec![AdapterView {
                id: adapter,
                level: "lora".into(),
                state: "active".into(),
                pinned: true,
                created_at: NOW,
                memories: 160,
                imported: false,
                scores: BTreeMap::from([("gain_nats".into(), 0.27), ("gain_nats_lower".into(), 0.2)]),
            }],
            progress: Some(0.5),
        },
        decisions: vec![DecisionView {
            id: "1".into(),
            at: NOW,
            from: "propose".into(),
            to: "train".into(),
            adapter: Some(adapter),
            reason: "texts differ from what is expected".into(),
            numbers: BTreeMap::new(),
        }],
        tasks: vec![TaskView {
            task: TaskId::from_bytes([1; 16]),
            work: "generate".into(),
            state: TaskState::Succeeded,
            submitted_at: NOW,
            ended_at: Some(NOW),
            progress: 1.0,
            error: None,
            generation: Some(Box::new(GenerateResult {
                task: TaskId::from_bytes([1; 16]),
                text: "Up betimes".into(),
                fills: Vec::new(),
                tokens: Vec::new(),
                memories: Vec::new(),
                adapters: Vec::new(),
                uncertainty: UncertaintyView { confidence: 0.73, verdict: "suspect".into(), ..Default::default() },
                mode: ModeParam::Auto,
                steps: 4,
                acceptance: None,
                finish: "length".into(),
                engine: "fake".into(),
                degraded: Vec::new(),
                took_ms: 5,
            })),
        }],
    }
}

fn seen(looks: impl IntoIterator<Item = Look>) -> State {
    let mut state = State::new(Duration::from_secs(1));
    looks.into_iter().for_each(|look| state.see(Seen::Here(Box::new(look))));
    state
}

fn press(state: &mut State, code: KeyCode) -> Next {
    state.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn everything_that_matters_is_on_one_screen() {
    let start = Instant::now();
    let state = seen([look(1, 100, start), look(1, 150, start + Duration::from_secs(2))]);
    let text = as_text(&state, 120, 34);
    for words in [
        "● healthy",
        "25.0 requests/s",
        "memory.recall",
        "150",
        "memories      336",
        "diary",
        "73 %",
        "suspect",
        "Up betimes",
        "state         train",
        "50 %",
        "lora",
        "active pinned",
        "+0.270",
        "propose → train",
        "texts differ",
        "(2 restarts)",
    ] {
        assert!(text.contains(words), "{words:?} is missing in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "what a daemon says cannot move the cursor");
}

#[test]
fn every_size_is_drawn_and_the_first_line_stays() {
    let state = seen([look(1, 1, Instant::now())]);
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 12), (80, 24), (300, 90)] {
        let text = as_text(&state, width, height);
        assert!(width < 40 || text.starts_with(" mneme top   ● healthy"), "{width}x{height}:\n{text}");
    }
}

#[test]
fn a_daemon_that_goes_away_is_told_and_its_return_as_another_run_has_no_wrong_rate() {
    let start = Instant::now();
    let mut state = seen([look(1, 1_000, start)]);
    state.see(Seen::Away("daemon is not running at /run/x".into()));
    let text = as_text(&state, 100, 30);
    assert!(text.contains("● daemon is away") && text.contains("not running at /run/x"), "{text}");
    assert!(text.contains("memories      336"), "the last look stays:\n{text}");
    state.see(Seen::Here(Box::new(look(2, 5, start + Duration::from_secs(3)))));
    let text = as_text(&state, 100, 30);
    assert!(text.contains("● healthy") && text.contains("0.0 requests/s"), "{text}");
    let never = State::new(Duration::from_secs(1));
    assert!(as_text(&never, 60, 10).contains("asking"));
}

#[test]
fn keys_move_freeze_help_and_end() {
    let mut state = seen([look(1, 1, Instant::now())]);
    assert_eq!(press(&mut state, KeyCode::Char('r')), Next::Ask);
    assert_eq!(press(&mut state, KeyCode::Down), Next::Go);
    press(&mut state, KeyCode::Down);
    assert_eq!(state.scroll, [1, 0, 0], "no further than the last row");
    press(&mut state, KeyCode::Tab);
    assert_eq!(state.focus, Focus::Adapters);
    press(&mut state, KeyCode::Char(' '));
    state.see(Seen::Here(Box::new(look(1, 999, Instant::now()))));
    assert!(
        as_text(&state, 100, 30).contains("frozen")
            && state.look.as_ref().unwrap().status.requests["memory.recall"] == 1
    );
    press(&mut state, KeyCode::Char('?'));
    assert!(as_text(&state, 100, 30).contains("this help"));
    assert_eq!(press(&mut state, KeyCode::Esc), Next::Go, "the first Esc closes the help");
    assert_eq!(press(&mut state, KeyCode::Char('q')), Next::End);
    assert_eq!(state.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::End);
}
