//! `mneme-engine bench`: speed and memory on this machine, medians of repeated runs.

mod serve;

use std::time::Instant;

use mneme_diffusion::random::seeded;
use mneme_diffusion::sampler::{Blocks, Canvas, DiscreteSampler, LogitRows, Pacing, Piece, SamplerConfig};
use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::generate::stream::Stream;
use mneme_engine::nn::backbone::{Additions, BackboneConfig, Window};
use mneme_engine::nn::visibility::Visibility;
use mneme_engine::runtime::Runtime;
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine as _, GenerateRequest, GenerationMode, Segment};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each measurement; the median is printed.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Takes calls as JSON lines on standard input and answers with their times.
    #[arg(long)]
    serve: bool,
    /// Also measures a network of random weights in the shape of a model of 350 million parameters.
    #[arg(long)]
    random: bool,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Failure> {
    let opened = Instant::now();
    let engine = ArrowEngine::open(assets, runtime)?;
    if arguments.serve {
        return serve::serve(&engine);
    }
    println!(
        "threads {}, compute {:?}, weights {:?}, device {:?}",
        runtime.threads, runtime.compute, runtime.precision, runtime.device
    );
    println!("{:<44} {:>10.1} ms", "open (embedder, base hash)", opened.elapsed().as_secs_f64() * 1e3);
    embedding(&engine, arguments.runs)?;
    println!("{:<44} {:>10.1} MiB", "resident with the embedder", resident_mib());
    let loaded = Instant::now();
    let generator = engine.generator()?;
    println!("{:<44} {:>10.1} ms", "load the generator", loaded.elapsed().as_secs_f64() * 1e3);
    let steps = |tokens: usize, rows: usize| -> Result<f64, Failure> {
        let mut stream = Stream::new(&generator, Vec::new(), 600)?;
        stream.feed(&[0, 1, 2, 3], &mut || Ok(()))?;
        let window: Vec<u32> = (0..tokens as u32).map(|i| 100 + i * 7).collect();
        median(arguments.runs, || {
            let hidden = stream.peek(&window, Visibility::All)?;
            std::hint::black_box(stream.logit_rows(&hidden.f_narrow(0, 0, rows as i64)?)?);
            Ok(())
        })
    };
    for (tokens, rows) in [(1, 1), (4, 4), (8, 8), (32, 32), (64, 64), (128, 128), (128, 32), (512, 1)] {
        let name = format!("evaluation of {tokens} tokens, {rows} rows of logits");
        println!("{name:<44} {:>10.2} ms", steps(tokens, rows)?);
    }
    let text = "The lighthouse keeper wrote a letter to his sister every week, and ";
    for (mode, name) in
        [(GenerationMode::Ar, "ar"), (GenerationMode::Auto, "auto"), (GenerationMode::Diffusion, "diffusion")]
    {
        let request = GenerateRequest { mode, ..GenerateRequest::continuation(text, 64) };
        let mut tokens = 0;
        let ms = median(3, || {
            let done = engine.generate(&request, &mut |_| {}, &CancelToken::default())?;
            tokens = done.tokens.len();
            Ok(())
        })?;
        println!("{:<44} {:>10.1} tokens/s", format!("generate {tokens} tokens, {name}"), tokens as f64 / ms * 1e3);
    }
    // A hole of exactly this length: the text may not end early.
    let request = GenerateRequest {
        mode: GenerationMode::Diffusion,
        steps: 4,
        block: 128,
        canvas: vec![Segment::Text(text.into()), Segment::Hole { tokens_min: 128, tokens_max: 128 }],
        ..GenerateRequest::continuation(text, 128)
    };
    let ms = median(5, || {
        engine.generate(&request, &mut |_| {}, &CancelToken::default())?;
        Ok(())
    })?;
    println!("{:<44} {:>10.1} ms", "4 steps on a canvas of 128 tokens", ms);
    println!("{:<44} {:>10.1} MiB", "resident with both", resident_mib());
    if arguments.random {
        drop(generator);
        drop(engine);
        random(runtime, arguments.runs)?;
    }
    Ok(())
}

/// Four steps on a canvas of 64 tokens with random weights: 32 layers of 960, 15 heads with 5 for keys, 2,560 wide.
fn random(runtime: Runtime, runs: usize) -> Result<(), Failure> {
    const MASK: u32 = 16;
    let config = BackboneConfig {
        vocabulary: 49_152,
        hidden: 960,
        layers: 32,
        heads: 15,
        kv_heads: 5,
        head: 64,
        feed_forward: 2_560,
        gated: true,
        rope_theta: 1e5,
        norm_epsilon: 1e-5,
        positions: 2_048,
        shift: true,
        mask_token: i64::from(MASK),
    };
    let vocabulary = config.vocabulary as usize;
    let backbone = mneme_engine::load::random(config, runtime, 1)?;
    let ms = median(runs, || {
        let canvas = Canvas::new(&[Piece::Text(vec![0]), Piece::Hole(64)], MASK)?;
        let config =
            SamplerConfig { pacing: Pacing::Even, steps: 4, blocks: Blocks::Holes(64), ..SamplerConfig::default() };
        let mut sampler = DiscreteSampler::new(canvas, config)?;
        let mut rng = seeded(1);
        while !sampler.is_done() {
            let tokens: Vec<i64> = sampler.canvas().tokens().iter().map(|token| i64::from(*token)).collect();
            let positions: Vec<i64> = (0..tokens.len() as i64).collect();
            let window = Window { tokens: &tokens, positions: &positions, visibility: Visibility::All };
            let hidden = backbone.hidden(&window, None, Additions::default())?;
            let wanted = sampler.wanted();
            let index: Vec<i64> = wanted.iter().map(|position| *position as i64 - 1).collect();
            let rows = backbone.logit_rows(&hidden.f_index_select(0, &tch::Tensor::f_from_slice(&index)?)?)?;
            sampler.step(&LogitRows::new(&wanted, vocabulary, &rows)?, &mut rng)?;
        }
        Ok(())
    })?;
    println!("{:<44} {:>10.1} ms", "64 tokens in 4 steps, random 350M shape", ms);
    Ok(())
}

fn embedding(engine: &ArrowEngine, runs: usize) -> Result<(), Failure> {
    let mut number = 0;
    // Each text is new, so that the cache does not answer.
    let mut text = |words: usize| {
        number += 1;
        format!("note {number} {}", "about the river and the bridge ".repeat(words / 6))
    };
    for (count, words, name) in
        [(1, 6, "embed one short text"), (1, 120, "embed one long text"), (64, 24, "embed 64 notes")]
    {
        let ms = median(runs, || {
            let texts: Vec<String> = (0..count).map(|_| text(words)).collect();
            engine.embed(&texts, EmbedPurpose::Document, &CancelToken::default())?;
            Ok(())
        })?;
        println!("{name:<44} {ms:>10.2} ms");
    }
    Ok(())
}

fn median(runs: usize, mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    work()?;
    let started_cpu = cpu_ms();
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    print!("{:>8.1} cpu-ms  ", (cpu_ms() - started_cpu) / times.len() as f64);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Resident memory of this process (MiB); 0 where the system does not say.
fn resident_mib() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

/// Processor time of this process so far (ms), in the kernel's ticks of 10 ms; tells work from waiting on a busy machine.
fn cpu_ms() -> f64 {
    let stat = fs_err::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) * 10.0
}
