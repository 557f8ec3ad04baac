//! Draws from a generator: uniforms, normals, categories. Written out here so that a seed gives the same canvas whatever
//! version of a distributions library is linked.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The generator that every seeded run uses: the same seed gives the same draws on every platform.
pub fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A uniform draw from `[0, 1)` with 53 random bits.
pub fn uniform(rng: &mut dyn Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// A uniform draw from `0..bound`; 0 when the bound is 0. The bias is below `bound / 2^64`.
pub fn below(rng: &mut dyn Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// A standard normal draw (Box and Muller 1958); two uniforms each.
pub fn normal(rng: &mut dyn Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// A standard Gumbel draw: adding one to each log-probability and taking the largest draws from the distribution.
pub fn gumbel(rng: &mut dyn Rng) -> f64 {
    // The smallest uniform is lifted off zero, where the logarithm has no value.
    -(-(uniform(rng).max(f64::MIN_POSITIVE)).ln()).ln()
}

/// Draws an index in proportion to non-negative weights. None when no weight is positive.
pub fn categorical(rng: &mut dyn Rng, weights: &[f32]) -> Option<usize> {
    let total: f64 = weights.iter().map(|&weight| f64::from(weight.max(0.0))).sum();
    if !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let mut left = uniform(rng) * total;
    let mut last = None;
    for (index, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            last = Some(index);
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// Puts a slice into random order (Fisher and Yates).
pub fn shuffle<T>(rng: &mut dyn Rng, items: &mut [T]) {
    for end in (1..items.len()).rev() {
        items.swap(end, below(rng, end + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_draws() {
        let (mut a, mut b) = (seeded(7), seeded(7));
        assert!((0..100).all(|_| uniform(&mut a).to_bits() == uniform(&mut b).to_bits()));
    }

    #[test]
    fn normals_have_the_moments_of_the_standard_normal() {
        let mut rng = seeded(1);
        let draws: Vec<f64> = (0..100_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5 - mean * mean;
        // Four standard errors: 1/sqrt(n) for the mean, sqrt(2/n) for the variance.
        assert!(mean.abs() < 0.0127 && (variance - 1.0).abs() < 0.018, "mean {mean}, variance {variance}");
    }

    #[test]
    fn categories_come_in_proportion_to_their_weights() {
        let mut rng = seeded(2);
        let mut counts = [0_u32; 3];
        for _ in 0..40_000 {
            counts[categorical(&mut rng, &[1.0, 0.0, 3.0]).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((f64::from(counts[0]) / 40_000.0 - 0.25).abs() < 0.01);
        assert_eq!(categorical(&mut rng, &[0.0, -1.0]), None);
        assert_eq!(categorical(&mut rng, &[f32::NAN]), None);
    }
}
