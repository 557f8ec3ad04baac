//! Signals of one distribution, and their means over what a sampler decided.

use serde::{Deserialize, Serialize};

use crate::sampler::TokenTrace;

/// Gini impurity `1 - sum p^2`: the chance that two draws differ; also the residual that the model expects of itself.
pub fn gini(probabilities: &[f32]) -> f64 {
    1.0 - probabilities.iter().map(|&p| f64::from(p).powi(2)).sum::<f64>()
}

/// Means over decided tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Signals {
    /// Tokens that were averaged.
    pub tokens: usize,
    /// Mean entropy at the decision (nats): ambiguity.
    pub entropy: f64,
    /// Mean negative log-probability of the tokens (nats).
    pub loss: f64,
    /// Mean residual `1 - p(token)`.
    pub residual: f64,
    /// Mean surprise ratio of the tokens that have one; 1 when there are none.
    pub surprise: f64,
    /// Largest entropy of a token (nats).
    pub entropy_max: f64,
}

impl Signals {
    /// Averages traces; zeros, and a surprise of 1, for none.
    pub fn of<'a>(traces: impl IntoIterator<Item = &'a TokenTrace>) -> Self {
        let mut out = Self::default();
        let (mut surprise, mut surprises) = (0.0, 0_usize);
        for trace in traces {
            out.tokens += 1;
            out.entropy += f64::from(trace.entropy);
            out.loss -= f64::from(trace.log_probability);
            out.residual += f64::from(trace.residual);
            out.entropy_max = out.entropy_max.max(f64::from(trace.entropy));
            if let Some(ratio) = trace.surprise {
                surprise += f64::from(ratio);
                surprises += 1;
            }
        }
        let n = out.tokens.max(1) as f64;
        out.entropy /= n;
        out.loss /= n;
        out.residual /= n;
        out.surprise = if surprises == 0 { 1.0 } else { surprise / surprises as f64 };
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_means_and_absent_surprise_is_one() {
        let trace = |entropy, surprise| TokenTrace {
            position: 0,
            token: 0,
            step: 0,
            confidence: 0.5,
            log_probability: -0.5_f32.ln().abs(),
            margin: 0.0,
            entropy,
            mask_rate: 1.0,
            residual: 0.5,
            surprise,
        };
        let signals = Signals::of(&[trace(1.0, None), trace(2.0, Some(3.0))]);
        assert!((signals.entropy - 1.5).abs() < 1e-9 && (signals.entropy_max - 2.0).abs() < 1e-9);
        assert!((signals.surprise - 3.0).abs() < 1e-9 && (signals.residual - 0.5).abs() < 1e-9);
        assert!((signals.loss - 2.0_f64.ln()).abs() < 1e-6);
        assert!((Signals::of(&[]).surprise - 1.0).abs() < 1e-9);
        assert!((gini(&[0.5, 0.5, 0.0]) - 0.5).abs() < 1e-9);
    }
}
