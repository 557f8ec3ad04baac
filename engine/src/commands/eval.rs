//! `mneme-engine eval`: perplexity of texts in both modes, holes filled and drafts kept, each with its interval; and the residuals
//! that surprise is measured against.

use std::path::PathBuf;
use std::sync::PoisonError;

use mneme_diffusion::random::seeded;
use mneme_diffusion::uncertainty::ResidualTableBuilder;
use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::evaluate::perplexity::{self, Guessed, Row};
use mneme_engine::evaluate::writing::{self, Filled, Way};
use mneme_engine::generator::Generator;
use mneme_engine::nn::adapter::Adapter;
use mneme_engine::nn::backbone::Additions;
use mneme_engine::runtime::Runtime;
use mneme_engine::train::corpus::Corpus;
use mneme_engine_api::{CancelToken, GenerationMode};
use serde_json::json;

/// Block size that residuals are collected at, the default of continuations.
const RESIDUAL_BLOCK: usize = 8;
/// Bins of the residual table.
const RESIDUAL_BINS: usize = 8;
/// Tokens after a hole that the bound of holes is measured with.
const SUFFIX: usize = 32;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A UTF-8 text file, cut into windows from its start.
    #[arg(long, conflicts_with = "corpus", required_unless_present = "corpus")]
    text: Option<PathBuf>,
    /// A corpus as JSON lines of `source` and `text`, plain or zstd; windows are drawn from it.
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Tokens of one window.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows at most.
    #[arg(long, default_value_t = 32)]
    windows: usize,
    /// Draws of masks for each window and block size.
    #[arg(long, default_value_t = 2)]
    draws: u64,
    /// Block sizes of the bound; 0 is the whole window as one block.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,0")]
    blocks: Vec<usize>,
    /// Tokens of holes.
    #[arg(long, value_delimiter = ',', default_value = "8,16,32")]
    holes: Vec<usize>,
    /// Windows of which a hole of each length is written, in each way.
    #[arg(long, default_value_t = 0)]
    infill: usize,
    /// Diffusion steps that holes are also written in.
    #[arg(long, value_delimiter = ',', default_value = "4")]
    steps: Vec<u32>,
    /// Windows whose beginnings are continued with drafts.
    #[arg(long, default_value_t = 0)]
    accept: usize,
    /// Tokens of a draft.
    #[arg(long, default_value_t = 4)]
    draft: u32,
    /// Seed of all draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leaves adapter zero and the adapter of middles out.
    #[arg(long)]
    unadapted: bool,
    /// Takes the adapter of middles from this folder.
    #[arg(long, conflicts_with = "unadapted")]
    middle: Option<PathBuf>,
    /// Takes adapter zero from this folder, such as that of a run which is still going on.
    #[arg(long, conflicts_with = "unadapted")]
    adapter: Option<PathBuf>,
    /// Also prints the expected residual for each mask rate.
    #[arg(long)]
    residuals: bool,
    /// Also prints this many of the holes that were written, unedited.
    #[arg(long, default_value_t = 0)]
    samples: usize,
    /// Prints one JSON document instead of tables.
    #[arg(long)]
    json: bool,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Failure> {
    check(arguments)?;
    let mut assets = if arguments.unadapted { assets.unadapted() } else { assets };
    if let Some(folder) = &arguments.adapter {
        assets = assets.with_adapter_zero(folder);
    }
    if let Some(folder) = &arguments.middle {
        assets = assets.with_adapter_middle(folder);
    }
    let engine = ArrowEngine::open(assets, runtime)?;
    let generator = engine.generator()?;
    let windows = windows(arguments, &generator)?;
    let mut residuals = ResidualTableBuilder::new(RESIDUAL_BINS)?;
    let mut causal = Vec::new();
    let rows = bounds(arguments, &generator, &windows, &mut residuals, &mut causal)?;
    let cancel = CancelToken::default();
    let mut filled = Vec::new();
    for tokens in arguments.holes.iter().filter(|_| arguments.infill > 0) {
        let mut gaps = writing::gaps(&engine, &windows, *tokens, arguments.seed)?;
        gaps.truncate(arguments.infill);
        let ways = ways(&generator, &arguments.steps);
        let of_length = writing::fill(&engine, &gaps, &ways, arguments.seed, &cancel)?;
        for (number, gap) in gaps.iter().take(arguments.samples).enumerate() {
            println!("--- hole of {tokens}, sample {}\nbefore: {:?}\nafter: {:?}", number + 1, gap.before, gap.after);
            println!("{:<28} {:?}", "what stood there", gap.wanted);
            for way in &of_length {
                println!("{:<28} {:?}", way.name, way.texts.get(number).map_or("", String::as_str));
            }
        }
        filled.extend(of_length);
    }
    let mut kept = Vec::new();
    for (temperature, name) in [(0.0, "greedy"), (1.0, "temperature 1")].iter().filter(|_| arguments.accept > 0) {
        let texts = &windows[..windows.len().min(arguments.accept)];
        let rate = writing::acceptance(&engine, texts, arguments.draft, *temperature, arguments.seed, &cancel)?;
        kept.push((*name, rate));
    }
    if arguments.json {
        let document = json!({
            "windows": windows.len(), "window": arguments.window, "seed": arguments.seed, "draws": arguments.draws,
            "adapter_zero": generator.adapter_zero.is_some(), "perplexity": rows, "infill": filled, "kept": kept,
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let adapted = generator.adapter_zero.is_some();
    println!("{} windows of up to {} tokens, adapter zero: {adapted}", windows.len(), arguments.window);
    print_bounds(&rows);
    print_filled(&filled);
    for (name, rate) in kept {
        println!("drafted tokens kept, drafts of {}, {name}: {rate}", arguments.draft);
    }
    if arguments.residuals {
        let mean = causal.iter().map(|residual| f64::from(*residual)).sum::<f64>() / causal.len().max(1) as f64;
        println!("expected residual left to right: {mean:.3}");
        println!("expected residuals by mask rate, block 8: {:.3?}", Vec::<f32>::from(residuals.build()?));
    }
    Ok(())
}

fn check(arguments: &Arguments) -> Result<(), Failure> {
    if !(2..=2_048).contains(&arguments.window) {
        return Err(format!("window has {} tokens, allowed are 2 to 2048", arguments.window).into());
    }
    if arguments.holes.iter().any(|hole| !(1..=256).contains(hole)) {
        return Err("holes have 1 to 256 tokens".into());
    }
    if arguments.windows == 0 || arguments.draws == 0 {
        return Err("windows and draws are at least 1".into());
    }
    if !(2..=64).contains(&arguments.draft) {
        return Err(format!("draft has {} tokens, allowed are 2 to 64", arguments.draft).into());
    }
    Ok(())
}

fn windows(arguments: &Arguments, generator: &Generator) -> Result<Vec<Vec<i64>>, Failure> {
    if let Some(path) = &arguments.corpus {
        let corpus = Corpus::open(path, &[])?;
        let mut rng = seeded(arguments.seed);
        let draw = (0..arguments.windows).map(|_| corpus.window(generator, arguments.window, &mut rng));
        return Ok(draw.collect::<Result<_, _>>()?);
    }
    let path = arguments.text.as_ref().ok_or("name a text or a corpus")?;
    let document = i64::from(generator.special.document);
    let tokens: Vec<i64> = generator.encode(&fs_err::read_to_string(path)?)?.into_iter().map(i64::from).collect();
    let windows: Vec<Vec<i64>> = tokens
        .chunks(arguments.window - 1)
        .filter(|chunk| chunk.len() > 1)
        .take(arguments.windows)
        .map(|chunk| [&[document], chunk].concat())
        .collect();
    if windows.is_empty() {
        return Err("the text has fewer than two tokens".into());
    }
    Ok(windows)
}

fn bounds(
    arguments: &Arguments,
    generator: &Generator,
    windows: &[Vec<i64>],
    residuals: &mut ResidualTableBuilder,
    causal: &mut Vec<f32>,
) -> Result<Vec<Row>, Failure> {
    let shipped = generator.shipped();
    let held: Vec<_> = shipped.iter().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner)).collect();
    let adapters: Vec<&Adapter> = held.iter().map(|adapter| &**adapter).collect();
    let plan = perplexity::Plan {
        blocks: arguments.blocks.clone(),
        holes: arguments.holes.clone(),
        suffix: SUFFIX,
        draws: arguments.draws,
        seed: arguments.seed,
    };
    let mut observe = |block: Option<usize>, guessed: Guessed| {
        let residual = 1.0 - (-guessed.loss).exp();
        match block {
            None => causal.push(residual),
            Some(RESIDUAL_BLOCK) => residuals.add(guessed.mask_rate as f32, residual),
            Some(_) => {}
        }
    };
    Ok(perplexity::measure(generator, Additions::adapters(&adapters), windows, &plan, &mut observe)?)
}

/// Left to right with the text before the hole alone comes first: the others are compared with it.
fn ways(generator: &Generator, steps: &[u32]) -> Vec<Way> {
    let way = |name: &str, mode, steps, sees_after| Way { name: name.into(), mode, steps, sees_after };
    let mut ways = vec![
        way("left to right, text before", GenerationMode::Ar, 0, false),
        way("left to right, length by fit", GenerationMode::Ar, 0, true),
    ];
    if generator.adapter_zero.is_some() {
        ways.push(way("diffusion, half its length", GenerationMode::Diffusion, 0, true));
        for steps in steps {
            ways.push(way(&format!("diffusion, {steps} steps"), GenerationMode::Diffusion, *steps, true));
        }
    }
    if generator.adapter_middle.is_some() {
        ways.push(way("auto: left to right, both sides", GenerationMode::Auto, 0, true));
    }
    ways
}

fn print_bounds(rows: &[Row]) {
    println!("{:<28} {:>32} {:>28}", "perplexity", "95% interval", "over left to right");
    for row in rows {
        println!("{:<28} {:>32} {:>28}", row.name, row.perplexity.to_string(), row.against_first.to_string());
    }
}

fn print_filled(filled: &[Filled]) {
    if filled.is_empty() {
        return;
    }
    println!(
        "{:<8} {:<30} {:>24} {:>24} {:>26} {:>11}",
        "hole", "way", "exact match", "ROUGE-L", "gain over the first way", "evaluations"
    );
    for one in filled {
        let (exact, rouge, gain) = (one.exact.to_string(), one.rouge_l.to_string(), one.gain.to_string());
        println!("{:<8} {:<30} {exact:>24} {rouge:>24} {gain:>26} {:>11.1}", one.tokens, one.name, one.evaluations);
    }
}
