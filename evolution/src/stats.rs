//! Paired, weighted means with one-sided confidence bounds: by Student's t and by the bootstrap.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Bootstrap resamples: the error of a 5% quantile from 1,000 resamples is about 0.7 percentage points.
pub const BOOTSTRAP_RESAMPLES: usize = 1_000;

/// A weighted mean of paired differences with one-sided bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Pairs.
    pub n: usize,
    /// The weighted mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
    /// One-sided lower bound: the smaller of the t bound and the bootstrap bound.
    pub lower: f64,
    /// One-sided upper bound: the larger of the two.
    pub upper: f64,
}

/// Estimates the weighted mean of differences; `None` with fewer than two pairs, unequal lengths, or no weight.
///
/// The standard error is that of a ratio estimator (Cochran, *Sampling Techniques*, ch. 6): with weights w and mean m,
/// `n/(n-1) * sum w^2 (d-m)^2 / (sum w)^2`. Degrees of freedom are Kish's effective n less one. The bootstrap resamples
/// pairs with their weights; taking the worse of both bounds guards against skew (t) and few pairs (bootstrap).
/// Costs [`BOOTSTRAP_RESAMPLES`] * n.
pub fn paired(differences: &[f64], weights: &[f64], alpha: f64, seed: u64) -> Option<Estimate> {
    let n = differences.len();
    let total: f64 = weights.iter().sum();
    let sane = differences.iter().all(|d| d.is_finite()) && weights.iter().all(|w| w.is_finite() && *w >= 0.0);
    if n < 2 || weights.len() != n || !sane || total <= 0.0 {
        return None;
    }
    let pairs = || differences.iter().zip(weights);
    let mean = pairs().map(|(d, w)| d * w).sum::<f64>() / total;
    let spread = pairs().map(|(d, w)| (w * (d - mean)).powi(2)).sum::<f64>();
    let error = (spread * n as f64 / (n as f64 - 1.0)).sqrt() / total;
    let effective = total * total / weights.iter().map(|w| w * w).sum::<f64>();
    let t = student_t_quantile(1.0 - alpha, (effective - 1.0).max(1.0));
    let (low, high) = bootstrap(differences, weights, alpha, seed);
    Some(Estimate { n, mean, error, lower: (mean - t * error).min(low), upper: (mean + t * error).max(high) })
}

/// The `alpha` and `1 - alpha` quantiles of the bootstrapped weighted mean.
fn bootstrap(differences: &[f64], weights: &[f64], alpha: f64, seed: u64) -> (f64, f64) {
    let mut random = Random::stream(seed, 0xB007);
    let n = differences.len();
    let mut means: Vec<f64> = (0..BOOTSTRAP_RESAMPLES)
        .map(|_| {
            let (mut sum, mut total) = (0.0, 0.0);
            for _ in 0..n {
                let pick = random.below(n);
                sum += differences[pick] * weights[pick];
                total += weights[pick];
            }
            if total > 0.0 { sum / total } else { 0.0 }
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let rank = ((alpha * means.len() as f64) as usize).min(means.len() - 1);
    (means[rank], means[means.len() - 1 - rank])
}

/// The quantile of Student's t: the x with `P(T <= x) = p` at `freedom` degrees of freedom, by bisection on the
/// distribution function; exact to 1e-9. Needs `0 < p < 1` and `freedom > 0`; p is cut to `[1e-12, 1 - 1e-12]`.
pub fn student_t_quantile(p: f64, freedom: f64) -> f64 {
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    if p < 0.5 {
        return -student_t_quantile(1.0 - p, freedom);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while student_t_cdf(high, freedom) < p && high < 1e12 {
        high *= 2.0;
    }
    while high - low > 1e-9 * (1.0 + high) {
        let middle = f64::midpoint(low, high);
        if student_t_cdf(middle, freedom) < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// The distribution function of Student's t (Abramowitz and Stegun 26.7.1, through the incomplete beta function).
fn student_t_cdf(t: f64, freedom: f64) -> f64 {
    let tail = 0.5 * incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5);
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// Stands for 0 in a denominator of the continued fraction.
const TINY: f64 = 1e-300;

/// The regularised incomplete beta function I_x(a, b), by Lentz's evaluation of its continued fraction (DLMF 8.17.22).
pub fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast below the mean only; the symmetry I_x(a,b) = 1 - I_{1-x}(b,a) covers the rest.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let (mut c, mut d) = (1.0, 1.0 / guard(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        for term in [even, odd] {
            d = 1.0 / guard(1.0 + term * d);
            c = guard(1.0 + term / c);
            fraction *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// The logarithm of the gamma function for x > 0 (Lanczos, g = 7, nine terms; relative error below 1e-13).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let reflected = (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln();
        return reflected - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let series = TERMS.iter().zip(1..).fold(0.999_999_999_999_809_9, |sum, (term, k)| sum + term / (x + f64::from(k)));
    let t = x + 7.5;
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * t.ln() - t + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t_quantiles_are_those_of_the_tables() {
        // Abramowitz and Stegun, table 26.10.
        for (p, freedom, expected) in
            [(0.95, 1.0, 6.314), (0.95, 10.0, 1.812), (0.975, 30.0, 2.042), (0.99, 5.0, 3.365)]
        {
            let t = student_t_quantile(p, freedom);
            assert!((t - expected).abs() < 6e-4, "t({p}, {freedom}) = {t}");
            assert!((student_t_quantile(1.0 - p, freedom) + t).abs() < 1e-6);
        }
        // With many degrees of freedom it is the normal quantile.
        assert!((student_t_quantile(0.95, 1e6) - 1.644_854).abs() < 1e-4);
    }

    #[test]
    fn the_incomplete_beta_function_agrees_with_closed_forms() {
        // I_x(1, b) = 1 - (1-x)^b; I_x(a, 1) = x^a.
        for x in [0.01, 0.3, 0.77, 0.999] {
            assert!((incomplete_beta(x, 1.0, 4.0) - (1.0 - (1.0 - x).powi(4))).abs() < 1e-12);
            assert!((incomplete_beta(x, 3.0, 1.0) - x.powi(3)).abs() < 1e-12);
        }
    }

    #[test]
    fn heavy_texts_count_more() {
        let light = paired(&[1.0, 0.0, 1.0, 0.0], &[1.0; 4], 0.05, 1).unwrap();
        let heavy = paired(&[1.0, 0.0, 1.0, 0.0], &[9.0, 1.0, 9.0, 1.0], 0.05, 1).unwrap();
        assert!((light.mean - 0.5).abs() < 1e-12 && (heavy.mean - 0.9).abs() < 1e-12);
    }

    #[test]
    fn refuses_what_cannot_be_estimated() {
        assert!(paired(&[1.0], &[1.0], 0.05, 1).is_none());
        assert!(paired(&[1.0, f64::NAN], &[1.0, 1.0], 0.05, 1).is_none());
        assert!(paired(&[1.0, 2.0], &[1.0], 0.05, 1).is_none());
        assert!(paired(&[1.0, 2.0], &[0.0, 0.0], 0.05, 1).is_none());
    }

    #[test]
    fn the_lower_bound_is_above_the_truth_in_at_most_alpha_of_the_draws() {
        let mut random = Random::new(3);
        let draws = 1_000;
        let above = (0..draws)
            .filter(|draw| {
                let differences: Vec<f64> = (0..24).map(|_| 0.1 + 0.3 * random.normal()).collect();
                let weights: Vec<f64> = (0..24).map(|_| 20.0 + 200.0 * random.uniform()).collect();
                paired(&differences, &weights, 0.05, *draw).unwrap().lower > 0.1
            })
            .count();
        // Binomial: 5% of 1,000 plus three standard deviations.
        assert!(above <= 71, "{above} of {draws} lower bounds were above the truth");
    }
}
