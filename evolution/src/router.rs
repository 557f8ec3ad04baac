//! Chooses among adapters for a generation (L0), and among levels for a training job.

use std::collections::BTreeMap;

use mneme_base::AdapterId;
use mneme_engine_api::AdapterLevel;
use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Online-Bayes weights over a context's adapters and "none".
///
/// After each text expert i with loss l_i (nats) has weight `w_i e^(-l_i)`, renormalised: the log loss of the mixture is
/// at most that of the best expert plus ln N (Cesa-Bianchi and Lugosi, *Prediction, Learning, and Games*, ch. 3 and 9).
/// Fixed share mixes a little weight back, so that a change of the best expert is followed (Herbster and Warmuth, 1998).
/// The geometric composition that the engine serves is never worse than the weighted average of the losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BayesWeights {
    /// Logarithms of the weights; index 0 is "none".
    log: Vec<f64>,
    adapters: Vec<AdapterId>,
    share: f64,
}

impl BayesWeights {
    /// Starts with "none" alone. `share` is the fixed share, 0 to 1.
    pub fn new(share: f64) -> Self {
        Self { log: vec![0.0], adapters: Vec::new(), share: share.clamp(0.0, 1.0) }
    }

    /// Adds an adapter with the weight of an even prior; known ones stay as they are.
    pub fn add(&mut self, adapter: AdapterId) {
        if !self.adapters.contains(&adapter) {
            let n = self.log.len() as f64 + 1.0;
            for log in &mut self.log {
                *log += ((n - 1.0) / n).ln();
            }
            self.adapters.push(adapter);
            self.log.push((1.0 / n).ln());
        }
    }

    /// Removes an adapter; its weight goes to the others in proportion.
    pub fn remove(&mut self, adapter: AdapterId) {
        if let Some(index) = self.adapters.iter().position(|known| *known == adapter) {
            self.adapters.remove(index);
            self.log.remove(index + 1);
            self.normalise();
        }
    }

    /// Takes the losses of one text (nats, whole text) under "none" and under adapters. An adapter without a loss keeps its
    /// share relative to the mixture, as if it had lost as much as the mixture. Returns the mixture's loss (nats).
    pub fn observe(&mut self, none: f64, losses: &[(AdapterId, f64)]) -> f64 {
        let mut known: Vec<Option<f64>> = vec![Some(none).filter(|loss| loss.is_finite())];
        known.extend(
            self.adapters.iter().map(|adapter| {
                losses.iter().find(|(id, loss)| id == adapter && loss.is_finite()).map(|(_, loss)| *loss)
            }),
        );
        let awake: Vec<f64> = self.log.iter().zip(&known).filter(|(_, l)| l.is_some()).map(|(w, _)| *w).collect();
        if awake.is_empty() {
            return 0.0;
        }
        let joint: Vec<f64> = self.log.iter().zip(&known).filter_map(|(w, loss)| Some(w - (*loss)?)).collect();
        // -log of sum w p over those present, with their weights renormalised (sleeping experts, Freund et al. 1997).
        let mixture = log_sum(&awake) - log_sum(&joint);
        for (log, loss) in self.log.iter_mut().zip(&known) {
            *log += loss.map_or(0.0, |loss| mixture - loss);
        }
        self.normalise();
        let n = self.log.len() as f64;
        if n > 1.0 {
            for log in &mut self.log {
                *log = ((1.0 - self.share) * log.exp() + self.share / n).max(f64::MIN_POSITIVE).ln();
            }
        }
        mixture
    }

    fn normalise(&mut self) {
        let total = log_sum(&self.log);
        for log in &mut self.log {
            *log -= total;
        }
    }

    /// The weight of "none", 0 to 1.
    pub fn none(&self) -> f64 {
        self.log[0].exp()
    }

    /// The weights of the adapters, 0 to 1; with [`Self::none`] they sum to 1.
    pub fn adapters(&self) -> impl Iterator<Item = (AdapterId, f64)> {
        self.adapters.iter().zip(&self.log[1..]).map(|(adapter, log)| (*adapter, log.exp()))
    }
}

/// log of the sum of exponentials.
fn log_sum(logs: &[f64]) -> f64 {
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top.is_finite() { top + logs.iter().map(|log| (log - top).exp()).sum::<f64>().ln() } else { top }
}

/// What a level has paid so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LevelRecord {
    /// Jobs that were judged.
    pub jobs: u32,
    /// Jobs that were accepted.
    pub accepted: u32,
    /// Gains of accepted jobs (nats a token), summed; a rejected job gains 0.
    pub gain_sum: f64,
    /// CPU seconds spent.
    pub cpu_seconds: f64,
}

/// What is known of the need that a level is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Need {
    /// The failure is one of structure (JSON, tool schema, outline), not of content.
    pub structural: bool,
    /// A control signal for it exists.
    pub control_signal: bool,
    /// What L2 has done here.
    pub lora: LoraHistory,
}

/// What L2 adapters have done in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraHistory {
    /// None was accepted.
    #[default]
    None,
    /// One was accepted.
    Accepted,
    /// One was accepted and a later one gained nothing more.
    Plateaued,
}

/// Chooses levels by measured gain per CPU second: UCB1 over the levels that are open (Auer, Cesa-Bianchi, Fischer 2002).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LevelBandit {
    records: BTreeMap<AdapterLevel, LevelRecord>,
}

impl LevelBandit {
    /// Takes the result of a job: its gain (nats a token, 0 when rejected) and cost.
    pub fn observe(&mut self, level: AdapterLevel, accepted: bool, gain: f64, cpu_seconds: f64) {
        let record = self.records.entry(level).or_default();
        record.jobs += 1;
        record.accepted += u32::from(accepted);
        record.gain_sum += if accepted && gain.is_finite() { gain.max(0.0) } else { 0.0 };
        record.cpu_seconds += if cpu_seconds.is_finite() { cpu_seconds.max(0.0) } else { 0.0 };
    }

    /// What each level has paid.
    pub const fn records(&self) -> &BTreeMap<AdapterLevel, LevelRecord> {
        &self.records
    }

    /// Levels that may be trained for a need, of those the engine trains. L0 is no training. L1 needs a structural failure
    /// and a control signal; L2 is always open; L3 only after L2 was accepted and plateaued.
    pub fn open(need: &Need, trains: &[AdapterLevel]) -> Vec<AdapterLevel> {
        let is_open = |level: &AdapterLevel| match level {
            AdapterLevel::Composition => false,
            AdapterLevel::ControlNet => need.structural && need.control_signal,
            AdapterLevel::Lora => true,
            AdapterLevel::Layers => need.lora == LoraHistory::Plateaued,
        };
        let mut open: Vec<AdapterLevel> = trains.iter().copied().filter(is_open).collect();
        open.sort_unstable();
        open.dedup();
        open
    }

    /// Chooses among the open levels; ties are broken by the seed. `None` when none is open. An untried level is tried
    /// first, the shallowest before the deeper.
    pub fn choose(&self, need: &Need, trains: &[AdapterLevel], seed: u64) -> Option<AdapterLevel> {
        let open = Self::open(need, trains);
        let record = |level: &AdapterLevel| self.records.get(level).copied().unwrap_or_default();
        if let Some(untried) = open.iter().find(|level| record(level).jobs == 0) {
            return Some(*untried);
        }
        let rate = |r: &LevelRecord| r.gain_sum / r.cpu_seconds.max(1.0);
        // Rates are divided by the best, so that the exploration term has the scale of UCB1's [0, 1] rewards.
        let best = open.iter().map(|level| rate(&record(level))).fold(f64::MIN_POSITIVE, f64::max);
        let jobs: u32 = open.iter().map(|level| record(level).jobs).sum();
        let mut random = Random::stream(seed, u64::from(jobs));
        let scored = open.into_iter().map(|level| {
            let r = record(&level);
            let bonus = (2.0 * f64::from(jobs).ln() / f64::from(r.jobs)).sqrt();
            (rate(&r) / best + bonus + 1e-9 * random.uniform(), level)
        });
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, level)| level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::adapter;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn regret_against_the_best_expert_is_at_most_ln_n_without_share(
            losses in prop::collection::vec(prop::collection::vec(0.0_f64..50.0, 4), 1..60),
        ) {
            let mut weights = BayesWeights::new(0.0);
            (1..4).for_each(|n| weights.add(adapter(n)));
            let (mut mixture, mut average, mut totals) = (0.0, 0.0, [0.0; 4]);
            for row in &losses {
                average += weights.none() * row[0];
                for (id, weight) in weights.adapters() {
                    average += weight * row[usize::from(id.as_bytes()[0])];
                }
                mixture += weights.observe(row[0], &[(adapter(1), row[1]), (adapter(2), row[2]), (adapter(3), row[3])]);
                totals.iter_mut().zip(row).for_each(|(total, loss)| *total += loss);
            }
            let best = totals.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert!(mixture <= best + 4.0_f64.ln() + 1e-6, "{mixture} against {best}");
            prop_assert!(mixture <= average + 1e-6, "never worse than the weighted average");
        }

        #[test]
        fn weights_stay_a_distribution(
            events in prop::collection::vec((0_u8..6, prop::option::of(-1e3_f64..1e4), 0_u8..3), 0..80),
        ) {
            let mut weights = BayesWeights::new(0.02);
            for (id, loss, verb) in events {
                match verb {
                    0 => weights.add(adapter(id)),
                    1 => weights.remove(adapter(id)),
                    _ => {
                        let losses: Vec<_> = loss.map(|loss| (adapter(id), loss)).into_iter().collect();
                        weights.observe(10.0, &losses);
                    }
                }
                let total = weights.none() + weights.adapters().map(|(_, weight)| weight).sum::<f64>();
                prop_assert!((total - 1.0).abs() < 1e-6, "{total}");
            }
        }
    }

    #[test]
    fn fixed_share_follows_a_switch_of_the_best_expert() {
        let lead = |share| {
            let mut weights = BayesWeights::new(share);
            weights.add(adapter(1));
            (0..100).for_each(|_| _ = weights.observe(10.0, &[(adapter(1), 9.0)]));
            (0..10).for_each(|_| _ = weights.observe(9.0, &[(adapter(1), 10.0)]));
            weights.none()
        };
        assert!(lead(0.01) > 0.9 && lead(0.0) < 1e-6);
    }

    #[test]
    fn levels_open_only_when_they_are_due() {
        use AdapterLevel::{Composition, ControlNet, Layers, Lora};
        let all = [Composition, ControlNet, Lora, Layers];
        assert_eq!(LevelBandit::open(&Need::default(), &all), [Lora]);
        let structural = Need { structural: true, ..Need::default() };
        assert_eq!(LevelBandit::open(&structural, &all), [Lora]);
        let control = Need { control_signal: true, ..structural };
        assert_eq!(LevelBandit::open(&control, &all), [ControlNet, Lora]);
        let accepted = Need { lora: LoraHistory::Accepted, ..Need::default() };
        assert_eq!(LevelBandit::open(&accepted, &all), [Lora]);
        assert_eq!(LevelBandit::open(&Need { lora: LoraHistory::Plateaued, ..accepted }, &all), [Lora, Layers]);
        assert_eq!(LevelBandit::default().choose(&Need::default(), &[Composition], 1), None);
    }

    #[test]
    fn the_level_that_pays_more_per_cpu_second_is_chosen_more_often() {
        let need = Need { lora: LoraHistory::Plateaued, ..Need::default() };
        let trains = [AdapterLevel::Lora, AdapterLevel::Layers];
        let mut bandit = LevelBandit::default();
        for job in 0..200 {
            let level = bandit.choose(&need, &trains, job).unwrap();
            // Both gain the same; L3 costs three times as much.
            let cost = if level == AdapterLevel::Layers { 300.0 } else { 100.0 };
            bandit.observe(level, true, 0.05, cost);
        }
        let jobs = |level| bandit.records()[&level].jobs;
        assert!(jobs(AdapterLevel::Lora) > 2 * jobs(AdapterLevel::Layers));
        assert!(jobs(AdapterLevel::Layers) >= 5, "it keeps exploring");
    }
}
