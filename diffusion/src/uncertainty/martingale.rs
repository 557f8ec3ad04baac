//! Betting against "nothing has changed": wealth that grows only when p-values are too small too often.

use std::collections::BTreeMap;

/// Exponents of the bets, spread geometrically: small ones win on rare tiny p-values, large ones on many that are somewhat small.
const EXPONENTS: [f64; 10] = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9];
/// P-values below this count as this: it bounds a single win.
const P_VALUE_MIN: f64 = 1e-9;

/// A mixture of power martingales: mean over e of `prod e p^(e-1)` (Vovk et al. 2003). Starts at 1, is a martingale for independent
/// uniform p-values and falls on average for larger ones, so `P(wealth ever reaches 1/alpha) <= alpha` (Ville 1939).
#[derive(Debug, Clone, PartialEq)]
pub struct TestMartingale {
    /// Logarithm of the wealth of each bet.
    log_wealth: [f64; EXPONENTS.len()],
}

impl Default for TestMartingale {
    fn default() -> Self {
        Self { log_wealth: [0.0; EXPONENTS.len()] }
    }
}

impl TestMartingale {
    /// Bets on one more p-value and returns the wealth. A p-value that is no number counts as 1.
    pub fn update(&mut self, p: f64) -> f64 {
        let log_p = if p.is_nan() { 0.0 } else { p.clamp(P_VALUE_MIN, 1.0).ln() };
        for (wealth, exponent) in self.log_wealth.iter_mut().zip(EXPONENTS) {
            *wealth += exponent.ln() + (exponent - 1.0) * log_p;
        }
        self.wealth()
    }

    /// The wealth: 1 at the start; may be infinite in a double after overwhelming evidence.
    pub fn wealth(&self) -> f64 {
        self.log_wealth.iter().map(|wealth| wealth.exp()).sum::<f64>() / EXPONENTS.len() as f64
    }
}

/// An alarm that a cluster raised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarm {
    /// The cluster.
    pub cluster: u64,
    /// Its wealth.
    pub wealth: f64,
    /// Its share of alpha; the alarm is raised at wealth `1 / level`.
    pub level: f64,
    /// Events that the cluster had seen.
    pub events: u64,
}

/// One martingale for each cluster of similar contexts. The k-th cluster to appear gets the share `alpha / (k (k + 1))`, which sums to
/// alpha over however many come: the chance of *any* false alarm, ever, in *any* cluster, is at most alpha.
#[derive(Debug, Clone)]
pub struct ClusterAlarms {
    alpha: f64,
    clusters_max: usize,
    clusters: BTreeMap<u64, Cluster>,
    opened: u64,
}

#[derive(Debug, Clone)]
struct Cluster {
    martingale: TestMartingale,
    level: f64,
    events: u64,
}

impl ClusterAlarms {
    /// `alpha` in (0, 1]. Events of clusters beyond `clusters_max` are not watched. None when alpha is out of bounds.
    pub fn new(alpha: f64, clusters_max: usize) -> Option<Self> {
        (alpha > 0.0 && alpha <= 1.0).then(|| Self { alpha, clusters_max, clusters: BTreeMap::new(), opened: 0 })
    }

    /// Takes the p-value of an event. Which cluster an event belongs to must not depend on its score. After an alarm the cluster starts
    /// anew with a fresh share of alpha, so that later alarms are covered by the same bound.
    pub fn observe(&mut self, cluster: u64, p: f64) -> Option<Alarm> {
        if !self.clusters.contains_key(&cluster) {
            if self.clusters.len() >= self.clusters_max {
                return None;
            }
            let level = self.next_level();
            self.clusters.insert(cluster, Cluster { martingale: TestMartingale::default(), level, events: 0 });
        }
        let entry = self.clusters.get_mut(&cluster)?;
        entry.events += 1;
        let wealth = entry.martingale.update(p);
        if wealth < 1.0 / entry.level {
            return None;
        }
        let alarm = Alarm { cluster, wealth, level: entry.level, events: entry.events };
        self.clusters.remove(&cluster);
        Some(alarm)
    }

    /// The wealth of a cluster; None when it is not watched.
    pub fn wealth(&self, cluster: u64) -> Option<f64> {
        self.clusters.get(&cluster).map(|cluster| cluster.martingale.wealth())
    }

    fn next_level(&mut self) -> f64 {
        self.opened += 1;
        self.alpha / (self.opened as f64 * (self.opened as f64 + 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OnlineConformal, conformal_p_value};
    use super::*;
    use crate::random::{below, normal, seeded, uniform};

    #[test]
    fn each_bet_is_fair() {
        // The integral of e p^(e-1) over (0, 1) is 1; by substitution p = u^(1/e) it is exact for one draw of the mixture's mean.
        for exponent in EXPONENTS {
            let n = 100_000;
            let mean = (0..n)
                .map(|i| (f64::from(i) + 0.5) / f64::from(n))
                .map(|u| {
                    let p: f64 = u.powf(1.0 / exponent);
                    // density of p under the substitution
                    exponent * p.powf(exponent - 1.0) * (1.0 / exponent) * u.powf(1.0 / exponent - 1.0)
                })
                .sum::<f64>()
                / f64::from(n);
            assert!((mean - 1.0).abs() < 1e-6, "{exponent}: {mean}");
        }
    }

    #[test]
    fn a_null_stream_of_ten_thousand_events_alarms_at_most_at_its_level() {
        let (alpha, seeds) = (0.1, 200);
        let mut alarmed = 0;
        for seed in 0..seeds {
            let mut rng = seeded(seed);
            let mut alarms = ClusterAlarms::new(alpha, 64).unwrap();
            let any = (0..10_000).any(|_| {
                let cluster = below(&mut rng, 8) as u64;
                alarms.observe(cluster, uniform(&mut rng)).is_some()
            });
            alarmed += u32::from(any);
        }
        // At most alpha; three standard errors of 200 seeds are 0.064.
        let share = f64::from(alarmed) / seeds as f64;
        assert!(share <= alpha + 0.064, "{share}");
    }

    #[test]
    fn conformal_scores_feed_it_and_a_change_is_found() {
        let mut detected = 0;
        let mut false_alarms = 0;
        for seed in 0..60 {
            let mut rng = seeded(1_000 + seed);
            let calibration: Vec<f32> = (0..200).map(|_| normal(&mut rng) as f32).collect();
            let mut conformal = OnlineConformal::new(&calibration);
            let mut alarms = ClusterAlarms::new(0.05, 16).unwrap();
            for _ in 0..500 {
                let p = conformal.p_value(normal(&mut rng) as f32, &mut rng);
                false_alarms += u32::from(alarms.observe(1, p).is_some());
            }
            // One context starts to fit worse by one and a half standard deviations.
            detected += u32::from((0..60).any(|_| {
                let p = conformal.p_value(1.5 + normal(&mut rng) as f32, &mut rng);
                alarms.observe(2, p).is_some()
            }));
        }
        assert!(detected >= 57, "{detected} of 60");
        assert!(false_alarms <= 6, "{false_alarms} of 60");
    }

    #[test]
    fn one_fixed_calibration_set_would_alarm_beyond_its_level() {
        // The reason for online p-values: 60 streams against 60 sets of 50 scores each, level 5%. Three alarms are expected at most; eight or more would
        // come by chance with a probability of 1%.
        let mut alarmed = 0;
        for seed in 0..60 {
            let mut rng = seeded(2_000 + seed);
            let calibration: Vec<f32> = (0..50).map(|_| normal(&mut rng) as f32).collect();
            let mut martingale = TestMartingale::default();
            alarmed += u32::from(
                (0..10_000)
                    .any(|_| martingale.update(conformal_p_value(&calibration, normal(&mut rng) as f32)) >= 20.0),
            );
        }
        assert!(alarmed >= 8, "{alarmed} of 60");
    }

    #[test]
    fn odd_p_values_and_full_tables_do_no_harm() {
        let mut alarms = ClusterAlarms::new(0.05, 1).unwrap();
        assert!(alarms.observe(1, f64::NAN).is_none());
        assert!(alarms.observe(2, 0.0).is_none() && alarms.wealth(2).is_none());
        // The first cluster's level is 1/40; after its alarm it starts anew at a smaller one.
        let first = (0..9).find_map(|_| alarms.observe(1, 0.0)).unwrap();
        assert!((first.level - 0.025).abs() < 1e-12 && first.wealth >= 40.0);
        assert!(alarms.wealth(1).is_none());
        let second = (0..9).find_map(|_| alarms.observe(1, 0.0)).unwrap();
        assert!((second.level - 0.05 / 6.0).abs() < 1e-12);
        assert!(ClusterAlarms::new(0.0, 1).is_none());
    }
}
