//! Soft preferences: `p(x) exp(-eta sum_j lambda_j E_j(x)) / Z` in place of `p(x)`. What must hold always is a constraint, not an energy.
//!
//! Energies that are sums over tokens are taken off the logits, which is exact ([`tilt`]). Energies of whole sequences are met by drawing
//! candidates from the model and choosing among them ([`choose`]). Each energy is standardised on samples of the base model first
//! ([`Standardizer`]): otherwise `eta` means something else for each, and several cannot be weighed against each other.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::random::categorical;

/// Energies used at once at most.
pub const ENERGIES_MAX: usize = 16;
/// Candidates to choose among at most.
pub const CANDIDATES_MAX: usize = 256;

/// Why an energy could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnergyError {
    /// Too few samples, or samples that do not vary.
    #[error("an energy cannot be standardised on {samples} samples: at least two different values are needed")]
    Samples {
        /// Samples given.
        samples: usize,
    },
    /// Energies and logits, or energies of different terms, differ in length.
    #[error("energy {term} has {length} values, {expected} are needed")]
    Length {
        /// Which energy.
        term: usize,
        /// Values given.
        length: usize,
        /// Values needed.
        expected: usize,
    },
    /// More terms or candidates than accepted, or none.
    #[error("{count} {what} given, 1 to {limit} are accepted")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A weight, eta or an energy is not a number.
    #[error("{what} is not a finite number")]
    NotFinite {
        /// What.
        what: &'static str,
    },
}

/// Location and scale of an energy on samples of the base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standardizer {
    mean: f64,
    deviation: f64,
}

impl Standardizer {
    /// Leaves energies as they are.
    pub const IDENTITY: Self = Self { mean: 0.0, deviation: 1.0 };

    /// Measures mean and standard deviation. Needs at least two different finite values.
    pub fn fit(samples: &[f32]) -> Result<Self, EnergyError> {
        let n = samples.len() as f64;
        let mean = samples.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = samples.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        if samples.len() < 2 || !variance.is_finite() || variance <= f64::EPSILON * mean.abs() {
            return Err(EnergyError::Samples { samples: samples.len() });
        }
        Ok(Self { mean, deviation: variance.sqrt() })
    }

    /// The energy in standard deviations from the base model's mean.
    pub fn apply(&self, energy: f32) -> f64 {
        (f64::from(energy) - self.mean) / self.deviation
    }
}

/// One energy with its weight.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// Energies: of each token of a row, or of each candidate. Lower is better; `+inf` forbids.
    pub energies: &'a [f32],
    /// How they are standardised.
    pub standardizer: Standardizer,
    /// `lambda`: its weight among the terms.
    pub weight: f64,
}

/// Total standardised energies `sum_j lambda_j E_j` of each token or candidate. Errors for lengths, counts and NaN.
pub fn total(terms: &[Term<'_>], length: usize) -> Result<Vec<f64>, EnergyError> {
    if terms.is_empty() || terms.len() > ENERGIES_MAX {
        return Err(EnergyError::Count { what: "energies", count: terms.len(), limit: ENERGIES_MAX });
    }
    let mut sum = vec![0.0; length];
    for (index, term) in terms.iter().enumerate() {
        if term.energies.len() != length {
            return Err(EnergyError::Length { term: index, length: term.energies.len(), expected: length });
        }
        if !term.weight.is_finite() {
            return Err(EnergyError::NotFinite { what: "weight of an energy" });
        }
        for (sum, &energy) in sum.iter_mut().zip(term.energies).filter(|_| term.weight != 0.0) {
            *sum += term.weight * term.standardizer.apply(energy);
        }
    }
    if sum.iter().any(|energy| energy.is_nan()) {
        return Err(EnergyError::NotFinite { what: "energy" });
    }
    Ok(sum)
}

/// Tilts a row by energies of its tokens: `logit - eta sum_j lambda_j E_j`, exact for energies that are sums over positions.
///
/// # Shapes
/// `logits` and the energies of each term: `[vocab]`.
pub fn tilt(logits: &mut [f32], terms: &[Term<'_>], eta: f64) -> Result<(), EnergyError> {
    if !eta.is_finite() {
        return Err(EnergyError::NotFinite { what: "eta" });
    }
    let energies = total(terms, logits.len())?;
    if eta != 0.0 {
        for (logit, energy) in logits.iter_mut().zip(energies) {
            *logit = (f64::from(*logit) - eta * energy) as f32;
        }
    }
    Ok(())
}

/// The gradient of `log q(token)` by the energies of the row: `-eta (1[i = token] - q_i)`, with q the tilted distribution. What a learned
/// energy is trained with. `[vocab]`
pub fn tilt_gradient(tilted: &[f32], token: u32, eta: f64) -> Vec<f64> {
    let own = |index: usize| f64::from(u8::from(index == token as usize));
    tilted.iter().enumerate().map(|(index, &q)| -eta * (own(index) - f64::from(q))).collect()
}

/// The chosen candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which candidate.
    pub index: usize,
    /// Normalised weights of all, at the eta that was used.
    pub weights: Vec<f32>,
    /// Effective number of candidates `(sum w)^2 / sum w^2` at the eta that was asked for.
    pub effective: f64,
    /// The eta that was used: lower than asked for when too few candidates would have been effective.
    pub eta: f64,
}

/// Chooses among candidates that the base model drew, with weights `softmax(-eta E)` (self-normalised importance resampling). When the
/// effective number of candidates falls under `effective_min`, the weights rest on so few that the energy, not the model, would speak:
/// eta is then lowered by bisection until it is reached, at worst to 0, which is the base model.
///
/// # Shapes
/// Energies of each term: `[candidates]`.
pub fn choose(
    candidates: usize,
    terms: &[Term<'_>],
    eta: f64,
    effective_min: f64,
    rng: &mut dyn Rng,
) -> Result<Choice, EnergyError> {
    if candidates == 0 || candidates > CANDIDATES_MAX {
        return Err(EnergyError::Count { what: "candidates", count: candidates, limit: CANDIDATES_MAX });
    }
    if !eta.is_finite() {
        return Err(EnergyError::NotFinite { what: "eta" });
    }
    let energies = total(terms, candidates)?;
    let asked = weights(&energies, eta);
    let effective = asked.as_deref().map_or(0.0, effective_count);
    let (mut used, mut chosen) = (eta, asked);
    if effective < effective_min.min(candidates as f64) {
        let (mut low, mut high) = (0.0, eta);
        // Forty halvings are beyond the precision of any eta that matters.
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            let enough = weights(&energies, middle).is_some_and(|w| effective_count(&w) >= effective_min);
            if enough { low = middle } else { high = middle }
        }
        used = low;
        chosen = weights(&energies, used);
    }
    // Nothing possible under the energies at all: the base model's candidates are equally good.
    let weights = chosen.unwrap_or_else(|| vec![1.0 / candidates as f64; candidates]);
    let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
    let index = categorical(rng, &weights).unwrap_or(0);
    Ok(Choice { index, weights, effective, eta: used })
}

fn weights(energies: &[f64], eta: f64) -> Option<Vec<f64>> {
    let logs = energies.iter().map(|&energy| if eta == 0.0 { 0.0 } else { -eta * energy });
    let max = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return None;
    }
    let raw: Vec<f64> = logs.map(|log| (log - max).exp()).collect();
    let sum: f64 = raw.iter().sum();
    Some(raw.into_iter().map(|w| w / sum).collect())
}

fn effective_count(weights: &[f64]) -> f64 {
    1.0 / weights.iter().map(|w| w * w).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric::{log_sum_exp, softmax};
    use crate::random::seeded;

    fn term(energies: &[f32], weight: f64) -> Term<'_> {
        Term { energies, standardizer: Standardizer::IDENTITY, weight }
    }

    proptest! {
        #[test]
        fn a_tilt_is_the_formula_and_stacks(
            rows in prop::collection::vec((-5.0_f32..5.0, -3.0_f32..3.0, -3.0_f32..3.0), 2..12), eta in -2.0_f64..2.0,
        ) {
            let logits: Vec<f32> = rows.iter().map(|r| r.0).collect();
            let (a, b): (Vec<f32>, Vec<f32>) = rows.iter().map(|r| (r.1, r.2)).unzip();
            let mut tilted = logits.clone();
            tilt(&mut tilted, &[term(&a, 0.5), term(&b, 2.0)], eta).unwrap();
            let p = softmax(&logits);
            let raw: Vec<f64> = (0..p.len())
                .map(|i| f64::from(p[i]) * (-eta * (0.5 * f64::from(a[i]) + 2.0 * f64::from(b[i]))).exp()).collect();
            let z: f64 = raw.iter().sum();
            for (q, raw) in softmax(&tilted).iter().zip(raw) {
                prop_assert!((f64::from(*q) - raw / z).abs() < 1e-4);
            }
            // Two tilts one after the other are one.
            let mut twice = logits;
            tilt(&mut twice, &[term(&a, 0.5)], eta).unwrap();
            tilt(&mut twice, &[term(&b, 2.0)], eta).unwrap();
            prop_assert!(twice.iter().zip(&tilted).all(|(x, y)| (x - y).abs() < 1e-4));
        }

        #[test]
        fn gradients_equal_finite_differences(
            rows in prop::collection::vec((-3.0_f32..3.0, -2.0_f32..2.0), 2..8), eta in 0.1_f64..2.0, pick: prop::sample::Index,
        ) {
            let (logits, energies): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let token = pick.index(logits.len());
            let log_q = |energies: &[f32]| {
                let mut row = logits.clone();
                tilt(&mut row, &[term(energies, 1.0)], eta).unwrap();
                f64::from(row[token]) - log_sum_exp(&row)
            };
            let mut row = logits.clone();
            tilt(&mut row, &[term(&energies, 1.0)], eta).unwrap();
            let gradient = tilt_gradient(&softmax(&row), token as u32, eta);
            for i in 0..energies.len() {
                let h = 0.02_f32;
                let (mut up, mut down) = (energies.clone(), energies.clone());
                up[i] += h;
                down[i] -= h;
                let numeric = (log_q(&up) - log_q(&down)) / (2.0 * f64::from(h));
                // Single precision logits and the cubic term of the difference.
                prop_assert!((gradient[i] - numeric).abs() < 2e-3, "{} {}", gradient[i], numeric);
            }
        }
    }

    #[test]
    fn standardised_energies_mean_the_same_whatever_their_scale() {
        let samples = [1.0_f32, 2.0, 3.0, 6.0];
        let scaled: Vec<f32> = samples.iter().map(|x| 1_000.0 * x + 77.0).collect();
        let (a, b) = (Standardizer::fit(&samples).unwrap(), Standardizer::fit(&scaled).unwrap());
        for (x, y) in samples.iter().zip(&scaled) {
            assert!((a.apply(*x) - b.apply(*y)).abs() < 1e-4);
        }
        assert!(Standardizer::fit(&[1.0, 1.0]).is_err() && Standardizer::fit(&[]).is_err());
        assert!(Standardizer::fit(&[1.0, f32::NAN]).is_err());
    }

    #[test]
    fn candidates_are_chosen_in_proportion_to_their_weights() {
        let energies = [0.0_f32, 1.0, 2.0];
        let mut rng = seeded(4);
        let mut counts = [0.0_f64; 3];
        for _ in 0..20_000 {
            counts[choose(3, &[term(&energies, 1.0)], 1.0, 1.0, &mut rng).unwrap().index] += 1.0 / 20_000.0;
        }
        let z: f64 = (0..3).map(|i| (-f64::from(i)).exp()).sum();
        for (i, share) in counts.into_iter().enumerate() {
            assert!((share - (-(i as f64)).exp() / z).abs() < 0.014);
        }
    }

    #[test]
    fn too_few_effective_candidates_lower_eta() {
        let energies = [0.0_f32, 50.0, 60.0, 70.0];
        let mut rng = seeded(5);
        let choice = choose(4, &[term(&energies, 1.0)], 1.0, 2.0, &mut rng).unwrap();
        assert!(choice.effective < 1.01 && choice.eta > 0.0 && choice.eta < 0.2);
        let count = 1.0 / choice.weights.iter().map(|w| w * w).sum::<f32>();
        assert!((count - 2.0).abs() < 0.01, "{count}");
        // Forbidden candidates are never chosen, and when all are the model's own choice stands.
        let forbidden = [f32::INFINITY, 0.0];
        assert_eq!(choose(2, &[term(&forbidden, 1.0)], 1.0, 1.0, &mut rng).unwrap().index, 1);
        let all = choose(2, &[term(&[f32::INFINITY; 2], 1.0)], 1.0, 1.0, &mut rng).unwrap();
        assert!((all.weights[0] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn bad_input_is_an_error() {
        let mut rng = seeded(6);
        assert!(tilt(&mut [0.0; 2], &[term(&[0.0], 1.0)], 1.0).is_err());
        assert!(tilt(&mut [0.0; 1], &[], 1.0).is_err());
        assert!(tilt(&mut [0.0; 1], &[term(&[f32::NAN], 1.0)], 1.0).is_err());
        assert!(tilt(&mut [0.0; 1], &[term(&[0.0], f64::NAN)], 1.0).is_err());
        assert!(tilt(&mut [0.0; 1], &[term(&[0.0], 1.0)], f64::INFINITY).is_err());
        assert!(choose(0, &[term(&[], 1.0)], 1.0, 1.0, &mut rng).is_err());
        assert!(choose(usize::MAX, &[term(&[], 1.0)], 1.0, 1.0, &mut rng).is_err());
    }
}
