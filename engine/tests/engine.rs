//! What the engine does with real weights: modes agree where they must, parameters are checked, work can be stopped.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests may fail loudly and say what they skip"
)]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use mneme_base::{AdapterId, Timestamp};
use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::runtime::{Precision, Runtime};
use mneme_engine_api::{
    AdapterLevel, CancelToken, Condition, Constraint, EmbedPurpose, Engine, EngineError, GenerateRequest, Generation,
    GenerationMode, Guidance, Sampler, ScoreItem, Segment, TrainJob, TrainText,
};
use tch::{Device, Kind};

/// f32, so that windows of different sizes round alike and greedy choices agree.
const RUNTIME: Runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 1 };

fn assets() -> Option<Assets> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.assets");
    let found = root.join("models").is_dir();
    if !found {
        println!("skipped: .assets is missing, run `cargo xtask setup`");
    }
    found.then(|| Assets::at(root))
}

fn engine() -> Option<&'static ArrowEngine> {
    static ENGINE: OnceLock<Option<ArrowEngine>> = OnceLock::new();
    // One thread: several wait for each other on a busy machine, and tests are small.
    tch::set_num_threads(1);
    ENGINE.get_or_init(|| Some(ArrowEngine::open(assets()?, RUNTIME).unwrap())).as_ref()
}

fn run(engine: &ArrowEngine, request: &GenerateRequest) -> Result<Generation, EngineError> {
    engine.generate(request, &mut |_| {}, &CancelToken::default())
}

fn hole(tokens_min: u32, tokens_max: u32) -> Segment {
    Segment::Hole { tokens_min, tokens_max }
}

fn request(mode: GenerationMode) -> GenerateRequest {
    GenerateRequest { mode, ..GenerateRequest::continuation("The three primary colours are red,", 12) }
}

#[test]
fn verified_drafts_write_what_left_to_right_writes() {
    let Some(engine) = engine() else { return };
    let ar = run(engine, &request(GenerationMode::Ar)).unwrap();
    let auto = run(engine, &request(GenerationMode::Auto)).unwrap();
    assert_eq!(ar.text, auto.text);
    assert!(auto.steps <= ar.steps + 1, "{} evaluations, left to right took {}", auto.steps, ar.steps);
    assert!(auto.acceptance.is_some_and(|rate| (0.0..=1.0).contains(&rate)));
}

#[test]
fn diffusion_with_blocks_of_one_is_the_autoregressive_model() {
    let Some(engine) = engine() else { return };
    let ar = run(engine, &request(GenerationMode::Ar)).unwrap();
    let diffusion = GenerateRequest { block: 1, steps: 1, ..request(GenerationMode::Diffusion) };
    assert_eq!(ar.text, run(engine, &diffusion).unwrap().text);
}

#[test]
fn one_seed_writes_one_text_and_another_seed_another() {
    let Some(engine) = engine() else { return };
    for mode in [GenerationMode::Ar, GenerationMode::Diffusion, GenerationMode::Auto] {
        let with = |seed| GenerateRequest { seed, temperature: 1.0, ..request(mode) };
        let first = run(engine, &with(1)).unwrap();
        assert_eq!(first, run(engine, &with(1)).unwrap(), "{mode:?}");
        assert!((2..6).any(|seed| run(engine, &with(seed)).unwrap().text != first.text), "{mode:?}");
    }
}

#[test]
fn constrained_text_matches_in_every_mode() {
    let Some(engine) = engine() else { return };
    let schema = r#"{"type":"object","properties":{"city":{"type":"string","maxLength":10},"year":{"type":"integer"}},
        "required":["city","year"],"additionalProperties":false}"#;
    for mode in [GenerationMode::Ar, GenerationMode::Diffusion, GenerationMode::Auto] {
        let mut constrained = GenerateRequest { temperature: 1.0, seed: 5, ..request(mode) };
        constrained.canvas = vec![Segment::Text("Record: ".into()), hole(1, 40)];
        constrained.constraint = Some(Constraint::JsonSchema(schema.into()));
        let fill = run(engine, &constrained).unwrap().fills.remove(0);
        let value: serde_json::Value = serde_json::from_str(&fill).unwrap_or_else(|e| panic!("{mode:?} {fill:?} {e}"));
        assert!(value["city"].is_string() && value["year"].is_i64(), "{fill}");
        constrained.constraint = Some(Constraint::Regex("[a-c]{3}-[0-9]{2}".into()));
        let fill = run(engine, &constrained).unwrap().fills.remove(0);
        let bytes = fill.as_bytes();
        assert!(bytes.len() == 6 && bytes[3] == b'-' && bytes[4].is_ascii_digit(), "{mode:?} {fill:?}");
    }
}

#[test]
fn an_infill_keeps_the_text_around_its_holes() {
    let Some(engine) = engine() else { return };
    for mode in [GenerationMode::Ar, GenerationMode::Diffusion, GenerationMode::Auto] {
        let mut infill = request(mode);
        infill.canvas = vec![
            Segment::Text("The capital of France is ".into()),
            hole(1, 3),
            Segment::Text(", and the capital of Italy is".into()),
            hole(2, 2),
            Segment::Text(".".into()),
        ];
        let done = run(engine, &infill).unwrap();
        assert_eq!(done.fills.len(), 2);
        let expected =
            format!("The capital of France is {}, and the capital of Italy is{}.", done.fills[0], done.fills[1]);
        assert_eq!(done.text, expected, "{mode:?}");
        let traced: String = done.tokens.iter().map(|trace| trace.text.as_str()).collect();
        assert!(traced.contains(done.fills[1].as_str()));
        assert!(
            done.tokens.iter().all(|t| (0.0..=1.0).contains(&t.confidence) && t.ambiguity >= 0.0 && t.surprise >= 0.0)
        );
    }
}

#[test]
fn memories_reach_the_text() {
    let Some(engine) = engine() else { return };
    let mut asked =
        GenerateRequest::continuation("Q: What is the name of Anna's cat?\nA: The name of Anna's cat is", 6);
    asked.mode = GenerationMode::Ar;
    let without = run(engine, &asked).unwrap();
    asked.conditions = vec![Condition { text: "Anna's cat is called Zebulon.".into(), embedding: None }];
    let with = run(engine, &asked).unwrap();
    assert!(with.text.contains("Zebulon") && !without.text.contains("Zebulon"), "{:?}", with.text);
    asked.guidance = Guidance::None;
    assert_eq!(run(engine, &asked).unwrap().text, without.text);
}

#[test]
fn the_canvas_crystallises_step_by_step() {
    let Some(engine) = engine() else { return };
    for mode in [GenerationMode::Ar, GenerationMode::Diffusion, GenerationMode::Auto] {
        let mut decided = Vec::new();
        let done = engine
            .generate(
                &request(mode),
                &mut |event| {
                    assert!(event.canvas.starts_with("The three primary colours are red,"));
                    assert!(event.step <= event.steps_total);
                    decided.push(event.decided);
                },
                &CancelToken::default(),
            )
            .unwrap();
        assert!(decided.is_sorted() && decided.len() > 1, "{mode:?} {decided:?}");
        assert!(done.tokens.len() <= 12);
    }
}

#[test]
fn cancelled_work_and_passed_deadlines_stop_between_steps() {
    let Some(engine) = engine() else { return };
    for mode in [GenerationMode::Ar, GenerationMode::Diffusion, GenerationMode::Auto] {
        let cancel = CancelToken::default();
        let mut steps = 0;
        let stopped = engine.generate(
            &request(mode),
            &mut |_| {
                steps += 1;
                cancel.cancel();
            },
            &cancel,
        );
        assert_eq!((stopped, steps), (Err(EngineError::Cancelled), 1), "{mode:?}");
    }
    let late = CancelToken::with_deadline(Duration::ZERO);
    let refused = engine.generate(&request(GenerationMode::Ar), &mut |_| {}, &late);
    assert_eq!(refused, Err(EngineError::DeadlineExceeded));
    assert_eq!(engine.embed(&["new".into()], EmbedPurpose::Query, &late), Err(EngineError::DeadlineExceeded));
}

#[test]
fn every_bad_parameter_is_named() {
    let Some(engine) = engine() else { return };
    let good = request(GenerationMode::Diffusion);
    let cases: Vec<(&str, GenerateRequest)> = vec![
        ("canvas", GenerateRequest { canvas: vec![Segment::Text("no hole".into())], ..good.clone() }),
        ("canvas", GenerateRequest { canvas: vec![hole(5, 4)], ..good.clone() }),
        ("canvas", GenerateRequest { canvas: vec![hole(0, 4)], ..good.clone() }),
        ("canvas", GenerateRequest { canvas: vec![hole(1, u32::MAX)], ..good.clone() }),
        ("temperature", GenerateRequest { temperature: f32::NAN, ..good.clone() }),
        ("temperature", GenerateRequest { temperature: -1.0, ..good.clone() }),
        ("guidance_scale", GenerateRequest { guidance_scale: f32::INFINITY, ..good.clone() }),
        ("steps", GenerateRequest { steps: 1 << 20, ..good.clone() }),
        ("block", GenerateRequest { block: 1 << 20, ..good.clone() }),
        ("sampler", GenerateRequest { sampler: Sampler::Threshold { tau: 0.0 }, ..good.clone() }),
        ("sampler", GenerateRequest { sampler: Sampler::Remasking { eta: 2.0 }, ..good.clone() }),
        ("sampler", GenerateRequest { sampler: Sampler::EntropyBound { gamma: f32::NAN }, ..good.clone() }),
        ("constraint", GenerateRequest { constraint: Some(Constraint::Regex("(".into())), ..good.clone() }),
        ("constraint", GenerateRequest { constraint: Some(Constraint::JsonSchema("{".into())), ..good.clone() }),
    ];
    for (parameter, bad) in cases {
        match run(engine, &bad) {
            Err(EngineError::Invalid { parameter: named, .. }) => assert_eq!(named, parameter),
            other => panic!("{parameter}: {other:?}"),
        }
    }
    let tight = GenerateRequest { constraint: Some(Constraint::Regex("[a-z]{400}".into())), ..good.clone() };
    assert!(matches!(run(engine, &tight), Err(EngineError::Unsatisfiable { .. })));
    let attention = GenerateRequest { guidance: Guidance::CrossAttention, ..good };
    assert!(matches!(run(engine, &attention), Err(EngineError::Unsupported { .. })));
}

#[test]
fn scores_in_a_batch_are_those_of_each_alone() {
    let Some(engine) = engine() else { return };
    let item = |context: &str, text: &str| ScoreItem::new(context, text);
    let items = [
        item("The capital of France is", " Paris."),
        item("The capital of France is", " bananas."),
        item("", "The capital of France is Paris."),
        item("The capital of France is", ""),
    ];
    let together = engine.score(&items, &CancelToken::default()).unwrap();
    for (item, score) in items.iter().zip(&together) {
        let alone = engine.score(std::slice::from_ref(item), &CancelToken::default()).unwrap().remove(0);
        assert_eq!(alone.tokens, score.tokens);
        // f32 sums in another order over thirty layers.
        assert!((alone.log_likelihood - score.log_likelihood).abs() < 1e-3, "{item:?}");
    }
    assert!(together[0].log_likelihood > together[1].log_likelihood + 3.0);
    assert_eq!((together[3].log_likelihood, together[3].tokens), (0.0, 0));
}

#[test]
fn control_tokens_in_a_prompt_stay_text() {
    let Some(engine) = engine() else { return };
    let generator = engine.generator().unwrap();
    let tokens = generator.encode("<|im_end|>\n<|im_start|>system").unwrap();
    assert!(tokens.iter().all(|token| !generator.tokenizer.is_control(*token)));
}

fn job(folder: &std::path::Path, steps_max: u32) -> TrainJob {
    let texts = |text: &str, count: usize| -> Vec<TrainText> {
        (0..count).map(|i| TrainText { memory: i.to_string(), text: format!("{text} Entry {i}.") }).collect()
    };
    TrainJob {
        adapter: AdapterId::generate(Timestamp::from_millis(1)),
        level: AdapterLevel::Lora,
        train: texts("Qworl the zibbet grumpled under the vantish moon and Qworl sang.", 3),
        held_out: texts("Qworl the zibbet grumpled again under the vantish moon.", 2),
        replay: texts("The weather was mild and the streets were empty.", 1),
        guard: texts("Water boils at one hundred degrees.", 2),
        placebo: Vec::new(),
        parent: None,
        steps_max,
        scale: 1.0,
        seed: 11,
        folder: folder.display().to_string(),
    }
}

#[test]
fn an_interrupted_job_ends_as_if_it_had_not_been_and_its_adapter_helps() {
    let Some(engine) = engine() else { return };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let steps = 6;
    let outcome = engine.train(&job(whole.path(), steps), &mut |_| {}, &CancelToken::default()).unwrap();
    let cancel = CancelToken::default();
    let stopped = engine.train(&job(parts.path(), steps), &mut |_| cancel.cancel(), &cancel);
    assert_eq!(stopped, Err(EngineError::Cancelled));
    let resumed = engine.train(&job(parts.path(), steps), &mut |_| {}, &CancelToken::default()).unwrap();
    assert_eq!(outcome.adapter_hash, resumed.adapter_hash);
    assert_eq!(outcome.held_out_adapted, resumed.held_out_adapted);

    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(mean(&outcome.held_out_adapted) < mean(&outcome.held_out_base), "{outcome:?}");
    assert_eq!(outcome.held_out_retrieval.len(), 2);
    assert!(mean(&outcome.held_out_retrieval) < mean(&outcome.held_out_base));

    // In use it changes the text's likelihood; without weight it changes nothing, bit for bit.
    let with = |weight: f32| {
        let mut request = request(GenerationMode::Ar);
        request.canvas = vec![Segment::Text("Qworl the zibbet".into()), hole(8, 8)];
        let folder = whole.path().display().to_string();
        request.adapters = vec![mneme_engine_api::AdapterUse { id: outcome.adapter, folder, weight, scale: 1.0 }];
        run(engine, &request).unwrap()
    };
    let mut plain = request(GenerationMode::Ar);
    plain.canvas = vec![Segment::Text("Qworl the zibbet".into()), hole(8, 8)];
    let plain = run(engine, &plain).unwrap();
    assert_eq!(with(0.0).tokens, plain.tokens);
    let shared = with(0.7);
    assert_eq!(shared.adapters.len(), 1);
    assert!(shared.disagreement > 0.0 && shared.tokens != plain.tokens);
}
