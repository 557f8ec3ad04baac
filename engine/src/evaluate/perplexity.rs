//! Perplexity left to right, and its bound by diffusion for each block size.

use mneme_diffusion::random::{below, seeded};

use crate::error::Result;
use crate::evaluate::interval::{Estimate, ratio};
use crate::generator::Generator;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::Additions;
use crate::train::judge;
use crate::train::objective::{Clean, losses};
use crate::train::segments::{Middles, Segments};

/// One row of a table.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Perplexity with its interval over texts.
    pub perplexity: Estimate,
    /// Over that of the first row, paired by text: `exp` of the mean difference of losses.
    pub against_first: Estimate,
    /// Nats and tokens of each text.
    #[serde(skip)]
    pub texts: Vec<(f64, f64)>,
}

/// A guess of an evaluation by blocks: what the residual tables are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guessed {
    /// Share of the segment that was masked.
    pub mask_rate: f64,
    /// Loss (nats).
    pub loss: f32,
}

/// What to measure on texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Block sizes; 0 is the whole text as one block.
    pub blocks: Vec<usize>,
    /// Lengths of holes with text after them; the bound of their tokens.
    pub holes: Vec<usize>,
    /// Tokens after a hole that are shown.
    pub suffix: usize,
    /// Draws of masks for each text.
    pub draws: u64,
    /// Seed of all draws.
    pub seed: u64,
}

/// Measures texts of tokens, the document token first. The first row is the causal mode; a hole has a row for the causal mode on the
/// same tokens with the text before them, one for the bound of unmasking it with both sides in view, and one for writing it left to
/// right with both sides in view, which is exact. `observe` sees the guesses of each block size; those
/// of the causal mode have none.
pub fn measure(
    generator: &Generator,
    additions: Additions<'_>,
    texts: &[Vec<i64>],
    plan: &Plan,
    observe: &mut dyn FnMut(Option<usize>, Guessed),
) -> Result<Vec<Row>> {
    let backbone = generator.backbone();
    let mask = backbone.config.mask_token;
    let everywhere: Vec<&Adapter> = additions.adapters.to_vec();
    let mut causal = Vec::new();
    let mut blocks = vec![Vec::new(); plan.blocks.len()];
    let mut holes = vec![(Vec::new(), Vec::new(), Vec::new()); plan.holes.len()];
    for (number, text) in texts.iter().enumerate() {
        let case = judge::Case { tokens: text.clone(), scored_from: 1 };
        let judged = judge::judge(&backbone, &everywhere, &case)?.losses;
        judged.iter().for_each(|loss| observe(None, Guessed { mask_rate: 0.0, loss: *loss }));
        causal.push((judged.iter().map(|loss| f64::from(*loss)).sum(), judged.len() as f64));
        let mut clean = Clean::read(&backbone, additions, text)?;
        for (block, rows) in plan.blocks.iter().zip(&mut blocks) {
            let size = if *block == 0 { text.len() - 1 } else { *block };
            let mut sum = (0.0, 0.0);
            // At block 1 there is nothing to draw.
            for draw in 0..if size == 1 { 1 } else { plan.draws } {
                let mut rng = seeded(plan.seed ^ (number as u64) << 24 ^ draw << 12 ^ *block as u64);
                let segments = Segments::tiling(text, mask, size, &mut rng);
                let losses = losses(&backbone, additions, &mut clean, &segments, text)?;
                for (loss, guess) in losses.iter().zip(&segments.guesses) {
                    sum.0 += f64::from(*loss) * guess.weight;
                    observe(Some(*block), Guessed { mask_rate: 1.0 / guess.weight, loss: *loss });
                }
                sum.1 += segments.covered as f64;
            }
            rows.push(sum);
        }
        for (hole, (own, middle, left)) in plan.holes.iter().zip(&mut holes) {
            if text.len() <= 2 + hole + plan.suffix {
                continue;
            }
            let mut sum = (0.0, 0.0);
            let mut rng = seeded(plan.seed ^ (number as u64) << 24 ^ (*hole as u64) << 48);
            // The second half of what is possible: there is text to go on from.
            let last = text.len() - hole - plan.suffix;
            let start = (1 + last / 2 + below(&mut rng, last - last / 2)).min(last);
            for draw in 0..plan.draws {
                let count = 1 + ((draw as f64 + 0.5) / plan.draws as f64 * *hole as f64) as usize;
                let segments = Segments::hole(text, mask, start, *hole, count.min(*hole), plan.suffix, &mut rng);
                let losses = losses(&backbone, additions, &mut clean, &segments, text)?;
                sum.0 += losses.iter().zip(&segments.guesses).map(|(l, g)| f64::from(*l) * g.weight).sum::<f64>();
                sum.1 += *hole as f64;
            }
            own.push(sum);
            let mut middles = Middles::default();
            middles.push(text, start..start + hole, plan.suffix);
            clean.read_suffixes(&backbone, additions, &middles.suffixes)?;
            let losses = losses(&backbone, additions, &mut clean, &middles.holes, text)?;
            middle.push((losses.iter().map(|loss| f64::from(*loss)).sum(), *hole as f64));
            left.push((judged[start - 1..start - 1 + hole].iter().map(|loss| f64::from(*loss)).sum(), *hole as f64));
        }
    }
    let mut rows = vec![row("left to right", causal.clone(), &causal, plan.seed)];
    for (block, texts) in plan.blocks.iter().zip(blocks) {
        let name = if *block == 0 { "block full".to_owned() } else { format!("block {block}") };
        rows.push(row(&name, texts, &causal, plan.seed));
    }
    for (hole, (own, middle, left)) in plan.holes.iter().zip(holes) {
        rows.push(row(&format!("hole of {hole}, left to right"), left.clone(), &left, plan.seed));
        rows.push(row(&format!("hole of {hole}, unmasked"), own, &left, plan.seed));
        rows.push(row(&format!("hole of {hole}, left to right, both sides"), middle, &left, plan.seed));
    }
    Ok(rows)
}

fn row(name: &str, texts: Vec<(f64, f64)>, first: &[(f64, f64)], seed: u64) -> Row {
    let perplexity = ratio(&texts, seed).map(f64::exp);
    // Paired by text: both losses are scaled to the same tokens.
    let difference = |(own, first): (&(f64, f64), &(f64, f64))| {
        let scale = if own.1 > 0.0 { first.1 / own.1 } else { 0.0 };
        (own.0 * scale - first.0, first.1)
    };
    let differences: Vec<(f64, f64)> = texts.iter().zip(first).map(difference).collect();
    Row { name: name.into(), perplexity, against_first: ratio(&differences, seed).map(f64::exp), texts }
}
