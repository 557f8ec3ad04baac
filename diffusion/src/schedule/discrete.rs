//! The probability that a token is still visible at time t, for absorbing-state (mask) diffusion.

use serde::{Deserialize, Serialize};

/// A masking schedule: `alpha(0) = 1` (nothing masked) falling to `alpha(1) = 0`, or nearly so.
///
/// Every method clamps its time to `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiscreteSchedule {
    /// `alpha = 1 - t` (LLaDA; MDLM with eps = 0).
    #[default]
    Linear,
    /// `alpha = 1 - (1 - eps) t`: log-linear noise `sigma = -ln alpha` (SEDD, arXiv 2310.16834).
    LogLinear {
        /// What stays visible at time 1, in (0, 1).
        eps: f64,
    },
    /// `alpha = 1 - cos(pi/2 (1 - t))` (MD4, arXiv 2406.04329, table 1).
    Cosine,
    /// `alpha = exp(-sigma)`, `sigma = sigma_min^(1-t) sigma_max^t` (MD4, table 1).
    Geometric {
        /// Noise at time 0, above 0; MD4 takes 1e-5.
        sigma_min: f64,
        /// Noise at time 1, above `sigma_min`; MD4 takes 20.
        sigma_max: f64,
    },
}

impl DiscreteSchedule {
    /// Probability that a token is visible at time t.
    pub fn alpha(self, t: f64) -> f64 {
        let t = t.clamp(0.0, 1.0);
        match self {
            Self::Linear => 1.0 - t,
            Self::LogLinear { eps } => 1.0 - (1.0 - eps) * t,
            Self::Cosine => 1.0 - (std::f64::consts::FRAC_PI_2 * (1.0 - t)).cos(),
            Self::Geometric { .. } => (-self.sigma(t)).exp(),
        }
    }

    /// Probability that a token is masked at time t: `1 - alpha`.
    pub fn mask_rate(self, t: f64) -> f64 {
        match self {
            // 1 - exp(-sigma) cancels for small sigma.
            Self::Geometric { .. } => -(-self.sigma(t.clamp(0.0, 1.0))).exp_m1(),
            _ => 1.0 - self.alpha(t),
        }
    }

    /// The derivative of alpha by time, at most 0.
    pub fn alpha_slope(self, t: f64) -> f64 {
        let t = t.clamp(0.0, 1.0);
        match self {
            Self::Linear => -1.0,
            Self::LogLinear { eps } => -(1.0 - eps),
            Self::Cosine => -std::f64::consts::FRAC_PI_2 * (std::f64::consts::FRAC_PI_2 * (1.0 - t)).sin(),
            Self::Geometric { sigma_min, sigma_max } => {
                -self.sigma(t) * (sigma_max / sigma_min).ln() * (-self.sigma(t)).exp()
            }
        }
    }

    /// Weight of the cross-entropy of a masked token in the NELBO: `-alpha' / (1 - alpha)` (MDLM eq. 10). Infinite at time 0
    /// for schedules that mask nothing there.
    pub fn loss_weight(self, t: f64) -> f64 {
        -self.alpha_slope(t) / self.mask_rate(t)
    }

    /// The same, at most `limit`.
    pub fn loss_weight_clipped(self, t: f64, limit: f64) -> f64 {
        self.loss_weight(t).min(limit)
    }

    /// The time at which this share of tokens is masked: the inverse of [`Self::mask_rate`], clamped to `[0, 1]`.
    pub fn time_of_mask_rate(self, rate: f64) -> f64 {
        let rate = rate.clamp(0.0, 1.0);
        let t = match self {
            Self::Linear => rate,
            Self::LogLinear { eps } => rate / (1.0 - eps),
            Self::Cosine => 1.0 - rate.acos() / std::f64::consts::FRAC_PI_2,
            Self::Geometric { sigma_min, sigma_max } => {
                (-(-rate).ln_1p() / sigma_min).ln() / (sigma_max / sigma_min).ln()
            }
        };
        if t.is_nan() { 0.0 } else { t.clamp(0.0, 1.0) }
    }

    /// Probability that a token masked at time t is still masked at an earlier time s: `(1 - alpha_s) / (1 - alpha_t)`,
    /// `s / t` for the linear schedule. 0 when nothing is masked at t.
    pub fn stay_masked(self, s: f64, t: f64) -> f64 {
        let masked = self.mask_rate(t);
        if masked <= 0.0 { 0.0 } else { (self.mask_rate(s.min(t)) / masked).clamp(0.0, 1.0) }
    }

    /// The largest probability with which a visible token may be masked again between t and an earlier s while the marginals
    /// stay those of the schedule: `min(1, (1 - alpha_s) / alpha_t)` (ReMDM, arXiv 2503.00307, eq. 6).
    pub fn remask_bound(self, s: f64, t: f64) -> f64 {
        let visible = self.alpha(t);
        if visible <= 0.0 { 1.0 } else { (self.mask_rate(s) / visible).min(1.0) }
    }

    fn sigma(self, t: f64) -> f64 {
        match self {
            Self::Geometric { sigma_min, sigma_max } => sigma_min.powf(1.0 - t) * sigma_max.powf(t),
            _ => -self.alpha(t).ln(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [DiscreteSchedule; 4] = [
        DiscreteSchedule::Linear,
        DiscreteSchedule::LogLinear { eps: 1e-3 },
        DiscreteSchedule::Cosine,
        DiscreteSchedule::Geometric { sigma_min: 1e-5, sigma_max: 20.0 },
    ];

    #[test]
    fn values_equal_the_closed_forms() {
        let check = |schedule: DiscreteSchedule, t: f64, alpha: f64, weight: f64| {
            assert!((schedule.alpha(t) - alpha).abs() < 1e-6, "{schedule:?} at {t}: {}", schedule.alpha(t));
            assert!((schedule.loss_weight(t) / weight - 1.0).abs() < 1e-6, "{schedule:?} at {t}");
        };
        check(DiscreteSchedule::Linear, 0.25, 0.75, 4.0);
        check(DiscreteSchedule::LogLinear { eps: 0.2 }, 0.5, 0.6, 2.0);
        // 1 - cos(pi/4) and pi/2 * tan(pi/4).
        check(DiscreteSchedule::Cosine, 0.5, 1.0 - std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::FRAC_PI_2);
        // sigma = sqrt(1e-5 * 20) = 0.014142135624; alpha = e^-sigma; weight = sigma ln(2e6) / (e^sigma - 1).
        check(DiscreteSchedule::Geometric { sigma_min: 1e-5, sigma_max: 20.0 }, 0.5, 0.985_957_392_6, 14.406_309_02);
        assert!((DiscreteSchedule::Linear.loss_weight_clipped(1e-3, 20.0) - 20.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn slopes_are_derivatives_and_times_are_inverses(t in 0.02_f64..0.98, which in 0_usize..4) {
            let schedule = ALL[which];
            let h = 1e-6;
            let slope = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2.0 * h);
            prop_assert!((schedule.alpha_slope(t) - slope).abs() < 1e-5);
            let rate = schedule.mask_rate(t);
            // The inverse is lost where the rate itself saturates in double precision.
            if rate < 1.0 - 1e-9 {
                prop_assert!((schedule.time_of_mask_rate(rate) - t).abs() < 1e-6);
            }
            prop_assert!((schedule.mask_rate(t) + schedule.alpha(t) - 1.0).abs() < 1e-12);
        }

        #[test]
        fn staying_masked_composes(r in 0.0_f64..0.3, s in 0.3_f64..0.6, t in 0.6_f64..1.0, which in 0_usize..4) {
            let schedule = ALL[which];
            let direct = schedule.stay_masked(r, t);
            prop_assert!((direct - schedule.stay_masked(r, s) * schedule.stay_masked(s, t)).abs() < 1e-9);
        }

        #[test]
        fn remasking_at_its_bound_keeps_the_marginals(s in 0.01_f64..0.5, t in 0.5_f64..0.99) {
            let schedule = DiscreteSchedule::Cosine;
            let sigma = schedule.remask_bound(s, t);
            let masked = schedule.mask_rate(t);
            let unmask = (schedule.alpha(s) - (1.0 - sigma) * schedule.alpha(t)) / masked;
            prop_assert!((-1e-9..=1.0 + 1e-9).contains(&unmask));
            let after = masked * (1.0 - unmask) + schedule.alpha(t) * sigma;
            prop_assert!((after - schedule.mask_rate(s)).abs() < 1e-9);
        }
    }

    #[test]
    fn the_linear_reverse_step_is_s_over_t() {
        assert!((DiscreteSchedule::Linear.stay_masked(0.3, 0.6) - 0.5).abs() < 1e-12);
        assert!(DiscreteSchedule::Linear.stay_masked(0.0, 0.0).abs() < 1e-12);
    }
}
