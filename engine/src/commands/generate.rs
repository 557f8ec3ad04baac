//! `mneme-engine generate`: one canvas from the command line.

use clap::ValueEnum;
use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::runtime::Runtime;
use mneme_engine_api::{CancelToken, Condition, Constraint, Engine as _, GenerateRequest, GenerationMode, Segment};

/// What to generate.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The text; `[[N]]` or `[[N..M]]` is a hole of so many tokens. Without a hole one of `--tokens` is put at the end.
    text: String,
    /// Length of the hole at the end.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// How tokens are decided.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// An instruction in chat form.
    #[arg(long)]
    instruction: Option<String>,
    /// A memory that guides; may be given several times.
    #[arg(long = "memory")]
    memories: Vec<String>,
    /// Classifier-free guidance.
    #[arg(long, default_value_t = 0.0)]
    guidance_scale: f32,
    /// The hole must match this regular expression.
    #[arg(long)]
    regex: Option<String>,
    /// The hole must be JSON of this schema.
    #[arg(long)]
    json_schema: Option<String>,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of all draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Diffusion steps for each block; 0 lets the engine choose.
    #[arg(long, default_value_t = 0)]
    steps: u32,
    /// Tokens of a block; 0 lets the engine choose.
    #[arg(long, default_value_t = 0)]
    block: u32,
    /// Shows the canvas after each step.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Ar,
    Diffusion,
    Auto,
}

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Box<dyn std::error::Error>> {
    let engine = ArrowEngine::open(assets, runtime)?;
    let constraint = match (&arguments.regex, &arguments.json_schema) {
        (Some(pattern), _) => Some(Constraint::Regex(pattern.clone())),
        (None, Some(schema)) => Some(Constraint::JsonSchema(schema.clone())),
        (None, None) => None,
    };
    let request = GenerateRequest {
        canvas: canvas(&arguments.text, arguments.tokens)?,
        instruction: arguments.instruction.clone(),
        conditions: arguments.memories.iter().map(|text| Condition { text: text.clone(), embedding: None }).collect(),
        guidance_scale: arguments.guidance_scale,
        constraint,
        mode: match arguments.mode {
            Mode::Ar => GenerationMode::Ar,
            Mode::Diffusion => GenerationMode::Diffusion,
            Mode::Auto => GenerationMode::Auto,
        },
        temperature: arguments.temperature,
        seed: arguments.seed,
        steps: arguments.steps,
        block: arguments.block,
        ..GenerateRequest::continuation("", 1)
    };
    let mut observe = |event: mneme_engine_api::CanvasEvent| {
        if arguments.watch {
            println!("{:>4}/{:<4} {}", event.step, event.steps_total, event.canvas.replace('\n', "⏎"));
        }
    };
    let started = std::time::Instant::now();
    let generation = engine.generate(&request, &mut observe, &CancelToken::default())?;
    println!("{}", generation.text);
    eprintln!(
        "{} tokens, {} evaluations, {:.0} ms with loading, acceptance {:?}, finish {}",
        generation.tokens.len(),
        generation.steps,
        started.elapsed().as_secs_f64() * 1e3,
        generation.acceptance,
        generation.finish
    );
    Ok(())
}

/// Reads holes such as `[[8]]` and `[[4..16]]` out of a text.
fn canvas(text: &str, tokens: u32) -> Result<Vec<Segment>, String> {
    let mut segments = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[[") {
        let (inside, after) = after.split_once("]]").ok_or("a hole is not closed with ]]")?;
        let (min, max) = inside.split_once("..").unwrap_or((inside, inside));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|error| format!("hole {inside:?}: {error}"));
        segments.push(Segment::Text(before.to_owned()));
        segments.push(Segment::Hole { tokens_min: number(min)?, tokens_max: number(max)? });
        rest = after;
    }
    segments.push(Segment::Text(rest.to_owned()));
    if segments.len() == 1 {
        segments.push(Segment::Hole { tokens_min: 1, tokens_max: tokens });
    }
    Ok(segments.into_iter().filter(|segment| !matches!(segment, Segment::Text(text) if text.is_empty())).collect())
}
