//! Arithmetic on rows of logits: normalisers, entropies, order statistics. Everything here is stable for any finite logits.
//!
//! # Shapes
//! A row is `[vocab] f32`. `-inf` means impossible; a row needs at least one finite logit to be a distribution.

/// Values summed in single precision before they join the double-precision total: 256 terms of at most 1 keep 16 bits.
const LANES_CHUNK: usize = 256;

/// What one row of logits says, read in two passes over the row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSummary {
    /// The token with the largest logit (the first of equals).
    pub top: u32,
    /// Probability of that token.
    pub top_probability: f32,
    /// Probability of the second token, 0 when there is none.
    pub second_probability: f32,
    /// Entropy of the row (nats), at least 0.
    pub entropy: f32,
    /// The logarithm of the sum of the exponentials of the logits.
    pub log_normalizer: f32,
}

impl RowSummary {
    /// Reads a row as if the logit of `banned` were `-inf` (SUBS, MDLM arXiv 2406.07524 section 3.2.3).
    /// None when no other logit is finite, or one is NaN or `+inf`.
    pub fn of(row: &[f32], banned: Option<u32>) -> Option<Self> {
        let banned = banned.map_or(usize::MAX, |token| token as usize);
        let (mut top, mut max, mut second) = (usize::MAX, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (token, &logit) in row.iter().enumerate() {
            if token == banned {
                continue;
            }
            if logit.is_nan() {
                return None;
            }
            if logit > second {
                if logit > max {
                    (top, second, max) = (token, max, logit);
                } else {
                    second = logit;
                }
            }
        }
        if !max.is_finite() {
            return None;
        }
        // With d = logit - max: Z = sum e^d and H = ln Z - sum(d e^d) / Z.
        let (before, after) = row.split_at(banned.min(row.len()));
        let (mut sum, mut weighted) = (0.0_f64, 0.0_f64);
        for chunk in before.chunks(LANES_CHUNK).chain(after.get(1..).unwrap_or_default().chunks(LANES_CHUNK)) {
            let (sums, weights) = exp_sums(chunk, max);
            sum += f64::from(sums);
            weighted += f64::from(weights);
        }
        Some(Self::finish(top, max, second, sum, weighted))
    }

    fn finish(top: usize, max: f32, second: f32, sum: f64, weighted: f64) -> Self {
        // The top token alone contributes 1, which bounds the sum from below whatever was rounded away.
        let sum = sum.max(1.0);
        Self {
            top: top as u32,
            top_probability: (1.0 / sum) as f32,
            second_probability: (f64::from(second - max).exp() / sum) as f32,
            entropy: (sum.ln() - weighted / sum).max(0.0) as f32,
            log_normalizer: (f64::from(max) + sum.ln()) as f32,
        }
    }

    /// Log-probability that the row gives to a logit (nats).
    pub fn log_probability(&self, logit: f32) -> f32 {
        logit - self.log_normalizer
    }
}

/// Sums of `e^d` and `d e^d` over a chunk, with `d = logit - max <= 0`.
fn exp_sums(chunk: &[f32], max: f32) -> (f32, f32) {
    let mut sums = [0.0_f32; 8];
    let mut weights = [0.0_f32; 8];
    let (lanes, rest) = chunk.as_chunks::<8>();
    for lane in lanes {
        for i in 0..8 {
            // Below -87 the exponential is under the smallest normal number: treated as the constant e^-87, 1e-38.
            let d = (lane[i] - max).max(-87.0);
            let e = exp_negative(d);
            sums[i] += e;
            weights[i] += d * e;
        }
    }
    for &logit in rest {
        let d = (logit - max).max(-87.0);
        let e = exp_negative(d);
        sums[0] += e;
        weights[0] += d * e;
    }
    (sums.iter().sum(), weights.iter().sum())
}

/// `e^x` for `-87 <= x <= 0`, relative error below 3e-7; branch-free, so that a loop over it becomes vector code.
/// Range reduction by powers of two and a degree-6 polynomial (the Taylor series on `|r| <= ln(2)/2`).
fn exp_negative(x: f32) -> f32 {
    let scaled = x * std::f32::consts::LOG2_E;
    // Adding 1.5 * 2^23 rounds to the nearest integer in the low mantissa bits.
    let shifted = scaled + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    // ln 2 in two parts (Cody and Waite): the first has so few bits that its products are exact.
    let r = x - whole * (355.0 / 512.0);
    let r = r + whole * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let exponent = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    p * f32::from_bits(exponent)
}

/// `ln(sum e^x)`; `-inf` for an empty row or one without a finite value.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    f64::from(max) + row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum::<f64>().ln()
}

/// Turns logits into log-probabilities in place. A row without a finite value is left as it is.
pub fn log_softmax(row: &mut [f32]) {
    let normalizer = log_sum_exp(row);
    if normalizer.is_finite() {
        for x in row {
            *x = (f64::from(*x) - normalizer) as f32;
        }
    }
}

/// Probabilities of a row of logits. All zero for a row without a finite value.
pub fn softmax(row: &[f32]) -> Vec<f32> {
    let normalizer = log_sum_exp(row);
    row.iter().map(|&x| if normalizer.is_finite() { (f64::from(x) - normalizer).exp() as f32 } else { 0.0 }).collect()
}

/// Shannon entropy of probabilities (nats).
pub fn entropy(probabilities: &[f32]) -> f64 {
    -probabilities.iter().map(|&p| f64::from(p)).filter(|&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The token with the largest value, the first of equals; None for an empty row or one of NaN and `-inf` only.
pub fn argmax(row: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (token, &value) in row.iter().enumerate() {
        if value > best.map_or(f32::NEG_INFINITY, |(_, value)| value) {
            best = Some((token, value));
        }
    }
    best.map(|(token, _)| token as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_summary_agrees_with_double_precision(
            row in prop::collection::vec(-60.0_f32..60.0, 2..700), banned in 0_u32..800,
        ) {
            let summary = RowSummary::of(&row, Some(banned)).unwrap();
            let mut exact: Vec<f32> = row.clone();
            if let Some(x) = exact.get_mut(banned as usize) { *x = f32::NEG_INFINITY; }
            let p = softmax(&exact);
            prop_assert_eq!(Some(summary.top), argmax(&exact));
            let mut sorted = p.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            prop_assert!((summary.top_probability - sorted[0]).abs() < 1e-5);
            prop_assert!((summary.second_probability - sorted[1]).abs() < 1e-5);
            prop_assert!((f64::from(summary.entropy) - entropy(&p)).abs() < 1e-4, "{} {}", summary.entropy, entropy(&p));
            prop_assert!((f64::from(summary.log_normalizer) - log_sum_exp(&exact)).abs() < 1e-4);
        }

        #[test]
        fn the_short_exponential_is_within_its_stated_error(x in -86.9_f32..0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp_negative(x)) - exact).abs() <= 3e-7 * exact);
        }
    }

    #[test]
    fn a_row_that_is_no_distribution_has_no_summary() {
        assert_eq!(RowSummary::of(&[], None), None);
        assert_eq!(RowSummary::of(&[f32::NEG_INFINITY; 3], None), None);
        assert_eq!(RowSummary::of(&[1.0, f32::NAN], None), None);
        assert_eq!(RowSummary::of(&[1.0, f32::INFINITY], None), None);
        assert_eq!(RowSummary::of(&[1.0], Some(0)), None);
        assert_eq!(RowSummary::of(&[f32::NAN, 1.0], Some(0)).map(|s| s.top), Some(1));
    }

    #[test]
    fn a_certain_row_has_no_entropy() {
        let summary = RowSummary::of(&[0.0, f32::NEG_INFINITY, f32::NEG_INFINITY], None).unwrap();
        assert!(summary.entropy.abs() < 1e-6 && (summary.top_probability - 1.0).abs() < 1e-6);
        assert!(summary.second_probability.abs() < 1e-12);
    }
}
