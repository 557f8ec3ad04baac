//! Draws one token from a row of logits: temperature, then top-k, then top-p.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::SamplerError;
use crate::numeric::argmax;
use crate::random::categorical;

/// How a token is drawn from a row. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    /// Logits are divided by it; 0 takes the most probable token and draws nothing.
    pub temperature: f32,
    /// Only this many of the most probable tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the fewest tokens stay whose probabilities sum to at least this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
}

impl Default for Draw {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0 }
    }
}

impl Draw {
    /// Draws from the unchanged distribution.
    pub const PLAIN: Self = Self { temperature: 1.0, top_k: 0, top_p: 1.0 };

    /// Refuses a negative or non-finite temperature and a top-p outside (0, 1].
    pub fn check(&self) -> Result<(), SamplerError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(SamplerError::parameter("temperature", self.temperature, "finite and at least 0"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplerError::parameter("top_p", self.top_p, "above 0 and at most 1"));
        }
        Ok(())
    }

    /// The probabilities that tokens are drawn with; `banned` gets none. All zero for a row that is no distribution.
    ///
    /// # Shapes
    /// `row: [vocab]` logits, result `[vocab]`.
    pub fn probabilities(&self, row: &[f32], banned: Option<u32>) -> Vec<f32> {
        let banned = banned.map_or(usize::MAX, |token| token as usize);
        let mut logits: Vec<f32> = row.to_vec();
        if let Some(logit) = logits.get_mut(banned) {
            *logit = f32::NEG_INFINITY;
        }
        let Some(top) = argmax(&logits) else { return vec![0.0; row.len()] };
        if self.temperature <= 0.0 {
            let mut certain = vec![0.0; row.len()];
            certain[top as usize] = 1.0;
            return certain;
        }
        let max = logits[top as usize];
        let mut p: Vec<f32> = logits.iter().map(|&x| ((x - max) / self.temperature).exp()).collect();
        self.keep_likeliest(&mut p);
        let sum: f64 = p.iter().map(|&x| f64::from(x)).sum();
        for x in &mut p {
            *x = (f64::from(*x) / sum) as f32;
        }
        p
    }

    /// Draws a token; None for a row that is no distribution.
    pub fn token(&self, row: &[f32], banned: Option<u32>, rng: &mut dyn Rng) -> Option<u32> {
        categorical(rng, &self.probabilities(row, banned)).map(|token| token as u32)
    }

    /// Zeroes what top-k and top-p leave out. Ties are broken by the lower token id.
    fn keep_likeliest(&self, p: &mut [f32]) {
        let limited = self.top_k > 0 && self.top_k < p.len();
        if !limited && self.top_p >= 1.0 {
            return;
        }
        let mut order: Vec<u32> = (0..p.len() as u32).filter(|&token| p[token as usize] > 0.0).collect();
        let by_probability = |a: &u32, b: &u32| p[*b as usize].total_cmp(&p[*a as usize]).then(a.cmp(b));
        if limited && self.top_k < order.len() {
            order.select_nth_unstable_by(self.top_k - 1, by_probability);
            order.truncate(self.top_k);
        }
        order.sort_unstable_by(by_probability);
        if self.top_p < 1.0 {
            let total: f64 = order.iter().map(|&token| f64::from(p[token as usize])).sum();
            let mut mass = 0.0;
            let needed = order.iter().position(|&token| {
                mass += f64::from(p[token as usize]);
                mass >= f64::from(self.top_p) * total
            });
            order.truncate(needed.map_or(order.len(), |index| index + 1));
        }
        let kept: Vec<(u32, f32)> = order.iter().map(|&token| (token, p[token as usize])).collect();
        p.fill(0.0);
        for (token, probability) in kept {
            p[token as usize] = probability;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::seeded;

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        let row = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let check = |draw: Draw, banned, expected: [f32; 4]| {
            let p = draw.probabilities(&row, banned);
            assert!(p.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{draw:?}: {p:?}");
        };
        check(Draw::PLAIN, None, [0.5, 0.3, 0.15, 0.05]);
        check(Draw { top_k: 2, ..Draw::PLAIN }, None, [0.625, 0.375, 0.0, 0.0]);
        check(Draw { top_p: 0.7, ..Draw::PLAIN }, None, [0.625, 0.375, 0.0, 0.0]);
        check(Draw { top_p: 0.4, ..Draw::PLAIN }, None, [1.0, 0.0, 0.0, 0.0]);
        check(Draw::PLAIN, Some(0), [0.0, 0.6, 0.3, 0.1]);
        check(Draw::default(), Some(0), [0.0, 1.0, 0.0, 0.0]);
        // Temperature 1/2 squares the probabilities.
        let squares: f32 = 0.25 + 0.09 + 0.0225 + 0.0025;
        check(Draw { temperature: 0.5, ..Draw::PLAIN }, None, [0.25, 0.09, 0.0225, 0.0025].map(|x| x / squares));
    }

    proptest! {
        #[test]
        fn a_draw_is_never_banned_nor_impossible(
            row in prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -9.0_f32..9.0], 1..30),
            banned in 0_u32..30, temperature in 0.0_f32..2.0, top_k in 0_usize..5, top_p in 0.05_f32..=1.0, seed: u64,
        ) {
            let draw = Draw { temperature, top_k, top_p };
            match draw.token(&row, Some(banned), &mut seeded(seed)) {
                Some(token) => prop_assert!(token != banned && row[token as usize].is_finite()),
                None => prop_assert!(row.iter().enumerate().all(|(i, x)| i == banned as usize || !x.is_finite())),
            }
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        for draw in [
            Draw { temperature: -0.1, ..Draw::PLAIN },
            Draw { temperature: f32::NAN, ..Draw::PLAIN },
            Draw { top_p: 0.0, ..Draw::PLAIN },
            Draw { top_p: 1.1, ..Draw::PLAIN },
        ] {
            assert!(draw.check().is_err(), "{draw:?}");
        }
    }
}
