//! How a quantity changes over time, with the uncertainty of it: what a soak judges growth by.
//!
//! Samples that follow each other closely are alike, so that the usual interval of a regression would be far too narrow; whole
//! stretches of time are drawn again instead (moving-block bootstrap, Künsch 1989).

/// A slope with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// Least-squares slope (units of the value per unit of time).
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Slope {
    /// Whether the interval lies above zero: growth that chance does not explain.
    pub fn grows(&self) -> bool {
        self.low > 0.0
    }
}

/// Resamplings behind an interval.
const ROUNDS: usize = 1_000;

/// The slope of `(time, value)` samples in order of time; `None` for fewer than eight. Cost: [`ROUNDS`] passes.
///
/// The residuals of the fit are resampled in blocks of twice the root of their number: long against the time in which a daemon's
/// memory forgets what it was.
pub fn slope(samples: &[(f64, f64)], seed: u64) -> Option<Slope> {
    if samples.len() < 8 {
        return None;
    }
    let (value, intercept) = fit(samples)?;
    let residuals: Vec<f64> = samples.iter().map(|(time, y)| y - intercept - value * time).collect();
    let block = ((2.0 * (residuals.len() as f64).sqrt()) as usize).clamp(4, residuals.len());
    let mut random = crate::random::Random::new(seed);
    let mut drawn: Vec<f64> = Vec::with_capacity(ROUNDS);
    let mut resampled = samples.to_vec();
    for _ in 0..ROUNDS {
        let mut index = 0;
        while index < resampled.len() {
            let start = random.below(residuals.len() - block + 1);
            for offset in 0..block.min(resampled.len() - index) {
                let time = samples[index].0;
                resampled[index] = (time, intercept + value * time + residuals[start + offset]);
                index += 1;
            }
        }
        drawn.extend(fit(&resampled).map(|(slope, _)| slope));
    }
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[((drawn.len() - 1) as f64 * share).round() as usize];
    Some(Slope { value, low: at(0.025), high: at(0.975) })
}

/// Least squares: slope and intercept; `None` when all times are the same.
fn fit(samples: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = samples.len() as f64;
    let time = samples.iter().map(|(time, _)| time).sum::<f64>() / count;
    let mean = samples.iter().map(|(_, y)| y).sum::<f64>() / count;
    let spread: f64 = samples.iter().map(|(t, _)| (t - time).powi(2)).sum();
    if spread <= 0.0 {
        return None;
    }
    let slope = samples.iter().map(|(t, y)| (t - time) * (y - mean)).sum::<f64>() / spread;
    Some((slope, mean - slope * time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(slope: f64, seed: u64) -> Vec<(f64, f64)> {
        let mut random = crate::random::Random::new(seed);
        let mut noise = 0.0;
        (0..400)
            .map(|step| {
                // Neighbours are alike, as samples of memory are.
                noise = 0.8 * noise + random.below(1_000) as f64 / 1_000.0 - 0.5;
                (f64::from(step), slope * f64::from(step) + noise)
            })
            .collect()
    }

    #[test]
    fn growth_is_found_and_its_size_lies_in_most_intervals() {
        let found: Vec<Slope> = (0..40).map(|seed| slope(&noisy(0.02, seed), seed).unwrap()).collect();
        assert!(found.iter().all(Slope::grows), "{found:?}");
        let covered = found.iter().filter(|found| found.low <= 0.02 && 0.02 <= found.high).count();
        assert!(covered >= 33, "{covered} of 40");
    }

    #[test]
    fn noise_without_growth_is_seldom_called_growth() {
        let grows = (0..40).filter(|seed| slope(&noisy(0.0, *seed), *seed).unwrap().grows()).count();
        assert!(grows <= 5, "{grows} of 40");
    }

    #[test]
    fn a_handful_of_samples_or_one_time_has_no_slope() {
        assert_eq!(slope(&noisy(0.1, 1)[..7], 1), None);
        assert_eq!(slope(&vec![(1.0, 2.0); 20], 1), None);
    }
}
