//! The sampler against exact answers, and its promises under any input.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::HashMap;
use std::sync::Arc;

use mneme_diffusion::oracle::MarkovOracle;
use mneme_diffusion::random::{seeded, uniform};
use mneme_diffusion::sampler::{
    Blocks, Canvas, CommitRule, DiscreteSampler, Draw, LogitRows, Pacing, Piece, SamplerConfig, SamplerError, Slot,
    TokenTrace,
};
use mneme_diffusion::schedule::DiscreteSchedule;
use mneme_diffusion::uncertainty::ResidualTable;
use proptest::prelude::*;
use rand::Rng;

/// Runs a sampler to its end on the oracle's exact posteriors.
fn run(oracle: &MarkovOracle, canvas: &Canvas, config: SamplerConfig, rng: &mut dyn Rng) -> DiscreteSampler {
    let mut sampler = DiscreteSampler::new(canvas.clone(), config).unwrap();
    let all: Vec<usize> = (0..canvas.tokens().len()).collect();
    while !sampler.is_done() {
        let logits = oracle.posterior_rows(sampler.canvas().tokens());
        let rows = LogitRows::new(&all, oracle.vocab() + 1, &logits).unwrap();
        sampler.step(&rows, rng).unwrap();
    }
    sampler
}

/// Total variation distance between the sampler's output and the exact posterior, and what sampling noise alone gives.
fn distance(config: SamplerConfig, trials: usize) -> (f64, f64) {
    let oracle = MarkovOracle::random(3, &mut seeded(4));
    let canvas = Canvas::new(&[Piece::Hole(2), Piece::Text(vec![1]), Piece::Hole(2), Piece::Text(vec![2])], 3).unwrap();
    let mut rng = seeded(5);
    let mut counts: HashMap<Vec<u32>, f64> = HashMap::new();
    for _ in 0..trials {
        *counts.entry(run(&oracle, &canvas, config, &mut rng).canvas().tokens().to_vec()).or_default() += 1.0;
    }
    let n = trials as f64;
    let exact = oracle.completions(canvas.tokens());
    let count = |tokens: &Vec<u32>| counts.get(tokens).copied().unwrap_or(0.0);
    let tv = 0.5 * exact.iter().map(|(tokens, p)| (count(tokens) / n - p).abs()).sum::<f64>();
    // The mean absolute deviation of a binomial share is about sqrt(2 p (1 - p) / (pi n)).
    let noise = 0.5 * exact.iter().map(|(_, p)| (2.0 * p * (1.0 - p) / (std::f64::consts::PI * n)).sqrt()).sum::<f64>();
    (tv, noise)
}

fn plain(rule: CommitRule, steps: u32) -> SamplerConfig {
    SamplerConfig { rule, steps, draw: Draw::PLAIN, ..SamplerConfig::default() }
}

#[test]
fn one_position_a_step_draws_from_the_exact_posterior_under_every_counting_rule() {
    for rule in [CommitRule::Confidence, CommitRule::Margin, CommitRule::Entropy, CommitRule::Random] {
        let (tv, noise) = distance(plain(rule, 4), 12_000);
        assert!(tv < 2.0 * noise, "{rule:?}: {tv}, noise {noise}");
    }
    let adaptive = CommitRule::EntropyBound { gamma: 0.0 };
    let (tv, noise) = distance(plain(adaptive, 64), 12_000);
    assert!(tv < 2.0 * noise, "{adaptive:?}: {tv}, noise {noise}");
    let blocks = SamplerConfig { blocks: Blocks::Holes(2), ..plain(CommitRule::Confidence, 2) };
    let (tv, noise) = distance(blocks, 12_000);
    assert!(tv < 2.0 * noise, "blocks: {tv}, noise {noise}");
}

#[test]
fn ancestral_sampling_comes_as_near_as_its_steps_allow() {
    let (few, _) = distance(plain(CommitRule::Ancestral, 1), 6_000);
    let (many, noise) = distance(plain(CommitRule::Ancestral, 128), 6_000);
    // With 128 steps two of four positions fall into one step with probability below 5%.
    assert!(many < 2.0 * noise + 0.01, "{many}, noise {noise}");
    // One step ignores every dependence, which this chain has: the test above can fail.
    assert!(few > 5.0 * noise, "{few}, noise {noise}");
}

#[test]
fn remasking_repairs_what_parallel_decisions_broke() {
    // Few steps decide several positions at once; taking some back and deciding them again moves the result toward the joint.
    let (without, _) = distance(plain(CommitRule::Confidence, 2), 8_000);
    let config = SamplerConfig { schedule: DiscreteSchedule::Linear, ..plain(CommitRule::Remasking { eta: 0.4 }, 24) };
    let (with, noise) = distance(config, 8_000);
    assert!(with < without, "{with} against {without}, noise {noise}");
}

#[test]
fn surprise_is_logged_against_the_table() {
    let oracle = MarkovOracle::random(3, &mut seeded(8));
    let canvas = Canvas::continuation(&[0], 4, 3).unwrap();
    let table = Arc::new(ResidualTable::new(vec![0.25]).unwrap());
    let mut sampler = DiscreteSampler::new(canvas, plain(CommitRule::Confidence, 4)).unwrap().with_residuals(table);
    let mut rng = seeded(1);
    while !sampler.is_done() {
        let logits = oracle.posterior_rows(sampler.canvas().tokens());
        let rows = LogitRows::new(&[0, 1, 2, 3, 4], 4, &logits).unwrap();
        let before = sampler.wanted().len();
        for trace in sampler.step(&rows, &mut rng).unwrap().committed {
            let row = &logits[trace.position * 4..trace.position * 4 + 3];
            let entropy: f32 = row.iter().filter(|x| x.is_finite()).map(|x| -x * x.exp()).sum();
            assert!((trace.confidence - row[trace.token as usize].exp()).abs() < 1e-5);
            assert!((trace.entropy - entropy).abs() < 1e-4);
            assert!((trace.mask_rate - before as f32 / 4.0).abs() < 1e-6);
            assert!((trace.surprise.unwrap() - (1.0 - trace.confidence) / 0.25).abs() < 1e-5);
        }
    }
    assert_eq!(sampler.traces().count(), 4);
    let mean = sampler.traces().map(|t| f64::from(t.log_probability)).sum::<f64>() / 4.0;
    assert!((sampler.mean_log_probability().unwrap() - mean).abs() < 1e-9);
}

#[test]
fn errors_leave_the_sampler_as_it_was() {
    let canvas = Canvas::continuation(&[0], 2, 3).unwrap();
    let mut sampler = DiscreteSampler::new(canvas.clone(), SamplerConfig::default()).unwrap();
    let mut rng = seeded(1);
    let nan = [f32::NAN; 8];
    let missing = LogitRows::new(&[1], 4, &nan[..4]).unwrap();
    assert_eq!(sampler.step(&missing, &mut rng), Err(SamplerError::BadRow { position: 1 }));
    let zeros = [0.0; 8];
    let missing = LogitRows::new(&[1], 4, &zeros[..4]).unwrap();
    assert_eq!(sampler.step(&missing, &mut rng), Err(SamplerError::MissingRow { position: 2 }));
    let rows = LogitRows::new(&[1, 2], 4, &zeros).unwrap();
    for proposals in [&[(1, 0)][..], &[(1, 3), (2, 0)], &[(1, 9), (2, 0)]] {
        assert!(matches!(sampler.step_proposed(&rows, proposals, &mut rng), Err(SamplerError::BadProposal { .. })));
    }
    assert_eq!(sampler.canvas(), &canvas);
    sampler.step_proposed(&rows, &[(1, 2), (2, 1)], &mut rng).unwrap();
    sampler.step_proposed(&rows, &[(1, 0), (2, 1)], &mut rng).unwrap();
    assert_eq!(sampler.canvas().tokens(), [0, 2, 1]);
}

#[test]
fn what_follows_a_stop_token_is_filled_without_the_network() {
    let canvas = Canvas::new(&[Piece::Hole(4), Piece::Text(vec![0]), Piece::Hole(1)], 3).unwrap();
    let config = SamplerConfig { blocks: Blocks::Holes(2), steps: 2, ..SamplerConfig::default() };
    let mut sampler = DiscreteSampler::new(canvas, config).unwrap();
    let logits = [0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0];
    let rows = LogitRows::new(&[0, 1], 4, &logits).unwrap();
    let mut rng = seeded(1);
    sampler.step(&rows, &mut rng).unwrap();
    assert_eq!(sampler.finish_after_stop(&[2], 2), 0);
    sampler.step(&rows, &mut rng).unwrap();
    assert_eq!(sampler.finish_after_stop(&[2], 2), 2);
    assert_eq!(sampler.canvas().tokens(), [1, 2, 2, 2, 0, 3]);
    assert_eq!(sampler.wanted(), [5]);
}

fn rules() -> impl Strategy<Value = CommitRule> {
    prop_oneof![
        Just(CommitRule::Confidence),
        Just(CommitRule::Margin),
        Just(CommitRule::Entropy),
        Just(CommitRule::Random),
        Just(CommitRule::Ancestral),
        (0.01_f32..=1.0).prop_map(|tau| CommitRule::Threshold { tau }),
        (0.0_f32..2.0).prop_map(|gamma| CommitRule::EntropyBound { gamma }),
        (0.0_f32..=1.0).prop_map(|eta| CommitRule::Remasking { eta }),
    ]
}

fn configs() -> impl Strategy<Value = SamplerConfig> {
    let blocks =
        prop_oneof![Just(Blocks::Whole), (1_usize..6).prop_map(Blocks::Holes), (1_usize..6).prop_map(Blocks::Aligned)];
    let pacing = prop_oneof![Just(Pacing::Even), Just(Pacing::Schedule)];
    (rules(), pacing, 1_u32..12, blocks, 0.0_f32..2.0).prop_map(|(rule, pacing, steps, blocks, temperature)| {
        let draw = Draw { temperature, ..Draw::default() };
        SamplerConfig { rule, pacing, steps, blocks, draw, ..SamplerConfig::default() }
    })
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece =
        prop_oneof![prop::collection::vec(0_u32..5, 0..4).prop_map(Piece::Text), (0_usize..7).prop_map(Piece::Hole)];
    prop::collection::vec(piece, 0..6)
}

/// Runs with random logits; returns the tokens and traces.
fn noise_run(pieces: &[Piece], config: SamplerConfig, seed: u64) -> (Vec<u32>, Vec<TokenTrace>, u32) {
    let canvas = Canvas::new(pieces, 5).unwrap();
    let mut sampler = DiscreteSampler::new(canvas.clone(), config).unwrap();
    let (mut rng, mut noise) = (seeded(seed), seeded(seed ^ 1));
    let bound = sampler.steps_total();
    let mut left = canvas.masked().count();
    while !sampler.is_done() {
        let positions = sampler.wanted();
        let logits: Vec<f32> = (0..positions.len() * 6).map(|_| 6.0 * uniform(&mut noise) as f32).collect();
        let rows = LogitRows::new(&positions, 6, &logits).unwrap();
        let report = sampler.step(&rows, &mut rng).unwrap();
        left = left + report.remasked.len() - report.committed.len();
        assert_eq!(report.masked_left, left);
        assert_eq!(report.done, left == 0);
        assert!(report.committed.iter().all(|trace| positions.contains(&trace.position)));
        assert!(sampler.steps_total() <= bound);
        for (position, &slot) in canvas.slots().iter().enumerate() {
            if slot == Slot::Fixed {
                assert_eq!(sampler.canvas().tokens()[position], canvas.tokens()[position]);
            }
        }
    }
    assert!(sampler.steps_done() <= bound);
    (sampler.canvas().tokens().to_vec(), sampler.traces().copied().collect(), sampler.steps_done())
}

proptest! {
    #[test]
    fn every_hole_is_filled_within_the_steps_and_nothing_else_changes(
        pieces in pieces(), config in configs(), seed: u64,
    ) {
        let canvas = Canvas::new(&pieces, 5).unwrap();
        let (tokens, traces, _) = noise_run(&pieces, config, seed);
        // No mask is left, and every filled position has its trace.
        prop_assert!(tokens.iter().all(|&token| token < 5));
        prop_assert_eq!(traces.len(), canvas.hole_tokens());
        prop_assert!(traces.iter().all(|t| tokens[t.position] == t.token && (0.0..=1.0).contains(&t.confidence)));
    }

    #[test]
    fn the_same_seed_gives_the_same_canvas(pieces in pieces(), config in configs(), seed: u64) {
        prop_assert_eq!(noise_run(&pieces, config, seed), noise_run(&pieces, config, seed));
    }

    #[test]
    fn blocks_are_finished_in_order(pieces in pieces(), config in configs(), size in 1_usize..5, seed: u64) {
        let config = SamplerConfig { blocks: Blocks::Aligned(size), ..config };
        let (_, traces, _) = noise_run(&pieces, config, seed);
        for pair in traces.windows(2) {
            if pair[0].position / size < pair[1].position / size {
                prop_assert!(pair[0].step < pair[1].step);
            }
        }
    }
}

#[test]
fn settings_out_of_bounds_are_refused() {
    let canvas = Canvas::continuation(&[0], 2, 3).unwrap();
    let bad = |config| DiscreteSampler::new(canvas.clone(), config).is_err();
    let base = SamplerConfig::default();
    assert!(bad(SamplerConfig { steps: 0, ..base }));
    assert!(bad(SamplerConfig { steps: u32::MAX, ..base }));
    assert!(bad(SamplerConfig { blocks: Blocks::Holes(0), ..base }));
    assert!(bad(SamplerConfig { blocks: Blocks::Aligned(0), ..base }));
    assert!(bad(SamplerConfig { rule: CommitRule::Threshold { tau: 0.0 }, ..base }));
    assert!(bad(SamplerConfig { rule: CommitRule::EntropyBound { gamma: f32::NAN }, ..base }));
    assert!(bad(SamplerConfig { rule: CommitRule::Remasking { eta: 1.5 }, ..base }));
    assert!(bad(SamplerConfig { draw: Draw { temperature: f32::INFINITY, ..Draw::PLAIN }, ..base }));
}
