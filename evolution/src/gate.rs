//! Judges a trained adapter on paired evidence, and says how the validation texts may be used again.
//!
//! All conditions must hold, each tested at the level of this use, so that the whole test has at most that level
//! (intersection-union). Conditions: gain over the base above epsilon, gain over a placebo adapter above 0, gain over
//! retrieval above 0 (one-sided lower bounds; see below), forgetting at most the limit (upper bound), no canary extracted, and the Ladder: the
//! gain exceeds the last accepted one by a fixed step (Blum and Hardt, "The Ladder", ICML 2015). Use number r of the
//! held-out texts is tested at alpha / ((r+1)(r+2)), which sums to alpha over all reuses.
//!
//! An answer is written with recalled memories before it, whether or not an adapter serves. So "beats retrieval" compares the
//! two things that can be served: retrieval with the adapter against retrieval without it, on the same retrieved text. An
//! outcome without that arm is held to more: the adapter alone must beat retrieval.

use std::collections::BTreeMap;

use mneme_engine_api::TrainOutcome;
use serde::{Deserialize, Serialize};

use crate::stats::{Estimate, paired};

/// Nats in a bit.
pub const NATS_PER_BIT: f64 = std::f64::consts::LN_2;

/// Bounds of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatePolicy {
    /// Probability of accepting a useless adapter, over all uses of the same held-out texts.
    pub alpha: f64,
    /// The gain's lower bound must exceed this (nats a token).
    pub gain_min: f64,
    /// The upper bound of forgetting must not exceed this (bits a token).
    pub forgetting_max_bits: f64,
    /// A gain must exceed the last accepted one by this (nats a token).
    pub ladder_step: f64,
    /// Held-out texts that are needed at least: below, a bound means little.
    pub held_out_min: usize,
    /// Guard texts that are needed at least.
    pub guard_min: usize,
    /// Whether evidence from a placebo adapter must be there.
    pub placebo_required: bool,
    /// Bisections of the scale before the adapter is rejected.
    pub scale_tries_max: u32,
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            gain_min: 0.002,
            forgetting_max_bits: 0.08,
            ladder_step: 0.005,
            held_out_min: 8,
            guard_min: 8,
            placebo_required: true,
            scale_tries_max: 4,
        }
    }
}

/// What is known before this judgement.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Past {
    /// How often the most used of the held-out texts has been judged on before.
    pub uses: u32,
    /// The gain of the adapter that was last accepted in this context (nats a token), 0 without one.
    pub best_gain: f64,
    /// The largest scale that is known to forget little enough.
    pub scale_low: f64,
    /// The smallest scale that is known to forget too much; 0 when none is.
    pub scale_high: f64,
    /// The scale of the adapter now.
    pub scale: f64,
    /// Bisections so far.
    pub scale_tries: u32,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// All conditions hold.
    Accept,
    /// Only forgetting fails (or the scale that cured it gains too little): try this factor.
    Scale {
        /// The new scale of the update, 0 to 1, relative to the trained one.
        factor: f64,
    },
    /// It is not good enough.
    Reject,
}

/// The decision with everything it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What to do.
    pub decision: Decision,
    /// Conditions that failed, in words; empty on acceptance.
    pub reasons: Vec<String>,
    /// Gain over the base on held-out text (nats a token).
    pub gain: Option<Estimate>,
    /// Gain over the placebo adapter (nats a token).
    pub over_placebo: Option<Estimate>,
    /// Gain over retrieval: with the same retrieved text before both (nats a token).
    pub over_retrieval: Option<Estimate>,
    /// Gain over the adapter that it started from (nats a token).
    #[serde(default)]
    pub over_parent: Option<Estimate>,
    /// Loss on guard text added by the adapter (nats a token).
    pub forgetting: Option<Estimate>,
    /// The level at which this use was tested.
    pub alpha: f64,
    /// Whether the gain failed against the Ladder or the base, and not only on safety: a plateau.
    pub plateau: bool,
}

impl Verdict {
    /// All numbers by name, for the log. Gains are nats a token, forgetting bits a token.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let mut numbers = BTreeMap::from([("alpha".to_owned(), self.alpha)]);
        let estimates = [
            ("gain_nats", &self.gain, 1.0),
            ("over_placebo_nats", &self.over_placebo, 1.0),
            ("over_retrieval_nats", &self.over_retrieval, 1.0),
            ("over_parent_nats", &self.over_parent, 1.0),
            ("forgetting_bits", &self.forgetting, 1.0 / NATS_PER_BIT),
        ];
        for (name, estimate, unit) in estimates {
            if let Some(e) = estimate {
                numbers.insert(name.to_owned(), e.mean * unit);
                numbers.insert(format!("{name}_lower"), e.lower * unit);
                numbers.insert(format!("{name}_upper"), e.upper * unit);
                numbers.insert(format!("{name}_texts"), e.n as f64);
            }
        }
        numbers
    }
}

/// Evidence that cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Two lists that are paired have different lengths.
    #[error("outcome has {found} values of {list}, its pairs have {expected}")]
    Lengths {
        /// Which list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// What it is paired with.
        expected: usize,
    },
    /// A loss or a time is not a finite number.
    #[error("outcome has a value of {list} that is not a finite number")]
    NotFinite {
        /// Which list.
        list: &'static str,
    },
}

/// Checks that an outcome is well-formed: paired lists are equally long (placebo and retrieval may be empty) and all
/// numbers are finite. Everything else that takes an outcome relies on it.
pub fn check(outcome: &TrainOutcome) -> Result<(), EvidenceError> {
    let held_out = outcome.held_out_base.len();
    let full =
        [("held_out_adapted", outcome.held_out_adapted.len()), ("held_out_tokens", outcome.held_out_tokens.len())];
    let optional = [
        ("held_out_placebo", outcome.held_out_placebo.len()),
        ("held_out_retrieval", outcome.held_out_retrieval.len()),
        ("held_out_retrieval_adapted", outcome.held_out_retrieval_adapted.len()),
        ("held_out_parent", outcome.held_out_parent.len()),
    ];
    let wrong_full = full.into_iter().find(|(_, found)| *found != held_out).map(|pair| (pair, held_out));
    let wrong_optional =
        optional.into_iter().find(|(_, found)| *found != 0 && *found != held_out).map(|pair| (pair, held_out));
    let guard = outcome.guard_base.len();
    let wrong_guard =
        Some(("guard_adapted", outcome.guard_adapted.len())).filter(|(_, n)| *n != guard).map(|pair| (pair, guard));
    if let Some(((list, found), expected)) = wrong_full.or(wrong_optional).or(wrong_guard) {
        return Err(EvidenceError::Lengths { list, found, expected });
    }
    let lists = [
        ("held_out_base", &outcome.held_out_base),
        ("held_out_adapted", &outcome.held_out_adapted),
        ("held_out_placebo", &outcome.held_out_placebo),
        ("held_out_retrieval", &outcome.held_out_retrieval),
        ("held_out_retrieval_adapted", &outcome.held_out_retrieval_adapted),
        ("held_out_parent", &outcome.held_out_parent),
        ("guard_base", &outcome.guard_base),
        ("guard_adapted", &outcome.guard_adapted),
    ];
    if let Some((list, _)) = lists.into_iter().find(|(_, values)| values.iter().any(|value| !value.is_finite())) {
        return Err(EvidenceError::NotFinite { list });
    }
    if !outcome.cpu_seconds.is_finite() || outcome.cpu_seconds < 0.0 {
        return Err(EvidenceError::NotFinite { list: "cpu_seconds" });
    }
    Ok(())
}

/// The level of use number `uses` (0 for the first) of the same held-out texts.
pub fn spent_alpha(alpha: f64, uses: u32) -> f64 {
    let r = f64::from(uses);
    alpha / ((r + 1.0) * (r + 2.0))
}

/// Judges an outcome that passed [`check`]. The same outcome, past and seed give the same verdict.
pub fn judge(outcome: &TrainOutcome, past: &Past, policy: &GatePolicy, seed: u64) -> Verdict {
    let alpha = spent_alpha(policy.alpha, past.uses);
    let tokens: Vec<f64> = outcome.held_out_tokens.iter().map(|n| f64::from(*n)).collect();
    let estimate = |worse: &[f32], better: &[f32], weights: &[f64], purpose: u64| {
        let differences: Vec<f64> = worse.iter().zip(better).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
        paired(&differences, weights, alpha, seed ^ purpose)
    };
    let adapted = &outcome.held_out_adapted;
    let gain = estimate(&outcome.held_out_base, adapted, &tokens, 1);
    let over_placebo = estimate(&outcome.held_out_placebo, adapted, &tokens, 2);
    let with_retrieval = &outcome.held_out_retrieval_adapted;
    let served = if with_retrieval.is_empty() { adapted } else { with_retrieval };
    let over_retrieval = estimate(&outcome.held_out_retrieval, served, &tokens, 3);
    let over_parent = estimate(&outcome.held_out_parent, adapted, &tokens, 5);
    let guard_weights = vec![1.0; outcome.guard_base.len()];
    let forgetting = estimate(&outcome.guard_adapted, &outcome.guard_base, &guard_weights, 4);

    let arms = Comparisons { gain, over_placebo, over_retrieval, over_parent };
    let weak = gain_failures(&arms, past, policy, outcome);
    let forgets = forgetting_failure(forgetting, policy);
    let leaks = (outcome.canaries_extracted > 0).then(|| {
        format!("{} rare strings of the training text come out more often than before", outcome.canaries_extracted)
    });

    let decision = decide(weak.is_empty() && leaks.is_none(), leaks.is_some(), forgets.is_none(), past, policy);
    let plateau = !weak.is_empty() && (past.best_gain > 0.0 || over_parent.is_some());
    let mut reasons = weak;
    reasons.extend(forgets);
    reasons.extend(leaks);
    Verdict { decision, reasons, gain, over_placebo, over_retrieval, over_parent, forgetting, alpha, plateau }
}

/// The paired comparisons of one outcome.
struct Comparisons {
    gain: Option<Estimate>,
    over_placebo: Option<Estimate>,
    over_retrieval: Option<Estimate>,
    over_parent: Option<Estimate>,
}

/// The Ladder: against the adapter that it started from, paired on the same texts; without one, against the gain that the
/// last accepted adapter had on its own.
fn ladder_failure(gain: Estimate, over_parent: Option<Estimate>, past: &Past, policy: &GatePolicy) -> Option<String> {
    match over_parent {
        Some(over) if over.mean < policy.ladder_step || over.lower <= 0.0 => Some(format!(
            "it gains {:.4} over the adapter that it started from, lower bound {:.4}; needed are {:.4} and more than 0",
            over.mean, over.lower, policy.ladder_step
        )),
        None if past.best_gain > 0.0 && gain.mean < past.best_gain + policy.ladder_step => Some(format!(
            "the gain of {:.4} is not {:.4} better than the {:.4} of the last accepted adapter",
            gain.mean, policy.ladder_step, past.best_gain
        )),
        _ => None,
    }
}

fn gain_failures(arms: &Comparisons, past: &Past, policy: &GatePolicy, outcome: &TrainOutcome) -> Vec<String> {
    let Comparisons { gain, over_placebo, over_retrieval, over_parent } = *arms;
    let mut failures = Vec::new();
    match gain {
        Some(e) if e.n >= policy.held_out_min => {
            if e.lower <= policy.gain_min {
                failures.push(format!(
                    "the gain on held-out text is {:.4} nats a token with lower bound {:.4}, it must exceed {:.4}",
                    e.mean, e.lower, policy.gain_min
                ));
            }
            failures.extend(ladder_failure(e, over_parent, past, policy));
        }
        _ => failures.push(format!(
            "{} held-out texts are too few, at least {} are needed",
            outcome.held_out_base.len(),
            policy.held_out_min
        )),
    }
    match over_placebo {
        Some(e) if e.lower <= 0.0 => failures.push(format!(
            "it does not beat an adapter trained on somebody else's text: {:.4}, lower bound {:.4}",
            e.mean, e.lower
        )),
        None if policy.placebo_required => failures.push("the placebo control is missing".to_owned()),
        _ => {}
    }
    if let Some(e) = over_retrieval.filter(|e| e.lower <= 0.0) {
        failures.push(format!("it adds nothing to retrieval: {:.4}, lower bound {:.4}", e.mean, e.lower));
    }
    failures
}

fn forgetting_failure(forgetting: Option<Estimate>, policy: &GatePolicy) -> Option<String> {
    match forgetting {
        Some(e) if e.n < policy.guard_min => {
            Some(format!("{} guard texts are too few, at least {} are needed", e.n, policy.guard_min))
        }
        Some(e) if e.upper / NATS_PER_BIT > policy.forgetting_max_bits => Some(format!(
            "it forgets {:.4} bits a token (upper bound {:.4}), allowed are {:.2}",
            e.mean / NATS_PER_BIT,
            e.upper / NATS_PER_BIT,
            policy.forgetting_max_bits
        )),
        Some(_) => None,
        None => Some("guard texts are missing".to_owned()),
    }
}

/// What an adapter that was not trained here forgets, on guard texts read by the base and by it, and why that is too much.
pub fn judge_forgetting(guard: &[(f32, f32)], policy: &GatePolicy, seed: u64) -> (Option<Estimate>, Option<String>) {
    let added: Vec<f64> = guard.iter().map(|(base, adapted)| f64::from(*adapted) - f64::from(*base)).collect();
    let forgetting = paired(&added, &vec![1.0; added.len()], spent_alpha(policy.alpha, 0), seed ^ 4);
    (forgetting, forgetting_failure(forgetting, policy))
}

/// Bisects the scale between the largest that keeps and the smallest that forgets.
fn decide(gains: bool, is_leaky: bool, keeps: bool, past: &Past, policy: &GatePolicy) -> Decision {
    let may_scale = past.scale_tries < policy.scale_tries_max && !is_leaky;
    match (gains, keeps) {
        (true, true) => Decision::Accept,
        // Too little gain at full scale, or at a scale that forgets too: no factor can cure it.
        (false | true, false) if !may_scale => Decision::Reject,
        (true, false) => Decision::Scale { factor: f64::midpoint(past.scale_low, past.scale) },
        // A smaller scale was tried because a larger one forgets; the best may lie between.
        (false, true) if may_scale && past.scale_high > past.scale => {
            Decision::Scale { factor: f64::midpoint(past.scale, past.scale_high) }
        }
        _ => Decision::Reject,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::random::Random;
    use mneme_base::{AdapterId, ContentHash};
    use mneme_engine_api::AdapterLevel;

    /// What an outcome is drawn from; gains and forgetting in nats a token.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Arms {
        pub(crate) gain: f64,
        pub(crate) placebo: f64,
        pub(crate) retrieval: f64,
        /// What retrieval and the adapter gain together beyond the better of the two.
        pub(crate) beside: f64,
        pub(crate) forgetting: f64,
        pub(crate) noise: f64,
        pub(crate) texts: usize,
    }

    pub(crate) const GOOD: Arms =
        Arms { gain: 0.08, placebo: 0.01, retrieval: 0.02, beside: 0.0, forgetting: 0.01, noise: 0.08, texts: 64 };

    pub(crate) fn outcome(world: Arms, seed: u64) -> TrainOutcome {
        let mut random = Random::stream(seed, 99);
        let mut draw = |mean: f64| (mean + world.noise * random.normal()) as f32;
        let base: Vec<f32> = (0..world.texts).map(|index| 3.0 + (index % 5) as f32 * 0.3).collect();
        let mut arm = |gain: f64| base.iter().map(|loss| loss - draw(gain)).collect::<Vec<f32>>();
        let (adapted, placebo, retrieval) = (arm(world.gain), arm(world.placebo), arm(world.retrieval));
        let both = arm(world.gain.max(world.retrieval) + world.beside);
        let guard_base: Vec<f32> = (0..32).map(|_| 3.0).collect();
        let guard_adapted = guard_base.iter().map(|loss| loss + draw(world.forgetting) * 0.5).collect();
        TrainOutcome {
            adapter: AdapterId::from_bytes([1; 16]),
            level: AdapterLevel::Lora,
            base_hash: ContentHash::of(b"base"),
            adapter_hash: ContentHash::of(&seed.to_le_bytes()),
            bytes: 1 << 20,
            parameters: 1_000,
            held_out_tokens: (0..world.texts).map(|index| 40 + (index as u32 % 7) * 30).collect(),
            held_out_base: base,
            held_out_adapted: adapted,
            held_out_placebo: placebo,
            held_out_retrieval: retrieval,
            held_out_retrieval_adapted: both,
            held_out_parent: Vec::new(),
            guard_base,
            guard_adapted,
            canaries_extracted: 0,
            cpu_seconds: 100.0,
        }
    }

    fn first() -> Past {
        Past { scale: 1.0, ..Past::default() }
    }

    fn accepted(world: Arms, runs: u64) -> f64 {
        let policy = GatePolicy::default();
        let accept = |seed: &u64| judge(&outcome(world, *seed), &first(), &policy, *seed).decision == Decision::Accept;
        (0..runs).filter(accept).count() as f64 / runs as f64
    }

    #[test]
    fn useless_and_placebo_adapters_are_accepted_in_at_most_five_percent() {
        // The first use of the texts is tested at 2.5%; 300 draws give a standard error of 1.3 points at 5%.
        let null = Arms { gain: 0.0, placebo: -0.1, retrieval: -0.1, ..GOOD };
        let placebo = Arms { gain: 0.05, placebo: 0.05, ..GOOD };
        let no_better_than_retrieval = Arms { gain: 0.05, retrieval: 0.05, ..GOOD };
        for world in [null, placebo, no_better_than_retrieval] {
            let rate = accepted(world, 300);
            assert!(rate <= 0.05, "{rate} with {world:?}");
        }
    }

    #[test]
    fn forgetful_adapters_are_accepted_in_at_most_five_percent() {
        // The guard differences are halved by the generator: 0.112 nats become 0.08 bits, the limit itself.
        let rate = accepted(Arms { forgetting: 2.0 * 0.08 * NATS_PER_BIT, ..GOOD }, 300);
        assert!(rate <= 0.05, "{rate}");
    }

    #[test]
    fn good_adapters_are_accepted_in_most_cases() {
        assert!(accepted(GOOD, 200) >= 0.9);
    }

    #[test]
    fn the_same_texts_used_ten_times_still_accept_useless_adapters_in_at_most_five_percent() {
        let policy = GatePolicy::default();
        let null = Arms { gain: policy.gain_min, placebo: -0.1, retrieval: -0.1, ..GOOD };
        let runs = 150;
        let fooled = (0..runs)
            .filter(|run| {
                (0..10_u32).any(|uses| {
                    let past = Past { uses, ..first() };
                    let seed = run * 100 + u64::from(uses);
                    judge(&outcome(null, seed), &past, &policy, seed).decision == Decision::Accept
                })
            })
            .count();
        // 5% of 150 plus two standard deviations.
        assert!(fooled <= 12, "{fooled} of {runs}");
    }

    #[test]
    fn forgetting_alone_is_bisected_and_a_weak_gain_is_rejected() {
        let forgetful = outcome(Arms { forgetting: 0.3, ..GOOD }, 1);
        let policy = GatePolicy::default();
        assert_eq!(judge(&forgetful, &first(), &policy, 1).decision, Decision::Scale { factor: 0.5 });
        let weak = outcome(Arms { gain: 0.0, ..GOOD }, 1);
        assert_eq!(judge(&weak, &first(), &policy, 1).decision, Decision::Reject);
        let between = Past { scale: 0.5, scale_high: 1.0, scale_tries: 1, ..first() };
        assert_eq!(judge(&weak, &between, &policy, 1).decision, Decision::Scale { factor: 0.75 });
        let exhausted = Past { scale_tries: policy.scale_tries_max, ..between };
        assert_eq!(judge(&forgetful, &exhausted, &policy, 1).decision, Decision::Reject);
    }

    #[test]
    fn a_canary_rejects_whatever_the_gain() {
        let mut leaky = outcome(GOOD, 1);
        leaky.canaries_extracted = 1;
        let verdict = judge(&leaky, &first(), &GatePolicy::default(), 1);
        assert_eq!(verdict.decision, Decision::Reject);
        assert!(verdict.reasons[0].contains("rare strings"));
    }

    #[test]
    fn the_ladder_refuses_a_gain_that_is_no_step_better() {
        let verdict = judge(&outcome(GOOD, 1), &Past { best_gain: 0.2, ..first() }, &GatePolicy::default(), 1);
        assert_eq!(verdict.decision, Decision::Reject);
        assert!(verdict.plateau && verdict.reasons[0].contains("last accepted"));
    }

    #[test]
    fn an_adapter_weaker_than_retrieval_is_accepted_when_it_adds_to_it_and_rejected_when_it_does_not() {
        let judged = |beside: f64, with_arm: bool| {
            let mut outcome = outcome(Arms { gain: 0.1, retrieval: 0.2, beside, ..GOOD }, 3);
            if !with_arm {
                outcome.held_out_retrieval_adapted.clear();
            }
            judge(&outcome, &first(), &GatePolicy::default(), 3)
        };
        assert_eq!(judged(0.08, true).decision, Decision::Accept);
        let useless = judged(-0.01, true);
        assert_eq!(useless.decision, Decision::Reject);
        assert!(useless.reasons[0].contains("adds nothing to retrieval"), "{:?}", useless.reasons);
        // Without the arm that is served the adapter alone must do better than retrieval.
        assert_eq!(judged(0.08, false).decision, Decision::Reject);
    }

    #[test]
    fn an_adapter_must_beat_the_one_that_it_started_from() {
        let with_parent = |gain_over: f32| {
            let mut outcome = outcome(GOOD, 5);
            outcome.held_out_parent = outcome.held_out_adapted.iter().map(|loss| loss + gain_over).collect();
            judge(&outcome, &Past { best_gain: 0.5, ..first() }, &GatePolicy::default(), 5)
        };
        // Paired on the same texts it counts, whatever the parent once gained on others.
        assert_eq!(with_parent(0.02).decision, Decision::Accept);
        let standstill = with_parent(0.0);
        assert_eq!(standstill.decision, Decision::Reject);
        assert!(standstill.plateau && standstill.reasons[0].contains("started from"));
    }

    #[test]
    fn missing_evidence_is_no_evidence() {
        let policy = GatePolicy::default();
        let without = |cut: fn(&mut TrainOutcome)| {
            let mut outcome = outcome(GOOD, 1);
            cut(&mut outcome);
            check(&outcome).unwrap();
            judge(&outcome, &first(), &policy, 1).decision
        };
        assert_eq!(without(|o| o.held_out_placebo.clear()), Decision::Reject);
        assert_eq!(without(|o| o.held_out_retrieval.clear()), Decision::Accept);
        assert_ne!(
            without(|o| {
                o.guard_base.clear();
                o.guard_adapted.clear();
            }),
            Decision::Accept
        );
    }

    #[test]
    fn malformed_outcomes_are_refused_with_the_list_named() {
        let mut short = outcome(GOOD, 1);
        short.held_out_adapted.pop();
        assert!(check(&short).unwrap_err().to_string().contains("held_out_adapted"));
        let mut odd = outcome(GOOD, 1);
        odd.guard_adapted[3] = f32::NAN;
        assert_eq!(check(&odd), Err(EvidenceError::NotFinite { list: "guard_adapted" }));
    }

    #[test]
    fn the_spent_levels_sum_to_alpha() {
        let sum: f64 = (0..100_000).map(|uses| spent_alpha(0.05, uses)).sum();
        assert!(sum <= 0.05 && sum > 0.049_99);
    }
}
