//! Decides that a context needs adaptation, with a bound on false alarms over the whole life of the machine.
//!
//! Stage one turns each event's surprise into a conformal p-value: its rank among all scores seen so far, ties broken by
//! a seeded draw. While events are exchangeable these p-values are independent and uniform (Vovk, Gammerman, Shafer,
//! *Algorithmic Learning in a Random World*, ch. 2 and 8). A *fixed* calibration set would not do: its chance error
//! compounds, and a martingale on 10,000 events would find it. Scores are kept as counts in fine bins, so the memory does
//! not grow; binning before ranking keeps the p-values exact.
//!
//! Stage two bets against uniformity per context: `e p^(e-1)` for a grid of e ([`EProcess`]). Context alarm number k may
//! be false with probability alpha / (k(k+1)), so all alarms ever sum to alpha.
//!
//! Ambiguity (many fair answers) is no reason to train: an ambiguous event that is not surprising asks the user instead.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::Embedding;
use mneme_engine_api::ScoreOutcome;
use serde::{Deserialize, Serialize};

use crate::context::{ContextId, Contexts};
use crate::eprocess::EProcess;
use crate::random::Random;

/// Bins of a score's logarithm: 512 over [2^-16, 2^16] are 4.4% wide, finer than the noise of a score.
const BINS: usize = 512;
/// Exponents of the power bets: small ones pay for rare strong surprise, large ones for a mild common shift.
const EXPONENTS: [f64; 5] = [0.2, 0.35, 0.5, 0.65, 0.8];
/// A smaller p-value cannot be told from chance with fewer than 10^12 events.
const P_MIN: f64 = 1e-12;

/// What the user said of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feedback {
    /// It was right.
    Accept,
    /// It was nearly right and has been corrected.
    Correct,
    /// It was wrong.
    Reject,
}

/// Counts of all scores so far, in bins: gives each new score its conformal p-value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConformalRank {
    /// Bin and count, sparse.
    counts: BTreeMap<u16, u64>,
    total: u64,
    random: Random,
}

impl ConformalRank {
    /// Starts without scores.
    pub fn new(seed: u64) -> Self {
        Self { counts: BTreeMap::new(), total: 0, random: Random::new(seed) }
    }

    /// Takes a score in and returns its p-value: `(#larger + u * #equal) / n` with itself counted, u uniform. Small means
    /// unusually large. Costs one pass over the occupied bins, at most 512.
    pub fn observe(&mut self, score: f64) -> f64 {
        let bin = Self::bin(score);
        let count = self.counts.entry(bin).or_insert(0);
        *count += 1;
        let equal = *count;
        self.total += 1;
        let larger: u64 = self.counts.range(bin + 1..).map(|(_, count)| count).sum();
        (larger as f64 + self.random.uniform() * equal as f64) / self.total as f64
    }

    /// Scores taken so far.
    pub const fn total(&self) -> u64 {
        self.total
    }

    fn bin(score: f64) -> u16 {
        if score.is_nan() || score <= 0.0 {
            return 0;
        }
        let position = (score.log2() + 16.0) / 32.0 * BINS as f64;
        // Float to integer casts saturate, and the clamp makes infinite scores the last bin.
        position.clamp(0.0, BINS as f64) as u16 + 1
    }
}

/// Why a context is suspected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Which context.
    pub context: ContextId,
    /// The evidence: how many times the initial capital the bets against "all is well" have earned.
    pub wealth: f64,
    /// What the wealth had to reach.
    pub threshold: f64,
    /// Events of this context since its evidence began.
    pub events: u64,
    /// Mean p-value of them; 0.5 when all is well.
    pub p_mean: f64,
    /// The share of the answers among them that looked structural, 0 to 1.
    pub structural: f64,
    /// The reasons in words.
    pub reasons: Vec<String>,
}

/// What one event means.
#[derive(Debug, Clone, PartialEq)]
pub enum Advice {
    /// Nothing is wrong.
    Serve,
    /// Several answers are fair: ask the user or abstain; training would not help.
    Ask,
    /// The context needs adaptation.
    Evolve(Suspicion),
}

/// Evidence about one context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Evidence {
    process: EProcess,
    events: u64,
    p_sum: f64,
    /// Answers among the events; the others are texts and the user's words.
    #[serde(default)]
    answers: u64,
    structural: u64,
    feedback_against: u64,
}

impl Evidence {
    fn new() -> Self {
        Self {
            process: EProcess::new(EXPONENTS.len()),
            events: 0,
            p_sum: 0.0,
            answers: 0,
            structural: 0,
            feedback_against: 0,
        }
    }

    fn answered(&mut self, structural: bool) {
        if self.answers == 0 {
            // An older version counted what was structural and not the answers: of that there is no share.
            self.structural = 0;
        }
        self.answers += 1;
        self.structural += u64::from(structural);
    }

    fn share_structural(&self) -> f64 {
        if self.answers == 0 { 0.0 } else { self.structural as f64 / self.answers as f64 }
    }

    fn bet(&mut self, p: f64) {
        let p = p.clamp(P_MIN, 1.0);
        self.process.bet(&EXPONENTS.map(|e| e * p.powf(e - 1.0)));
        self.events += 1;
        self.p_sum += p;
    }
}

/// Watches all contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    alpha: f64,
    ambiguous_p: f64,
    contexts: Contexts,
    surprise: ConformalRank,
    ambiguity: ConformalRank,
    feedback: ConformalRank,
    reading: ConformalRank,
    evidence: BTreeMap<ContextId, Evidence>,
    /// Rounds of evidence begun so far, over all contexts: the k of alpha / (k(k+1)).
    rounds: BTreeMap<ContextId, u64>,
    rounds_begun: u64,
}

impl Trigger {
    /// Starts without events. `alpha` bounds the probability of any false alarm ever; an event is ambiguous when its
    /// ambiguity is among the largest share `ambiguous_p` and its surprise is not among the largest tenth.
    pub fn new(alpha: f64, ambiguous_p: f64, contexts: Contexts, seed: u64) -> Self {
        Self {
            alpha,
            ambiguous_p,
            contexts,
            surprise: ConformalRank::new(Random::stream(seed, 1).next_u64()),
            ambiguity: ConformalRank::new(Random::stream(seed, 2).next_u64()),
            feedback: ConformalRank::new(Random::stream(seed, 3).next_u64()),
            reading: ConformalRank::new(Random::stream(seed, 4).next_u64()),
            evidence: BTreeMap::new(),
            rounds: BTreeMap::new(),
            rounds_begun: 0,
        }
    }

    /// Puts other bounds into force, from the next event on; see [`Self::new`]. What was promised of alarms before stays theirs.
    pub fn set_bounds(&mut self, alpha: f64, ambiguous_p: f64) {
        self.alpha = alpha;
        self.ambiguous_p = ambiguous_p;
    }

    /// Takes scores of events that needed no adaptation, such as the base model's on its own kind of text. Without them a
    /// model that fits its user badly from the first day has nothing to be compared with.
    pub fn calibrate(&mut self, surprise: &[f32], ambiguity: &[f32]) {
        for score in surprise {
            self.surprise.observe(f64::from(*score));
        }
        for score in ambiguity {
            self.ambiguity.observe(f64::from(*score));
        }
    }

    /// Takes the base model's surprise at texts that it needs no adaptation for: what it is used to. A user whose texts are
    /// all alike and all surprising is then found out from the first day.
    pub fn calibrate_reading(&mut self, surprise: &[f32]) {
        for score in surprise {
            self.reading.observe(f64::from(*score));
        }
    }

    /// Whether the surprise at texts was calibrated on this base.
    pub const fn is_calibrated(&self) -> bool {
        self.reading.total() > 0
    }

    /// Takes the surprise at a text that the user wrote, under what serves its context. It is ranked among texts only:
    /// answers have other scores. Before [`Self::calibrate_reading`] it says nothing.
    pub fn observe_reading(&mut self, context: ContextId, surprise: f32) -> Advice {
        if !self.is_calibrated() {
            return Advice::Serve;
        }
        let p = self.reading.observe(f64::from(surprise));
        self.evidence_of(context).bet(p);
        self.alarm(context).map_or(Advice::Serve, Advice::Evolve)
    }

    /// Forgets all scores and evidence: another base model makes other scores. Contexts and the count of alarms stay.
    pub fn reset(&mut self, seed: u64) {
        let mut fresh = Self::new(self.alpha, self.ambiguous_p, self.contexts.clone(), seed);
        fresh.rounds_begun = self.rounds_begun;
        *self = fresh;
    }

    /// The contexts.
    pub const fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    /// Makes sure that a context exists, after a restart.
    pub fn ensure_context(&mut self, id: ContextId, centroid: &Embedding) {
        self.contexts.ensure(id, centroid);
    }

    /// Finds or opens the context of a situation; contexts in `kept` are never dropped for it. The second value is a
    /// context that was dropped.
    pub fn assign(&mut self, situation: &Embedding, kept: &BTreeSet<ContextId>) -> (ContextId, Option<ContextId>) {
        let (id, dropped) = self.contexts.assign(situation, kept);
        if let Some(dropped) = dropped {
            self.evidence.remove(&dropped);
            self.rounds.remove(&dropped);
        }
        (id, dropped)
    }

    /// Takes one generation in: its ambiguity (nats) and surprise ratio (1 when calibrated).
    pub fn observe(&mut self, context: ContextId, ambiguity: f32, surprise: f32, structural: bool) -> Advice {
        let p_surprise = self.surprise.observe(f64::from(surprise));
        let p_ambiguity = self.ambiguity.observe(f64::from(ambiguity));
        let evidence = self.evidence_of(context);
        evidence.bet(p_surprise);
        evidence.answered(structural);
        match self.alarm(context) {
            Some(suspicion) => Advice::Evolve(suspicion),
            None if p_ambiguity <= self.ambiguous_p && p_surprise > 0.1 => Advice::Ask,
            None => Advice::Serve,
        }
    }

    /// Takes the user's word on an answer in that context. It is ranked among all words so far, as surprise is: a user who
    /// rejects everything everywhere raises no alarm, one who rejects here and accepts elsewhere does.
    pub fn observe_feedback(&mut self, context: ContextId, feedback: Feedback) -> Advice {
        let score = match feedback {
            Feedback::Accept => 1.0,
            Feedback::Correct => 2.0,
            Feedback::Reject => 4.0,
        };
        let p = self.feedback.observe(score);
        let evidence = self.evidence_of(context);
        evidence.bet(p);
        evidence.feedback_against += u64::from(feedback != Feedback::Accept);
        self.alarm(context).map_or(Advice::Serve, Advice::Evolve)
    }

    /// The state of a context's evidence in words, whether or not it suffices.
    pub fn should_evolve(&self, context: ContextId) -> Option<(bool, Suspicion)> {
        let evidence = self.evidence.get(&context)?;
        let round = self.rounds.get(&context).copied().unwrap_or(1) as f64;
        let threshold = round * (round + 1.0) / self.alpha;
        let wealth = evidence.process.wealth();
        let p_mean = evidence.p_sum / evidence.events.max(1) as f64;
        let mut reasons = vec![format!(
            "{} events here have p-values of {p_mean:.3} on average where 0.5 is expected; evidence {wealth:.1} of {threshold:.0}",
            evidence.events
        )];
        if evidence.feedback_against > 0 {
            reasons.push(format!("the user rejected or corrected {} answers here", evidence.feedback_against));
        }
        let structural = evidence.share_structural();
        let suspicion = Suspicion { context, wealth, threshold, events: evidence.events, p_mean, structural, reasons };
        Some((wealth >= threshold, suspicion))
    }

    /// All contexts with evidence, the most suspect first.
    pub fn suspicions(&self) -> Vec<Suspicion> {
        let mut all: Vec<Suspicion> =
            self.evidence.keys().filter_map(|id| self.should_evolve(*id)).map(|(_, suspicion)| suspicion).collect();
        all.sort_by(|a, b| (b.wealth / b.threshold).total_cmp(&(a.wealth / a.threshold)));
        all
    }

    fn evidence_of(&mut self, context: ContextId) -> &mut Evidence {
        if !self.rounds.contains_key(&context) {
            self.rounds_begun += 1;
            self.rounds.insert(context, self.rounds_begun);
        }
        self.evidence.entry(context).or_insert_with(Evidence::new)
    }

    /// Ends a context's round of evidence when it suffices; the next round must clear a higher bar.
    fn alarm(&mut self, context: ContextId) -> Option<Suspicion> {
        let (sufficient, suspicion) = self.should_evolve(context)?;
        if !sufficient {
            return None;
        }
        self.restart(context);
        Some(suspicion)
    }

    /// Drops a context's evidence and begins a new round: after an alarm, or after its adapter changed.
    pub fn restart(&mut self, context: ContextId) {
        self.evidence.remove(&context);
        self.rounds.remove(&context);
    }

    /// Rounds of evidence begun so far.
    pub const fn rounds_begun(&self) -> u64 {
        self.rounds_begun
    }

    /// Continues the count of rounds after a restart, so that alarms before it still count.
    pub fn raise_rounds(&mut self, at_least: u64) {
        self.rounds_begun = self.rounds_begun.max(at_least);
    }
}

/// The threshold of a split-conformal test with stated confidence: the largest j such that a threshold at the j-th largest
/// of n "no adaptation needed" scores has a false-positive rate of at most `rate` with probability `confidence`.
///
/// Conditional on the scores, the rate is Beta(j, n + 1 - j) (Vovk, "Conditional validity of inductive conformal
/// predictors", ACML 2012). `None` when n is too small even for j = 1 (59 for 5% at 95%).
pub fn split_conformal_rank(n: usize, rate: f64, confidence: f64) -> Option<usize> {
    let holds = |j: usize| crate::stats::incomplete_beta(rate, j as f64, (n + 1 - j) as f64) >= confidence;
    (1..=n).take_while(|j| holds(*j)).last()
}

/// The first tokens of a text are surprising to everybody.
const READING_SKIPPED_TOKENS: usize = 4;
/// A mean over fewer tokens says little.
const READING_TOKENS_MIN: usize = 12;

/// The surprise at a text that was scored token by token: the mean residual, 1 less the probability that each token was given.
/// `None` when the text is too short.
pub fn reading_surprise(outcome: &ScoreOutcome) -> Option<f32> {
    let tokens = outcome.detail.get(READING_SKIPPED_TOKENS..).filter(|tokens| tokens.len() >= READING_TOKENS_MIN)?;
    Some(tokens.iter().map(|token| 1.0 - token.log_likelihood.exp()).sum::<f32>() / tokens.len() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mneme_engine_api::ScoredToken;

    fn at(index: usize, of: usize) -> Embedding {
        let mut components = vec![0.0; of];
        components[index] = 1.0;
        Embedding::normalized(components).unwrap()
    }

    #[test]
    fn structure_that_was_counted_before_answers_were_is_no_share_of_them() {
        let mut old = Evidence { structural: 5, ..Evidence::new() };
        assert!(old.share_structural() < 1e-9);
        old.answered(false);
        old.answered(true);
        assert!((old.share_structural() - 0.5).abs() < 1e-9);
    }

    fn trigger(seed: u64) -> Trigger {
        Trigger::new(0.05, 0.1, Contexts::new(0.4, 64), seed)
    }

    /// Runs a stream over `contexts` contexts; the surprise of context 0 is multiplied by `shift` from event `from` on.
    fn alarms(seed: u64, events: usize, contexts: usize, shift: f64, from: usize) -> Vec<(usize, ContextId)> {
        let mut trigger = trigger(seed);
        let mut random = Random::stream(seed, 77);
        let mut found = Vec::new();
        for event in 0..events {
            let which = random.below(contexts);
            let (context, _) = trigger.assign(&at(which, contexts), &BTreeSet::new());
            let scale = if which == 0 && event >= from { shift } else { 1.0 };
            let surprise = scale * (0.3 * random.normal()).exp();
            if let Advice::Evolve(s) = trigger.observe(context, 1.0, surprise as f32, false) {
                found.push((event, s.context));
            }
        }
        found
    }

    #[test]
    fn the_stated_ranks_are_those_of_the_beta_law() {
        for (n, rank) in [(59, 1), (93, 2), (124, 3), (181, 5), (311, 10), (1_000, 39)] {
            assert_eq!(split_conformal_rank(n, 0.05, 0.95), Some(rank), "n = {n}");
        }
        assert_eq!(split_conformal_rank(58, 0.05, 0.95), None);
    }

    #[test]
    fn p_values_are_uniform_and_ties_do_not_matter() {
        let mut random = Random::new(3);
        let mut rank = ConformalRank::new(4);
        let mut p: Vec<f64> = (0..4_000).map(|_| rank.observe((random.normal() * 2.0).round().exp())).collect();
        p.sort_by(f64::total_cmp);
        // Kolmogorov-Smirnov; the 99.9% point is 1.95 / sqrt(n).
        let distance = p.iter().zip(0..).map(|(p, i)| (p - f64::from(i) / 4_000.0).abs()).fold(0.0, f64::max);
        assert!(distance < 1.95 / 4_000_f64.sqrt(), "{distance}");
    }

    #[test]
    fn a_text_is_read_without_its_start_and_one_too_short_not_at_all() {
        let token = |log_likelihood: f32| ScoredToken {
            id: 0,
            bytes: 1,
            log_likelihood,
            entropy: 0.0,
            agreement: 1.0,
            top: 1.0,
        };
        let text = |tokens: usize| {
            let detail = (0..tokens).map(|place| token(if place < 4 { -50.0 } else { 0.25_f32.ln() })).collect();
            ScoreOutcome { log_likelihood: 0.0, tokens: tokens as u32, detail }
        };
        assert!((reading_surprise(&text(20)).unwrap() - 0.75).abs() < 1e-6);
        assert_eq!(reading_surprise(&text(15)), None);
        assert_eq!(reading_surprise(&text(0)), None);
    }

    #[test]
    fn null_streams_of_ten_thousand_events_alarm_in_at_most_alpha_of_the_runs() {
        // 5% of 100 runs plus three standard deviations is 11; a union bound over contexts makes far fewer likely.
        let alarmed = (0..100).filter(|seed| !alarms(*seed, 10_000, 12, 1.0, 0).is_empty()).count();
        assert!(alarmed <= 5, "{alarmed} of 100 null streams alarmed");
    }

    #[test]
    fn two_hundred_events_that_need_no_adaptation_trigger_at_most_four_times() {
        for seed in 0..20 {
            let triggers = alarms(1_000 + seed, 200, 5, 1.0, 0).len();
            assert!(triggers <= 4, "{triggers} triggers with seed {seed}");
        }
    }

    #[test]
    fn a_context_that_became_half_again_as_surprising_is_found_and_no_other() {
        let mut found = 0;
        for seed in 0..40 {
            let all = alarms(2_000 + seed, 1_500, 6, 1.5, 500);
            // Context 0 gets about 167 events after the shift.
            found += usize::from(!all.is_empty());
            let first = all.first().map(|(event, _)| *event);
            assert!(first.is_none_or(|event| event >= 500), "false alarm with seed {seed}");
        }
        assert!(found >= 36, "power {}", f64::from(found as u32) / 40.0);
    }

    #[test]
    fn a_bad_fit_from_the_first_day_is_found_against_calibration_scores() {
        let mut trigger = trigger(9);
        let mut random = Random::new(10);
        let mut draw = |scale: f64| (scale * (0.3 * random.normal()).exp()) as f32;
        let calibration: Vec<f32> = (0..200).map(|_| draw(1.0)).collect();
        trigger.calibrate(&calibration, &[]);
        let (context, _) = trigger.assign(&at(0, 2), &BTreeSet::new());
        let alarm = (0..60).find(|_| matches!(trigger.observe(context, 1.0, draw(1.6), false), Advice::Evolve(_)));
        assert!(alarm.is_some());
    }

    #[test]
    fn ambiguity_without_surprise_asks_and_never_trains() {
        let mut trigger = trigger(4);
        let mut random = Random::new(5);
        let mut asked = 0;
        for event in 0..600 {
            let which = event % 3;
            let (context, _) = trigger.assign(&at(which, 3), &BTreeSet::new());
            let ambiguity = if which == 0 { 4.0 } else { 1.0 };
            let surprise = (0.3 * random.normal()).exp() as f32;
            match trigger.observe(context, ambiguity, surprise, false) {
                Advice::Ask => asked += 1,
                Advice::Evolve(suspicion) => panic!("{suspicion:?}"),
                Advice::Serve => {}
            }
        }
        assert!(asked > 20, "{asked}");
    }

    #[test]
    fn rejections_in_one_context_count_and_rejections_everywhere_do_not() {
        let run = |everywhere: bool| {
            let mut trigger = trigger(6);
            let mut alarms = 0;
            for event in 0..400 {
                let which = event % 4;
                let (context, _) = trigger.assign(&at(which, 4), &BTreeSet::new());
                let feedback = if everywhere || which == 0 { Feedback::Reject } else { Feedback::Accept };
                alarms += usize::from(matches!(trigger.observe_feedback(context, feedback), Advice::Evolve(_)));
            }
            alarms
        };
        assert!(run(false) >= 1);
        assert_eq!(run(true), 0);
    }

    #[test]
    fn a_suspicion_says_why() {
        let mut trigger = trigger(1);
        let (context, _) = trigger.assign(&at(0, 2), &BTreeSet::new());
        trigger.observe(context, 1.0, 1.0, true);
        let (sufficient, suspicion) = trigger.should_evolve(context).unwrap();
        assert!(!sufficient && suspicion.structural > 0.99 && suspicion.reasons[0].contains("1 events here"));
    }

    #[test]
    fn a_user_whose_texts_never_fitted_is_found_out_after_a_few_of_them() {
        let mut trigger = trigger(8);
        let mut random = Random::new(9);
        let mut draw = |mean: f64| (mean + 0.05 * random.normal()) as f32;
        let (context, _) = trigger.assign(&at(0, 2), &BTreeSet::new());
        assert_eq!(trigger.observe_reading(context, 0.9), Advice::Serve, "nothing is known to compare it with");
        assert!(trigger.should_evolve(context).is_none());
        trigger.calibrate_reading(&(0..30).map(|_| draw(0.55)).collect::<Vec<_>>());
        let alarm = (0..40).position(|_| matches!(trigger.observe_reading(context, draw(0.75)), Advice::Evolve(_)));
        assert!(alarm.is_some_and(|texts| texts >= 3), "{alarm:?}");
    }

    #[test]
    fn texts_as_the_base_knows_them_raise_an_alarm_in_at_most_alpha_of_the_runs() {
        let alarmed = (0..100_u64).filter(|seed| {
            let mut trigger = trigger(*seed);
            let mut random = Random::stream(*seed, 5);
            let mut draw = || (0.55 + 0.05 * random.normal()) as f32;
            trigger.calibrate_reading(&(0..30).map(|_| draw()).collect::<Vec<_>>());
            (0..1_000).any(|event| {
                let (context, _) = trigger.assign(&at(event % 4, 4), &BTreeSet::new());
                matches!(trigger.observe_reading(context, draw()), Advice::Evolve(_))
            })
        });
        assert!(alarmed.count() <= 5);
    }

    #[test]
    fn odd_scores_do_no_harm() {
        let mut rank = ConformalRank::new(1);
        for score in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e-300, 1e300] {
            let p = rank.observe(score);
            assert!((0.0..=1.0).contains(&p));
        }
    }
}
