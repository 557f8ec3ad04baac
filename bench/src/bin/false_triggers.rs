//! How often the loop is alarmed when nothing is wrong, and how soon when something is.
//!
//! `cargo xtask bench false_triggers [--engine PROGRAM] [--events N]`
//!
//! Three null streams: drawn surprise over twelve situations, 10,000 events each; real texts of many kinds, as the base
//! model reads them, in an order drawn once, of which it needs to adapt to none; and 10,000 draws from those. Then one
//! person's diary as a stream that does call for adaptation. Without an engine only the first is run.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mneme_base::Embedding;
use mneme_bench::streams::{Failure, base_texts, default_file, shared, streams};
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine as _, EngineProcess, ProcessOptions, ScoreItem};
use mneme_evolution::context::Contexts;
use mneme_evolution::policy::Policy;
use mneme_evolution::random::Random;
use mneme_evolution::trigger::{Advice, Trigger, split_conformal_rank};

/// Drawn streams.
const STREAMS: u64 = 100;
/// Events of a long stream.
const EVENTS: usize = 10_000;
/// Situations of a drawn stream.
const SITUATIONS: usize = 12;
/// Characters of a text.
const TEXT_CHARS: usize = 400;
/// Texts that calibrate, as many as the daemon has.
const CALIBRATION: usize = 30;
/// Texts of the diary until it gives up.
const DIARY: usize = 60;
const CALL_TEXTS: usize = 16;
const TIMEOUT: Duration = Duration::from_mins(10);

/// Counts false and true alarms.
#[derive(Debug, Parser)]
#[command(name = "false_triggers")]
struct Arguments {
    /// The engine's program; without it only drawn streams are run.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Real texts that need no adaptation.
    #[arg(long, default_value_t = 240)]
    events: usize,
    /// Seed of all draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn trigger(seed: u64) -> Trigger {
    let policy = Policy::default();
    let contexts = Contexts::new(policy.context_radius, policy.contexts_max);
    Trigger::new(policy.trigger_alpha, policy.ambiguous_p, contexts, seed)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let policy = Policy::default();
    let alarmed = (0..STREAMS).filter(|seed| drawn(arguments.seed.wrapping_mul(1_000) + seed) > 0).count();
    println!(
        "drawn surprise: {alarmed} of {STREAMS} streams of {EVENTS} events raised an alarm; allowed are {:.0}%",
        policy.trigger_alpha * 100.0
    );
    let n = arguments.events;
    if let Some(rank) = split_conformal_rank(n, 0.05, 0.95) {
        println!("a rate of at most 5% at 95% confidence allows {} triggers on {n} events", rank.saturating_sub(1));
    }
    let Some(program) = arguments.engine.clone() else { return Ok(()) };
    let options = ProcessOptions {
        arguments: vec!["--threads".into(), "1".into()],
        start_timeout: TIMEOUT,
        call_timeout: TIMEOUT,
        ..ProcessOptions::new(program)
    };
    let engine = EngineProcess::new(options);
    let mut texts: Vec<String> =
        base_texts(&shared("corpus/valid.jsonl.zst"), None, usize::MAX)?.iter().map(|text| cut(text)).collect();
    let mut random = Random::new(arguments.seed);
    for place in (1..texts.len()).rev() {
        texts.swap(place, random.below(place + 1));
    }
    texts.truncate(n + CALIBRATION);
    let read = read(&engine, &texts)?;
    let (calibration, events) = read.split_at(CALIBRATION.min(read.len()));
    let calibrated = || {
        let mut trigger = trigger(arguments.seed);
        trigger.calibrate_reading(&calibration.iter().map(|(surprise, _)| *surprise).collect::<Vec<_>>());
        trigger
    };
    if events.is_empty() {
        return Err("there are no texts beside those that calibrate".into());
    }
    let mut short = calibrated();
    let false_alarms = events.iter().filter(|(surprise, place)| alarm(&mut short, *surprise, place)).count();
    println!("real texts that need no adaptation: {false_alarms} triggers on {} events", events.len());
    let mut long = calibrated();
    let resampled = (0..EVENTS).filter(|_| {
        let (surprise, place) = &events[random.below(events.len())];
        alarm(&mut long, *surprise, place)
    });
    println!("{EVENTS} draws from them: {} triggers", resampled.count());
    let diary: Vec<String> = streams(&default_file())?.concat().iter().take(DIARY).map(|text| cut(text)).collect();
    let diary = self::read(&engine, &diary)?;
    let mut person = calibrated();
    let found = diary.iter().position(|(surprise, place)| alarm(&mut person, *surprise, place));
    let mean = |all: &[(f32, Embedding)]| all.iter().map(|(s, _)| f64::from(*s)).sum::<f64>() / all.len().max(1) as f64;
    println!(
        "a diary: mean residual {:.3} against {:.3} of the texts above; {}",
        mean(&diary),
        mean(&read),
        found.map_or_else(
            || format!("no alarm in {} entries", diary.len()),
            |entry| format!("alarm at entry {}", entry + 1)
        )
    );
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}

fn alarm(trigger: &mut Trigger, surprise: f32, place: &Embedding) -> bool {
    let (context, _) = trigger.assign(place, &BTreeSet::new());
    matches!(trigger.observe_reading(context, surprise), Advice::Evolve(_))
}

/// Alarms of a stream of answers whose surprise is drawn from one law everywhere.
fn drawn(seed: u64) -> usize {
    let mut trigger = trigger(seed);
    let mut random = Random::stream(seed, 77);
    let places: Vec<Embedding> = (0..SITUATIONS)
        .filter_map(|place| {
            let mut components = vec![0.0; SITUATIONS];
            components[place] = 1.0;
            Embedding::normalized(components).ok()
        })
        .collect();
    (0..EVENTS)
        .filter(|_| {
            let (context, _) = trigger.assign(&places[random.below(places.len())], &BTreeSet::new());
            let surprise = (0.3 * random.normal()).exp() as f32;
            matches!(trigger.observe(context, 1.0, surprise, false), Advice::Evolve(_))
        })
        .count()
}

/// What the base model makes of texts: mean residual of their tokens, as the daemon measures it, and their place.
fn read(engine: &EngineProcess, texts: &[String]) -> Result<Vec<(f32, Embedding)>, Failure> {
    let mut all = Vec::with_capacity(texts.len());
    for group in texts.chunks(CALL_TEXTS) {
        let cancel = CancelToken::with_deadline(TIMEOUT);
        let vectors = engine.embed(group, EmbedPurpose::Document, &cancel)?;
        let items: Vec<ScoreItem> =
            group.iter().map(|text| ScoreItem { detail: true, ..ScoreItem::new("", text) }).collect();
        for (outcome, vector) in engine.score(&items, &cancel)?.iter().zip(vectors) {
            let tokens = outcome.detail.get(4..).unwrap_or_default();
            if tokens.len() >= 12 {
                let sum: f32 = tokens.iter().map(|token| 1.0 - token.log_likelihood.exp()).sum();
                all.push((sum / tokens.len() as f32, vector));
            }
        }
    }
    Ok(all)
}
