//! `mneme-engine bench`: speed and memory on this machine, medians of repeated runs.

use std::time::Instant;

use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::generate::stream::Stream;
use mneme_engine::nn::visibility::Visibility;
use mneme_engine::runtime::Runtime;
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine as _, GenerateRequest, GenerationMode};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each measurement; the median is printed.
    #[arg(long, default_value_t = 9)]
    runs: usize,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Failure> {
    let opened = Instant::now();
    let engine = ArrowEngine::open(assets, runtime)?;
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
            let wanted = hidden.f_narrow(0, 0, rows as i64)?;
            std::hint::black_box(stream.logits(&wanted)?.f_double_value(&[0, 0])?);
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
    let request = GenerateRequest {
        mode: GenerationMode::Diffusion,
        steps: 4,
        block: 128,
        ..GenerateRequest::continuation(text, 128)
    };
    let ms = median(5, || {
        engine.generate(&request, &mut |_| {}, &CancelToken::default())?;
        Ok(())
    })?;
    println!("{:<44} {:>10.1} ms", "4 steps on a canvas of 128 tokens", ms);
    println!("{:<44} {:>10.1} MiB", "resident with both", resident_mib());
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
