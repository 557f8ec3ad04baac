//! The daemon's end against a real child process: what it answers, and what happens when it dies, hangs or talks garbage.

use std::sync::Arc;
use std::time::Duration;

use mneme_base::AdapterId;
use mneme_engine_api::{
    AdapterLevel, CancelToken, EmbedPurpose, Engine, EngineError, EngineInfo, EngineProcess, GenerateRequest,
    ProcessOptions, ScoreItem, TrainJob, TrainText,
};

fn process(fault: Option<&str>) -> EngineProcess {
    let mut options = ProcessOptions::new(env!("CARGO_BIN_EXE_mneme-engine-fake"));
    options.hang_grace = Duration::from_millis(100);
    options.environment = fault.map(|fault| ("FAKE_ENGINE_FAULT".into(), fault.into())).into_iter().collect();
    EngineProcess::new(options)
}

fn within(millis: u64) -> CancelToken {
    CancelToken::with_deadline(Duration::from_millis(millis))
}

#[test]
fn answers_over_the_socket_pair_as_in_process() {
    let process = process(None);
    let texts = vec![String::from("tea is at four")];
    let over_wire = process.embed(&texts, EmbedPurpose::Query, &CancelToken::default()).unwrap();
    let in_process =
        mneme_engine_api::FakeEngine::default().embed(&texts, EmbedPurpose::Query, &CancelToken::default()).unwrap();
    assert_eq!(over_wire, in_process);
    assert_eq!(process.info().name, "fake");
    let items = vec![ScoreItem::new("the tea", "is at four")];
    assert!(process.score(&items, &CancelToken::default()).unwrap()[0].log_likelihood < 0.0);
}

#[test]
fn streams_the_canvas_and_returns_the_generation() {
    let mut events = 0;
    let generation = process(None)
        .generate(&GenerateRequest::continuation("the tea", 5), &mut |_| events += 1, &CancelToken::default())
        .unwrap();
    assert_eq!(generation.tokens.len(), 5);
    assert_eq!(events, 5);
}

#[test]
fn a_parameter_error_crosses_the_wire_in_words() {
    let mut request = GenerateRequest::continuation("a", 5);
    request.temperature = 9.0;
    let error = process(None).generate(&request, &mut |_| {}, &CancelToken::default()).unwrap_err();
    assert_eq!(error.to_string(), "temperature is 9, allowed are 0 to 2");
}

#[test]
fn an_abort_costs_one_call_and_the_next_one_finds_a_new_process() {
    let process = process(Some("abort"));
    let error =
        process.generate(&GenerateRequest::continuation("a", 5), &mut |_| {}, &CancelToken::default()).unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert!(process.embed(&[String::from("x")], EmbedPurpose::Query, &CancelToken::default()).is_ok());
    assert_eq!(process.restarts(), 1);
}

#[test]
fn a_hang_is_answered_at_the_deadline_and_the_process_is_replaced() {
    let process = process(Some("hang"));
    process.ensure_started().unwrap();
    let first = process.pid();
    let error = process.generate(&GenerateRequest::continuation("a", 5), &mut |_| {}, &within(50)).unwrap_err();
    assert_eq!(error, EngineError::DeadlineExceeded);
    assert!(process.embed(&[String::from("x")], EmbedPurpose::Query, &CancelToken::default()).is_ok());
    assert_ne!(process.pid(), first);
}

#[test]
fn garbage_ends_the_connection_and_not_the_daemon() {
    let process = process(Some("garbage"));
    let error = process.generate(&GenerateRequest::continuation("a", 5), &mut |_| {}, &within(2_000)).unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    // The process is alive and nobody reads it any more: the next call must find a new one.
    assert!(process.embed(&[String::from("x")], EmbedPurpose::Query, &within(5_000)).is_ok());
}

#[test]
fn restarts_are_limited_and_the_reason_is_told() {
    let process = process(Some("abort"));
    let request = GenerateRequest::continuation("a", 5);
    let mut last = None;
    for _ in 0..8 {
        last = process.generate(&request, &mut |_| {}, &CancelToken::default()).err();
    }
    let text = last.expect("every call fails").to_string();
    assert!(text.contains("was started 5 times") && text.contains("last failure"), "{text}");
}

#[test]
fn a_program_that_is_no_engine_is_recognised() {
    let process = EngineProcess::new(ProcessOptions::new("/bin/cat"));
    assert!(matches!(process.ensure_started(), Err(EngineError::Unavailable { .. })));
    let missing = EngineProcess::new(ProcessOptions::new("/nonexistent/engine"));
    assert!(matches!(missing.ensure_started(), Err(EngineError::Unavailable { .. })));
}

/// What a thread comes to, within a time: a hang is a failure.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("it hangs")
}

#[test]
fn an_engine_that_takes_long_to_start_holds_up_nobody_who_only_asks_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (program, started, go) =
        (folder.path().join("engine"), folder.path().join("started"), folder.path().join("go"));
    let script = format!("#!/bin/sh\ntouch {started:?}\nwhile [ ! -e {go:?} ]; do sleep 0.02; done\n");
    fs_err::write(&program, script).unwrap();
    fs_err::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let process = Arc::new(EngineProcess::new(ProcessOptions::new(program)));
    let starter = Arc::clone(&process);
    let starting = std::thread::spawn(move || starter.ensure_started());
    eventually(|| started.exists().then_some(()));
    let asked = Arc::clone(&process);
    assert_eq!(in_time(move || (asked.info().name, asked.pid())), (EngineInfo::unknown().name, None));
    let called = Arc::clone(&process);
    let result = in_time(move || called.score(&[ScoreItem::new("", "tea")], &within(50)));
    assert_eq!(result, Err(EngineError::DeadlineExceeded), "it waits no longer than its caller");
    fs_err::write(go, "").unwrap();
    assert!(matches!(starting.join().unwrap(), Err(EngineError::Unavailable { .. })), "it was no engine after all");
}

#[test]
fn an_engine_that_reads_nothing_is_replaced_and_its_writer_does_not_wait_for_ever() {
    let process = process(None);
    process.ensure_started().unwrap();
    let first = process.pid().unwrap();
    let pid = rustix::process::Pid::from_raw(first as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // More than the socket holds.
    let texts = vec!["tea ".repeat(1 << 20)];
    let (again, result) = in_time(move || {
        let result = process.embed(&texts, EmbedPurpose::Query, &CancelToken::default());
        (process.pid(), result)
    });
    assert!(result.is_ok(), "{result:?}");
    assert_ne!(again, Some(first));
}

#[test]
fn a_cancelled_call_ends_and_leaves_the_process_alive() {
    let process = process(None);
    process.ensure_started().unwrap();
    let pid = process.pid();
    let token = CancelToken::default();
    let mut observe = |_| token.cancel();
    let result = process.generate(&GenerateRequest::continuation("a", 2_000), &mut observe, &token.clone());
    assert!(matches!(result, Err(EngineError::Cancelled)), "it went on to its end");
    assert_eq!(process.pid(), pid);
}

fn job(folder: &std::path::Path) -> TrainJob {
    let text = |text: &str| TrainText { memory: "m".into(), text: text.into() };
    TrainJob {
        adapter: AdapterId::from_bytes([2; 16]),
        level: AdapterLevel::Lora,
        train: vec![text("up betimes and to the office"), text("up betimes and to the office all the morning")],
        held_out: vec![text("up betimes and to the office")],
        replay: vec![],
        guard: vec![text("the tea is at four")],
        placebo: vec![],
        parent: None,
        steps_max: 2,
        scale: 1.0,
        seed: 0,
        folder: folder.join("job").display().to_string(),
    }
}

/// The state of a process as the kernel says it: R, S, T and so on.
fn state(pid: u32) -> Option<char> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim().chars().next()
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(std::time::Instant::now() < until, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_trainer_stands_still_while_a_call_is_served_and_goes_on_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = ProcessOptions::new(env!("CARGO_BIN_EXE_mneme-engine-fake"));
    options.environment = vec![("FAKE_ENGINE_STEP_MS".into(), "50".into())];
    let process = EngineProcess::new(options);
    let mut job = job(folder.path());
    job.train = vec![job.train[0].clone(); 40];
    std::thread::scope(|scope| {
        let training = scope.spawn(|| process.train(&job, &mut |_| {}, &CancelToken::default()));
        let pid = eventually(|| process.trainer_pid());
        process.score(&[ScoreItem::new("", "the tea is at four")], &within(10_000)).unwrap();
        assert_ne!(state(pid), Some('T'), "nobody waits for a score");
        process.generate(&GenerateRequest::continuation("the tea", 2), &mut |_| {}, &within(10_000)).unwrap();
        assert_eq!(state(pid), Some('T'), "it was stopped when the call came");
        let outcome = training.join().unwrap().unwrap();
        assert!(outcome.held_out_adapted[0] < outcome.held_out_base[0]);
    });
}

#[test]
fn a_trainer_that_stands_still_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = ProcessOptions::new(env!("CARGO_BIN_EXE_mneme-engine-fake"));
    options.environment = vec![("FAKE_ENGINE_STEP_MS".into(), "20000".into())];
    let process = EngineProcess::new(options);
    let job = job(folder.path());
    let cancel = CancelToken::default();
    std::thread::scope(|scope| {
        let training = scope.spawn(|| process.train(&job, &mut |_| {}, &cancel));
        let pid = eventually(|| process.trainer_pid());
        process.generate(&GenerateRequest::continuation("the tea", 2), &mut |_| {}, &within(10_000)).unwrap();
        cancel.cancel();
        assert_eq!(training.join().unwrap(), Err(EngineError::Cancelled));
        assert_eq!(state(pid), None, "it is gone");
    });
}

#[test]
fn trains_in_a_process_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let process = process(None);
    let mut events = 0;
    let outcome = process.train(&job, &mut |_| events += 1, &CancelToken::default()).unwrap();
    assert_eq!(events, 2);
    assert!(outcome.held_out_adapted[0] < outcome.held_out_base[0]);
    assert_eq!(process.trainer_pid(), None);
    // What it was judged and guarded on is forgotten in the store alone, so it must not lie beside the adapter. (This engine's
    // adapters are the texts that they learned.)
    assert!(!std::path::Path::new(&job.folder).join("job.json").exists());
    for entry in fs_err::read_dir(&job.folder).unwrap() {
        let text = String::from_utf8_lossy(&fs_err::read(entry.unwrap().path()).unwrap()).into_owned();
        assert!(!text.contains("the tea is at four"), "{text}");
    }
    // A kill before the outcome was taken over costs no second training; another job does.
    let again = process.train(&job, &mut |_| panic!("it was trained already"), &CancelToken::default()).unwrap();
    assert_eq!(again, outcome);
    let other = TrainJob { seed: 1, ..job };
    let mut begun = false;
    process.train(&other, &mut |_| begun = true, &CancelToken::default()).unwrap();
    assert!(begun);
}
