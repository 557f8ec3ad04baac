//! Evidence that grows by betting: a nonnegative process that, when nothing is wrong, ever reaches 1/alpha with
//! probability at most alpha (Ville's inequality; Shafer and Vovk, *Game-Theoretic Foundations*, 2019).
//!
//! A plain product of bets that lost for a year cannot notice what changes today. So the capital is spread over starting
//! times: start j gets the share 1/(j(j+1)) of the initial capital, and what has not started is cash. The sum of all is
//! still a fair game, and a change at time t costs only about 2 ln t nats.

use serde::{Deserialize, Serialize};

/// A mixture of betting strategies over a mixture of starting times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EProcess {
    /// Running capital of each strategy.
    capital: Vec<f64>,
    /// Bets made.
    bets: u64,
    /// The largest wealth so far: this is what Ville's inequality is about.
    peak: f64,
}

impl EProcess {
    /// Starts with wealth 1, spread evenly over this many strategies (at least one).
    pub fn new(strategies: usize) -> Self {
        Self { capital: vec![0.0; strategies.max(1)], bets: 0, peak: 1.0 }
    }

    /// Multiplies each strategy's capital by what its bet paid. A payoff's expectation must be at most 1 when nothing is
    /// wrong; one that is not finite or negative counts as 0. Missing payoffs count as 1.
    pub fn bet(&mut self, payoffs: &[f64]) {
        let share = Self::started(self.bets + 1) - Self::started(self.bets);
        let each = share / self.capital.len() as f64;
        for (index, capital) in self.capital.iter_mut().enumerate() {
            let payoff = payoffs.get(index).copied().unwrap_or(1.0);
            let payoff = if payoff.is_finite() { payoff.max(0.0) } else { 0.0 };
            // Far beyond every threshold in use; the cap keeps the JSON form finite.
            *capital = ((*capital + each) * payoff).min(1e100);
        }
        self.bets += 1;
        self.peak = self.peak.max(self.wealth());
    }

    /// The share of the initial capital that has entered the game after a count of bets: sum of 1/(j(j+1)).
    fn started(bets: u64) -> f64 {
        // Written so that the shares sum to 1 without a rounding residue.
        let bets = bets as f64;
        bets / (bets + 1.0)
    }

    /// The present wealth: 1 at the start; large means that the null hypothesis is hard to believe.
    pub fn wealth(&self) -> f64 {
        (1.0 - Self::started(self.bets)) + self.capital.iter().sum::<f64>()
    }

    /// The largest wealth so far.
    pub const fn peak(&self) -> f64 {
        self.peak
    }

    /// Bets made so far.
    pub const fn bets(&self) -> u64 {
        self.bets
    }
}

/// Fractions of the capital that are staked on a bounded difference; a grid instead of one tuned stake, so that small
/// steady gains and large rare ones both pay.
pub const STAKES: [f64; 5] = [0.06, 0.12, 0.25, 0.5, 0.9];

/// Tests whether paired differences (gain in nats a token, one per text) are above 0 on average.
///
/// A difference is cut to `[-clip, clip]` and staked on: `1 + stake * d / clip` has expectation at most 1 when the mean of
/// the cut difference given the past is at most 0 (Waudby-Smith and Ramdas, "Estimating means of bounded random variables
/// by betting", JRSS-B 2024).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GainTest {
    process: EProcess,
    clip: f64,
    sign: f64,
}

impl GainTest {
    /// Collects evidence that the gain is above 0.
    pub fn for_gain(clip: f64) -> Self {
        Self { process: EProcess::new(STAKES.len()), clip: clip.max(1e-6), sign: 1.0 }
    }

    /// Collects evidence that the gain is below 0.
    pub fn for_harm(clip: f64) -> Self {
        Self { sign: -1.0, ..Self::for_gain(clip) }
    }

    /// Takes one difference; one that is not a number is left out.
    pub fn observe(&mut self, gain: f64) {
        if gain.is_nan() {
            return;
        }
        let x = self.sign * (gain / self.clip).clamp(-1.0, 1.0);
        self.process.bet(&STAKES.map(|stake| 1.0 + stake * x));
    }

    /// Whether the evidence was ever as strong as 1/alpha.
    pub fn holds_at(&self, alpha: f64) -> bool {
        self.process.peak() >= 1.0 / alpha
    }

    /// The evidence.
    pub const fn process(&self) -> &EProcess {
        &self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use proptest::prelude::*;

    fn alarms(mean: f64, texts: usize, runs: u64, make: fn(f64) -> GainTest) -> u64 {
        (0..runs)
            .filter(|run| {
                let mut random = Random::stream(11, *run);
                let mut test = make(0.25);
                (0..texts).any(|_| {
                    test.observe(mean + 0.1 * random.normal());
                    test.holds_at(0.05)
                })
            })
            .count() as u64
    }

    #[test]
    fn useless_adapters_pass_the_shadow_in_at_most_alpha_of_the_runs() {
        // 5% of 1,000 plus three standard deviations is 71.
        let passed = alarms(0.0, 400, 1_000, GainTest::for_gain);
        assert!(passed <= 71, "{passed}");
    }

    #[test]
    fn a_gain_of_half_a_standard_deviation_is_found_within_sixty_texts() {
        let found = alarms(0.05, 60, 400, GainTest::for_gain);
        assert!(found >= 320, "power {}", found as f64 / 400.0);
    }

    #[test]
    fn harm_is_found_and_gain_is_not_called_harm() {
        assert!(alarms(-0.05, 80, 200, GainTest::for_harm) >= 160);
        assert!(alarms(0.05, 400, 200, GainTest::for_harm) <= 2);
    }

    #[test]
    fn harm_that_starts_after_a_long_good_time_is_still_found() {
        let mut random = Random::new(5);
        let mut test = GainTest::for_harm(0.25);
        (0..2_000).for_each(|_| test.observe(0.05 + 0.1 * random.normal()));
        assert!(!test.holds_at(0.05));
        (0..150).for_each(|_| test.observe(-0.1 + 0.1 * random.normal()));
        assert!(test.holds_at(0.05), "wealth {}", test.process().wealth());
    }

    proptest! {
        #[test]
        fn fair_payoffs_of_one_keep_the_wealth_at_one(bets in 0_usize..500) {
            let mut process = EProcess::new(3);
            (0..bets).for_each(|_| process.bet(&[1.0, 1.0, 1.0]));
            prop_assert!((process.wealth() - 1.0).abs() < 1e-9);
        }

        #[test]
        fn wealth_stays_finite_and_nonnegative_whatever_is_bet(payoffs in prop::collection::vec(any::<f64>(), 1..200)) {
            let mut process = EProcess::new(1);
            for payoff in payoffs {
                process.bet(&[payoff]);
                prop_assert!(process.wealth().is_finite() && process.wealth() >= 0.0);
            }
        }
    }
}
