//! `mneme-engine eval`: perplexity of a text in both modes, and the residuals that surprise is measured against.

use std::path::PathBuf;

use mneme_diffusion::random::seeded;
use mneme_diffusion::uncertainty::ResidualTableBuilder;
use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::nn::adapter::Adapter;
use mneme_engine::runtime::Runtime;
use mneme_engine::train::batch::{Batch, Noise};
use mneme_engine::train::judge;

/// Block sizes that are measured; at 1 the bound is the autoregressive loss itself.
const BLOCKS: [usize; 5] = [1, 2, 4, 8, 16];
/// Windows of one batch.
const BATCH_WINDOWS: usize = 4;
/// Block size that residuals are collected at, the default of continuations.
const RESIDUAL_BLOCK: usize = 8;
/// Bins of the residual table.
const RESIDUAL_BINS: usize = 8;
/// Two-sided 95% of a normal distribution.
const Z95: f64 = 1.96;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A UTF-8 text file.
    #[arg(long)]
    text: PathBuf,
    /// Tokens of one window.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows at most, from the start of the file.
    #[arg(long, default_value_t = 32)]
    windows: usize,
    /// Draws of masks for each window and block size.
    #[arg(long, default_value_t = 2)]
    draws: u64,
    /// Seed of the masks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also prints the expected residual for each mask rate.
    #[arg(long)]
    residuals: bool,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(arguments: &Arguments, assets: Assets, runtime: Runtime) -> Result<(), Failure> {
    if !(2..=2_048).contains(&arguments.window) {
        return Err(format!("window has {} tokens, allowed are 2 to 2048", arguments.window).into());
    }
    let engine = ArrowEngine::open(assets, runtime)?;
    let generator = engine.generator()?;
    let document = i64::from(generator.special.document);
    let tokens: Vec<i64> =
        generator.encode(&fs_err::read_to_string(&arguments.text)?)?.into_iter().map(i64::from).collect();
    let windows: Vec<Vec<i64>> = tokens
        .chunks(arguments.window - 1)
        .filter(|chunk| chunk.len() > 1)
        .take(arguments.windows)
        .map(|chunk| [&[document], chunk].concat())
        .collect();
    if windows.is_empty() {
        return Err("the text has fewer than two tokens".into());
    }
    let zero =
        generator.adapter_zero.as_ref().map(|zero| zero.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let adapters: Vec<&Adapter> = zero.as_deref().into_iter().collect();
    println!("{} windows of {} tokens, adapter zero: {}", windows.len(), arguments.window, zero.is_some());
    println!("{:<12} {:>12} {:>24}", "mode", "perplexity", "95% interval");
    let (mut causal, mut causal_residual, mut causal_tokens) = (Vec::new(), 0.0, 0.0);
    for window in &windows {
        let case = judge::Case { tokens: window.clone(), scored_from: 1 };
        let judged = judge::judge(&generator.backbone(), &adapters, &case)?;
        causal.push(f64::from(judged.mean()));
        causal_residual += judged.losses.iter().map(|loss| 1.0 - f64::from(-loss).exp()).sum::<f64>();
        causal_tokens += judged.losses.len() as f64;
    }
    print_row("ar", &causal);
    let draws = arguments.draws.max(1);
    let mut residuals = ResidualTableBuilder::new(RESIDUAL_BINS)?;
    for block in BLOCKS {
        let mut means = vec![0.0; windows.len()];
        // Windows of one batch get evenly spread mask rates, which halves the interval.
        for (number, group) in windows.chunks(BATCH_WINDOWS).enumerate() {
            for draw in 0..draws {
                // The same masks for every model that is measured with this seed.
                let mut rng = seeded(arguments.seed ^ (number as u64) << 20 ^ draw << 8 ^ block as u64);
                let backbone = generator.backbone();
                let texts: Vec<&[i64]> = group.iter().map(Vec::as_slice).collect();
                let batch = Batch::pack(&texts, backbone.config.mask_token, Noise::Blocks(&[block]), &mut rng);
                let losses = judge::masked(&backbone, &adapters, &batch)?;
                for (target, loss) in batch.masked.iter().zip(losses) {
                    let tokens = (texts[target.text].len() - 1) as f64;
                    means[number * BATCH_WINDOWS + target.text] +=
                        f64::from(target.weight) * f64::from(loss) / tokens / draws as f64;
                    if block == RESIDUAL_BLOCK {
                        let masked = batch.masked.iter().filter(|other| other.text == target.text).count();
                        residuals.add(masked as f32 / tokens as f32, 1.0 - (-loss).exp());
                    }
                }
            }
        }
        print_row(&format!("block {block}"), &means);
    }
    if arguments.residuals {
        let table = residuals.build()?;
        println!("expected residual left to right: {:.3}", causal_residual / causal_tokens);
        println!("expected residuals by mask rate, block 8: {:.3?}", Vec::<f32>::from(table));
    }
    Ok(())
}

/// Perplexity of the mean over windows, with a normal interval of the mean loss.
fn print_row(name: &str, losses: &[f64]) {
    let count = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / count;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let half = Z95 * (variance / count).sqrt();
    println!("{name:<12} {:>12.2} {:>11.2} .. {:<10.2}", mean.exp(), (mean - half).exp(), (mean + half).exp());
}
