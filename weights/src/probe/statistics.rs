//! The distribution of a tensor's values.

use serde::Serialize;

/// Quantiles that are reported.
const QUANTILES: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// Quantiles come from at most this many values at equal distances, which puts their rank within a thousandth (values).
const SAMPLE_MAX: usize = 1 << 18;
/// Bins of the histogram.
const BINS: usize = 32;

/// How the finite values of a tensor are distributed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statistics {
    /// Elements that are not finite; all else is about the others.
    pub not_finite: usize,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// Fourth standardised moment; 3 for a normal distribution, more with outliers.
    pub kurtosis: f64,
    /// Sum of magnitudes.
    pub norm_l1: f64,
    /// Euclidean norm.
    pub norm_l2: f64,
    /// Share of exact zeros.
    pub sparsity: f64,
    /// `(probability, value)` pairs.
    pub quantiles: Vec<(f64, f64)>,
    /// Counts in 32 bins of equal width from `min` to `max`.
    pub histogram: Vec<u64>,
}

/// Describes values. Three passes; all zeros for no finite value.
pub fn statistics(values: &[f32]) -> Statistics {
    let finite = || values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
    let count = finite().count();
    let not_finite = values.len() - count;
    let (mut min, mut max, mut sum, mut norm_l1, mut squares, mut zeros) = (f64::MAX, f64::MIN, 0.0, 0.0, 0.0, 0_u64);
    for value in finite() {
        min = min.min(value);
        max = max.max(value);
        sum += value;
        norm_l1 += value.abs();
        squares += value * value;
        zeros += u64::from(value == 0.0);
    }
    if count == 0 {
        (min, max) = (0.0, 0.0);
    }
    let divisor = (count as f64).max(1.0);
    let mean = sum / divisor;
    let (mut second, mut fourth) = (0.0, 0.0);
    let mut histogram = vec![0_u64; BINS];
    let width = (max - min) / BINS as f64;
    for value in finite() {
        let squared = (value - mean) * (value - mean);
        second += squared;
        fourth += squared * squared;
        let bin = if width > 0.0 { ((value - min) / width) as usize } else { 0 };
        histogram[bin.min(BINS - 1)] += 1;
    }
    let variance = second / divisor;
    Statistics {
        not_finite,
        min,
        max,
        mean,
        deviation: variance.sqrt(),
        kurtosis: if variance > 0.0 { fourth / divisor / (variance * variance) } else { 0.0 },
        norm_l1,
        norm_l2: squares.sqrt(),
        sparsity: zeros as f64 / divisor,
        quantiles: quantiles(values),
        histogram,
    }
}

fn quantiles(values: &[f32]) -> Vec<(f64, f64)> {
    let step = values.len().div_ceil(SAMPLE_MAX).max(1);
    let mut sample: Vec<f32> = values.iter().copied().step_by(step).filter(|value| value.is_finite()).collect();
    if sample.is_empty() {
        return Vec::new();
    }
    sample.sort_unstable_by(f32::total_cmp);
    let at = |probability: f64| f64::from(sample[(probability * (sample.len() - 1) as f64).round() as usize]);
    QUANTILES.iter().map(|&probability| (probability, at(probability))).collect()
}
