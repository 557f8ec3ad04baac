//! L0 of the evolution loop: several models as one, without training.

use super::{GuidanceError, MODELS_MAX};
use crate::numeric::log_sum_exp;

/// Weights on the simplex: not negative, summing to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights(Vec<f64>);

impl Weights {
    /// Normalises; refuses negative and non-finite weights, and a sum of zero.
    pub fn new(weights: &[f64]) -> Result<Self, GuidanceError> {
        if weights.is_empty() || weights.len() > MODELS_MAX {
            return Err(GuidanceError::Models { count: weights.len() });
        }
        let sum: f64 = weights.iter().sum();
        let bad = weights.iter().position(|&weight| !(weight >= 0.0 && weight.is_finite()));
        let index = bad.or((sum <= 0.0 || !sum.is_finite()).then_some(0));
        match index {
            Some(index) => Err(GuidanceError::Weight { index, value: weights[index].to_string() }),
            None => Ok(Self(weights.iter().map(|weight| weight / sum).collect())),
        }
    }

    /// The same weight for each of `count` models.
    pub fn uniform(count: usize) -> Result<Self, GuidanceError> {
        // Checked before it is allocated.
        if count > MODELS_MAX { Err(GuidanceError::Models { count }) } else { Self::new(&vec![1.0; count]) }
    }

    /// The weights.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }
}

/// A composed row.
#[derive(Debug, Clone, PartialEq)]
pub struct Composed {
    /// `log q`, normalised. `[vocab]`
    pub log_probabilities: Vec<f32>,
    /// The logarithm of the normaliser, at most 0. `-log Z = sum w_i KL(q || p_i)`: how much the models disagree (nats).
    pub log_z: f64,
}

/// Geometric composition `q = prod p_i^{w_i} / Z`. By `-log q(x) = sum w_i (-log p_i(x)) + log Z` and `Z <= 1` its loss is never more than
/// the weighted average of the models' losses, whatever token comes.
///
/// # Shapes
/// `rows`: one `[vocab]` of logits or log-probabilities for each weight; each is normalised first. A model of weight 0 is not read.
pub fn compose(rows: &[&[f32]], weights: &Weights) -> Result<Composed, GuidanceError> {
    let vocab = check(rows, weights)?;
    let mut sum = vec![0.0_f64; vocab];
    for (row, &weight) in rows.iter().zip(weights.as_slice()).filter(|(_, weight)| **weight > 0.0) {
        let normalizer = log_sum_exp(row);
        for (out, &logit) in sum.iter_mut().zip(*row) {
            *out += weight * (f64::from(logit) - normalizer);
        }
    }
    let max = sum.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return Err(GuidanceError::Disjoint);
    }
    let log_z = max + sum.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    // Z <= 1 by the inequality of arithmetic and geometric means; the clamp takes off rounding.
    Ok(Composed { log_probabilities: sum.iter().map(|x| (x - log_z) as f32).collect(), log_z: log_z.min(0.0) })
}

/// Arithmetic composition `sum w_i p_i`, as log-probabilities. With [`super::OnlineWeights`] this is the Bayes mixture, whose total loss
/// exceeds that of the best model by at most `ln N`; for the geometric form there is no such bound over time, only the one above.
///
/// # Shapes
/// As [`compose`].
pub fn mix(rows: &[&[f32]], weights: &Weights) -> Result<Vec<f32>, GuidanceError> {
    let vocab = check(rows, weights)?;
    let mut sum = vec![0.0_f64; vocab];
    for (row, &weight) in rows.iter().zip(weights.as_slice()).filter(|(_, weight)| **weight > 0.0) {
        let normalizer = log_sum_exp(row);
        for (out, &logit) in sum.iter_mut().zip(*row) {
            *out += weight * (f64::from(logit) - normalizer).exp();
        }
    }
    Ok(sum.iter().map(|p| p.ln() as f32).collect())
}

fn check(rows: &[&[f32]], weights: &Weights) -> Result<usize, GuidanceError> {
    let expected = weights.as_slice().len();
    if rows.len() != expected {
        return Err(GuidanceError::Length { what: "list of models", length: rows.len(), expected });
    }
    let vocab = rows.first().map_or(0, |row| row.len());
    for (row, &weight) in rows.iter().zip(weights.as_slice()) {
        if row.len() != vocab {
            return Err(GuidanceError::Length { what: "row of a model", length: row.len(), expected: vocab });
        }
        if weight > 0.0 {
            if let Some(index) = row.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
                return Err(GuidanceError::Value { what: "row of a model", index });
            }
            if row.iter().all(|&x| x == f32::NEG_INFINITY) {
                return Err(GuidanceError::Disjoint);
            }
        }
    }
    Ok(vocab)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric::softmax;

    fn models() -> impl Strategy<Value = (Vec<Vec<f32>>, Vec<f64>)> {
        (1_usize..5, 2_usize..12).prop_flat_map(|(models, vocab)| {
            (
                prop::collection::vec(prop::collection::vec(-12.0_f32..12.0, vocab), models),
                prop::collection::vec(0.0_f64..1.0, models)
                    .prop_filter("some weight", |w| w.iter().sum::<f64>() > 0.01),
            )
        })
    }

    proptest! {
        #[test]
        fn a_composition_is_never_worse_than_the_weighted_average(case in models()) {
            let (rows, weights) = case;
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let weights = Weights::new(&weights).unwrap();
            let composed = compose(&rows, &weights).unwrap();
            let p: Vec<Vec<f32>> = rows.iter().map(|row| softmax(row)).collect();
            for token in 0..rows[0].len() {
                let loss = -f64::from(composed.log_probabilities[token]);
                let average: f64 = weights.as_slice().iter().zip(&rows)
                    .map(|(w, row)| w * (log_sum_exp(row) - f64::from(row[token]))).sum();
                prop_assert!(loss <= average + 1e-4);
                prop_assert!((loss - average - composed.log_z).abs() < 1e-4);
            }
            // -log Z is the weighted divergence of the composition from its models.
            let q: Vec<f64> = composed.log_probabilities.iter().map(|&x| f64::from(x).exp()).collect();
            prop_assert!((q.iter().sum::<f64>() - 1.0).abs() < 1e-5);
            let divergence: f64 = weights.as_slice().iter().zip(&p).map(|(w, p)| {
                w * q.iter().zip(p).filter(|(q, _)| **q > 0.0).map(|(q, p)| q * (q / f64::from(*p)).ln()).sum::<f64>()
            }).sum();
            prop_assert!((divergence + composed.log_z).abs() < 1e-3 * (1.0 + divergence));
        }

        #[test]
        fn one_model_with_all_the_weight_is_that_model(case in models()) {
            let (rows, _) = case;
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let mut weights = vec![0.0; rows.len()];
            weights[0] = 2.0;
            let composed = compose(&rows, &Weights::new(&weights).unwrap()).unwrap();
            prop_assert!(composed.log_z.abs() < 1e-9);
            for (a, b) in softmax(&composed.log_probabilities).iter().zip(softmax(rows[0])) {
                prop_assert!((a - b).abs() < 1e-5);
            }
            let mixed = mix(&rows, &Weights::new(&weights).unwrap()).unwrap();
            prop_assert!(mixed.iter().zip(&composed.log_probabilities).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        let two = Weights::uniform(2).unwrap();
        let never = f32::NEG_INFINITY;
        assert_eq!(compose(&[&[0.0, never], &[never, 0.0]], &two), Err(GuidanceError::Disjoint));
        assert!(compose(&[&[0.0], &[0.0, 1.0]], &two).is_err());
        assert!(compose(&[&[0.0]], &two).is_err());
        assert!(compose(&[&[f32::NAN], &[0.0]], &two).is_err());
        assert!(compose(&[&[f32::NAN], &[0.0]], &Weights::new(&[0.0, 1.0]).unwrap()).is_ok());
        assert!(Weights::new(&[0.0, 0.0]).is_err());
        assert!(Weights::new(&[1.0, -0.1]).is_err());
        assert!(Weights::new(&[f64::NAN]).is_err());
        assert!(Weights::uniform(usize::MAX).is_err());
    }
}
