//! `mneme-engine train`: one job in a process of its own, at the lowest priority; `train base` adapts the base model itself.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use mneme_engine::ArrowEngine;
use mneme_engine::adapter_file;
use mneme_engine::assets::Assets;
use mneme_engine::generator::Generator;
use mneme_engine::runtime::Runtime;
use mneme_engine::train::base::{self, Course, Plan, Task};
use mneme_engine::train::corpus::Corpus;
use mneme_engine::train::segments::Mix;
use mneme_engine_api::trainer::OUTCOME_FILE;
use mneme_engine_api::{CancelToken, Engine as _, TrainEvent, TrainJob};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The kernel gives a trainer what nobody else wants.
const NICE: i32 = 19;

/// Steps in which the rate rises.
const WARM_UP: u32 = 20;

/// What to train.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The job as JSON.
    job: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Turns the base model into a masked-diffusion model. SIGTERM makes it write a checkpoint and leave; the same command goes on
    /// from there, on another machine too.
    Base(Base),
}

#[derive(Debug, clap::Args)]
struct Base {
    /// Text to learn: JSON lines of `source` and `text`, plain or zstd.
    #[arg(long)]
    corpus: PathBuf,
    /// Text to measure on the way; never learnt.
    #[arg(long)]
    held_out: PathBuf,
    /// A source to leave out; may be given several times.
    #[arg(long)]
    leave_out: Vec<String>,
    /// Folder of adapter, checkpoint and learning curve.
    #[arg(long)]
    out: PathBuf,
    /// Steps in all.
    #[arg(long, default_value_t = 2_000)]
    steps: u32,
    /// The rate falls over the last so many steps.
    #[arg(long, default_value_t = 0)]
    cool_down: u32,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 32)]
    rank: i64,
    /// Top of the learning rate.
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Texts of one step.
    #[arg(long, default_value_t = 1)]
    texts: usize,
    /// Tokens of a text.
    #[arg(long, default_value_t = 256)]
    text_tokens: usize,
    /// Undecided rows for each text.
    #[arg(long, default_value_t = 448)]
    rows: usize,
    /// Share of the target that the base teaches.
    #[arg(long, default_value_t = 0.5)]
    teaching: f64,
    /// Learns to do two steps of the adapter in this folder in one, on holes, instead of learning the text.
    #[arg(long)]
    distil_from: Option<PathBuf>,
    /// Learns to write holes left to right with the text after them in view, instead of unmasking.
    #[arg(long, conflicts_with = "distil_from")]
    middles: bool,
    /// Steps between two checkpoints.
    #[arg(long, default_value_t = 50)]
    checkpoint_every: u32,
    /// Steps between two looks at held-out text.
    #[arg(long, default_value_t = 100)]
    look_every: u32,
    /// Windows of held-out text that are looked at.
    #[arg(long, default_value_t = 16)]
    look_windows: usize,
    /// Seed of all draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Failure> {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "trainer keeps its priority");
    }
    let cancel = CancelToken::default();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let stop = cancel.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop.cancel();
        }
    })?;
    match (&arguments.what, &arguments.job) {
        (Some(What::Base(arguments)), _) => adapt(arguments, &assets, runtime, &cancel),
        (None, Some(job)) => learn(job, assets, runtime, &cancel),
        (None, None) => Err("name a job".into()),
    }
}

fn learn(path: &Path, assets: Assets, runtime: Runtime, cancel: &CancelToken) -> Result<(), Failure> {
    let job: TrainJob = serde_json::from_slice(&fs_err::read(path)?)?;
    let mut out = std::io::stdout().lock();
    let mut observe = |event: TrainEvent| {
        // A reader that is gone does not stop the training.
        if let Ok(line) = serde_json::to_string(&event) {
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
        }
    };
    let outcome = ArrowEngine::open(assets, runtime)?.train(&job, &mut observe, cancel)?;
    let folder = Path::new(&job.folder);
    let temporary = folder.join("outcome.tmp");
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&outcome)?)?;
    file.sync_all()?;
    Ok(fs_err::rename(&temporary, folder.join(OUTCOME_FILE))?)
}

fn adapt(arguments: &Base, assets: &Assets, runtime: Runtime, cancel: &CancelToken) -> Result<(), Failure> {
    let within = |name: &str, value: f64, range: std::ops::RangeInclusive<f64>| -> Result<(), Failure> {
        let problem = || format!("{name} is {value}, allowed is {} to {}", range.start(), range.end());
        if range.contains(&value) { Ok(()) } else { Err(problem().into()) }
    };
    within("--rank", arguments.rank as f64, 1.0..=64.0)?;
    within("--rate", arguments.rate, 1e-7..=1.0)?;
    within("--texts", arguments.texts as f64, 1.0..=1_024.0)?;
    within("--text-tokens", arguments.text_tokens as f64, 64.0..=2_048.0)?;
    within("--rows", arguments.rows as f64, 1.0..=8_192.0)?;
    within("--teaching", arguments.teaching, 0.0..=1.0)?;
    within("--checkpoint-every", f64::from(arguments.checkpoint_every), 1.0..=1e9)?;
    within("--look-every", f64::from(arguments.look_every), 1.0..=1e9)?;
    let corpus = Corpus::open(&arguments.corpus, &arguments.leave_out)?;
    let held_out = Corpus::open(&arguments.held_out, &arguments.leave_out)?;
    for (source, bytes) in &corpus.sources {
        println!("{source:<28} {:>8.1} MB", *bytes as f64 / 1e6);
    }
    let assets = assets.clone().unadapted();
    let generator = Generator::load(&assets, Generator::hashes(&assets)?, runtime)?;
    let (teacher, hash, task) = match &arguments.distil_from {
        None if arguments.middles => (None, None, Task::Middles),
        None => (None, None, Task::Unmasking(Mix::default())),
        Some(folder) => {
            let config = generator.backbone().config.clone();
            let teacher = adapter_file::read(folder, &config, generator.base_hash, runtime.device)?;
            let holes = Mix { blocks: 0.0, drafts: 0.0, infills: 1.0 };
            (Some(teacher), adapter_file::hash(folder)?, Task::Unmasking(holes))
        }
    };
    let plan = Plan {
        rank: arguments.rank,
        texts: arguments.texts,
        text_tokens: arguments.text_tokens,
        rows: arguments.rows,
        task,
        teaching: arguments.teaching,
        seed: arguments.seed,
        teacher: hash,
    };
    let course = Course {
        rate: arguments.rate,
        warm_up: WARM_UP,
        folder: arguments.out.clone(),
        steps: arguments.steps,
        cool_down: arguments.cool_down,
        checkpoint_every: arguments.checkpoint_every,
        look_every: arguments.look_every,
        look_windows: arguments.look_windows,
    };
    let used = base::run(&generator, &corpus, &held_out, &plan, teacher, &course, cancel)?;
    println!(
        "{} steps, {} clean tokens, {} undecided rows, {} guesses, {:.0} CPU seconds in {:.0} s",
        used.step, used.clean_tokens, used.rows, used.guesses, used.cpu_seconds, used.seconds
    );
    Ok(())
}
