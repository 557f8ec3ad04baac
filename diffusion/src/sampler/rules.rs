//! Which of the open positions are decided in a step.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::SamplerError;
use crate::random::{shuffle, uniform};
use crate::schedule::DiscreteSchedule;

/// How positions are chosen. Every rule looks at the distributions of the positions, never at the tokens that were drawn from them:
/// that is why deciding one position a step at temperature 1 draws from the exact joint distribution of an exact network.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CommitRule {
    /// The largest probability of the top token first (LLaDA, arXiv 2502.09992, low-confidence remasking).
    #[default]
    Confidence,
    /// The largest gap between the first and the second token first.
    Margin,
    /// The lowest entropy first.
    Entropy,
    /// Positions in random order.
    Random,
    /// Everything at least this probable at once, at least one (Fast-dLLM, arXiv 2505.22618, section 3.3).
    Threshold {
        /// The probability, above 0 and at most 1.
        tau: f32,
    },
    /// By rising entropy, while the entropies of those strictly before sum to at most this (arXiv 2505.24857, EB-Sampler).
    EntropyBound {
        /// The bound (nats), at least 0.
        gamma: f32,
    },
    /// As `Confidence`; but a decided token is masked again with probability `min(eta, bound of the schedule)` a step, and as many
    /// more are decided, so that the sampler can take decisions back (ReMDM-cap, arXiv 2503.00307, section 4.1).
    Remasking {
        /// The largest probability of masking a decided token again, 0 to 1.
        eta: f32,
    },
    /// Each position on its own with the probability of the reverse process, `1 - s/t` in the linear schedule (MDLM).
    Ancestral,
}

/// How many positions a step decides, for the rules that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pacing {
    /// The same number each step, the remainder going to the first steps (LLaDA).
    #[default]
    Even,
    /// `floor(n (1 - s/t))` of the n open ones, all in the last step (Dream, arXiv 2508.15487); at least one, because a step that
    /// decides nothing would only be repeated.
    Schedule,
}

/// What the rules know of an open position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) position: usize,
    pub(super) confidence: f32,
    pub(super) margin: f32,
    pub(super) entropy: f32,
}

/// Where a block is in its course: `step` of `steps`, and the times before and after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Course {
    pub(super) steps_left: u32,
    pub(super) before: f64,
    pub(super) after: f64,
    pub(super) schedule: DiscreteSchedule,
}

impl CommitRule {
    /// Refuses parameters out of their bounds.
    pub fn check(&self) -> Result<(), SamplerError> {
        match *self {
            Self::Threshold { tau } if !(tau > 0.0 && tau <= 1.0) => {
                Err(SamplerError::parameter("tau", tau, "above 0 and at most 1"))
            }
            Self::EntropyBound { gamma } if !(gamma >= 0.0 && gamma.is_finite()) => {
                Err(SamplerError::parameter("gamma", gamma, "finite and at least 0"))
            }
            Self::Remasking { eta } if !(0.0..=1.0).contains(&eta) => {
                Err(SamplerError::parameter("eta", eta, "0 to 1"))
            }
            _ => Ok(()),
        }
    }

    /// Chooses the positions to decide now, in rising order; none only for `Ancestral`. `extra` are decided on top of the pace.
    pub(super) fn choose(
        self,
        candidates: &mut [Candidate],
        pacing: Pacing,
        course: Course,
        extra: usize,
        rng: &mut dyn Rng,
    ) -> Vec<usize> {
        let pace = pacing.count(candidates.len(), course).saturating_add(extra).min(candidates.len());
        let count = match self {
            Self::Confidence | Self::Remasking { .. } => {
                order(candidates, |c| -c.confidence);
                pace
            }
            Self::Margin => {
                order(candidates, |c| -c.margin);
                pace
            }
            Self::Entropy => {
                order(candidates, |c| c.entropy);
                pace
            }
            Self::Random => {
                shuffle(rng, candidates);
                pace
            }
            // The two adaptive rules finish within the steps: they never decide fewer than an even split would.
            Self::Threshold { tau } => {
                order(candidates, |c| -c.confidence);
                let sure = candidates.iter().take_while(|c| c.confidence >= tau).count();
                sure.max(Pacing::Even.count(candidates.len(), course))
            }
            Self::EntropyBound { gamma } => {
                order(candidates, |c| c.entropy);
                let mut sum = 0.0;
                let within = candidates.iter().take_while(|c| {
                    let accepted = sum <= gamma;
                    sum += c.entropy;
                    accepted
                });
                within.count().max(Pacing::Even.count(candidates.len(), course))
            }
            Self::Ancestral => {
                let stay =
                    if course.steps_left <= 1 { 0.0 } else { course.schedule.stay_masked(course.after, course.before) };
                // Drawn in order of position, so that the seed alone decides.
                return candidates.iter().filter(|_| uniform(rng) >= stay).map(|c| c.position).collect();
            }
        };
        let mut chosen: Vec<usize> = candidates.iter().take(count).map(|c| c.position).collect();
        chosen.sort_unstable();
        chosen
    }
}

impl Pacing {
    /// Positions to decide of `open`, at least one of some and all in the last step.
    fn count(self, open: usize, course: Course) -> usize {
        let count = match self {
            _ if course.steps_left <= 1 => open,
            Self::Even => open.div_ceil(course.steps_left as usize),
            Self::Schedule => {
                (open as f64 * (1.0 - course.schedule.stay_masked(course.after, course.before))).floor() as usize
            }
        };
        count.clamp(1.min(open), open)
    }
}

/// Sorts by a key, equals by position, so that the order is a function of the logits alone.
fn order(candidates: &mut [Candidate], key: impl Fn(&Candidate) -> f32) {
    candidates.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.position.cmp(&b.position)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;

    fn candidates() -> Vec<Candidate> {
        let make = |position, confidence, margin, entropy| Candidate { position, confidence, margin, entropy };
        vec![make(3, 0.95, 0.1, 0.30), make(4, 0.90, 0.7, 0.05), make(7, 0.40, 0.2, 0.60), make(9, 0.92, 0.3, 0.04)]
    }

    fn choose(rule: CommitRule, pacing: Pacing, steps_left: u32, before: f64, after: f64) -> Vec<usize> {
        let course = Course { steps_left, before, after, schedule: DiscreteSchedule::Linear };
        rule.choose(&mut candidates(), pacing, course, 0, &mut seeded(1))
    }

    #[test]
    fn each_rule_takes_what_it_prefers() {
        let even = |rule, steps| choose(rule, Pacing::Even, steps, 1.0, 0.5);
        assert_eq!(even(CommitRule::Confidence, 4), [3]);
        assert_eq!(even(CommitRule::Confidence, 2), [3, 9]);
        assert_eq!(even(CommitRule::Margin, 4), [4]);
        assert_eq!(even(CommitRule::Entropy, 4), [9]);
        assert_eq!(even(CommitRule::Threshold { tau: 0.9 }, 100), [3, 4, 9]);
        assert_eq!(even(CommitRule::Threshold { tau: 0.99 }, 100), [3]);
        // Sums of strictly earlier entropies: 0, 0.04, 0.09, 0.39.
        assert_eq!(even(CommitRule::EntropyBound { gamma: 0.1 }, 100), [3, 4, 9]);
        assert_eq!(even(CommitRule::EntropyBound { gamma: 0.05 }, 100), [4, 9]);
        assert_eq!(even(CommitRule::EntropyBound { gamma: 0.0 }, 100), [9]);
        assert_eq!(even(CommitRule::Random, 2).len(), 2);
    }

    #[test]
    fn paces_follow_llada_and_dream() {
        let counts = |pacing: Pacing, open: usize, steps: u32| {
            let mut left = open;
            let mut counts = Vec::new();
            for step in 0..steps {
                let time = |i: u32| 1.0 - f64::from(i) / f64::from(steps);
                let course = Course {
                    steps_left: steps - step,
                    before: time(step),
                    after: time(step + 1),
                    schedule: DiscreteSchedule::Linear,
                };
                counts.push(pacing.count(left, course));
                left -= counts[counts.len() - 1];
            }
            counts
        };
        assert_eq!(counts(Pacing::Even, 10, 4), [3, 3, 2, 2]);
        assert_eq!(counts(Pacing::Even, 2, 4), [1, 1, 0, 0]);
        // floor(10 / 4), floor(8 / 3), floor(6 / 2), all.
        assert_eq!(counts(Pacing::Schedule, 10, 4), [2, 2, 3, 3]);
    }

    #[test]
    fn the_last_step_decides_everything() {
        for rule in [CommitRule::Confidence, CommitRule::Ancestral, CommitRule::Threshold { tau: 1.0 }] {
            assert_eq!(choose(rule, Pacing::Schedule, 1, 0.01, 0.0), [3, 4, 7, 9]);
        }
    }

    #[test]
    fn ancestral_positions_open_at_the_rate_of_the_schedule() {
        let course = Course { steps_left: 9, before: 0.8, after: 0.6, schedule: DiscreteSchedule::Linear };
        let mut rng = seeded(3);
        let total: usize = (0..20_000)
            .map(|_| CommitRule::Ancestral.choose(&mut candidates(), Pacing::Even, course, 0, &mut rng).len())
            .sum();
        // 80,000 draws at 1 - 0.6/0.8 = 0.25; four standard errors are 0.0061.
        assert!((total as f64 / 80_000.0 - 0.25).abs() < 0.0062);
    }
}
