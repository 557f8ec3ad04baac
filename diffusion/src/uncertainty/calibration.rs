//! What is known of text that needs no adaptation: its residuals by mask rate, and its scores.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{ResidualTable, ResidualTableBuilder, ResidualTableError};
use crate::random::below;

/// A store keeps at most this many scores; beyond it a uniform sample of all is kept.
pub const SCORES_MAX: usize = 20_000;

/// Why a stored calibration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// It belongs to another model.
    #[error("calibration was made with model {stored}, the model is {current}")]
    OtherModel {
        /// The model that it was made with.
        stored: String,
        /// The model in use.
        current: String,
    },
    /// It is no calibration, or holds values that cannot be.
    #[error("stored calibration is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

/// Calibration of one model: residuals by mask rate and scores of events that needed no adaptation. Plain data; the caller stores it as
/// JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationStore {
    model: String,
    residuals: ResidualTableBuilder,
    scores: Vec<f32>,
    seen: u64,
}

impl CalibrationStore {
    /// An empty store for a model (the hash of its weights) with this many bins of mask rate.
    pub fn new(model: impl Into<String>, bins: usize) -> Result<Self, ResidualTableError> {
        Ok(Self { model: model.into(), residuals: ResidualTableBuilder::new(bins)?, scores: Vec::new(), seen: 0 })
    }

    /// Reads a stored calibration; refuses one of another model.
    pub fn from_json(json: &str, model: &str) -> Result<Self, CalibrationError> {
        let store: Self =
            serde_json::from_str(json).map_err(|error| CalibrationError::Malformed { reason: error.to_string() })?;
        if store.model != model {
            return Err(CalibrationError::OtherModel { stored: store.model, current: model.into() });
        }
        if store.scores.len() > SCORES_MAX || (store.scores.len() as u64) > store.seen {
            return Err(CalibrationError::Malformed { reason: format!("{} scores", store.scores.len()) });
        }
        Ok(store)
    }

    /// The stored form.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and strings have a JSON form")
    }

    /// Adds the residual of a token at a mask rate.
    pub fn add_residual(&mut self, mask_rate: f32, residual: f32) {
        self.residuals.add(mask_rate, residual);
    }

    /// Adds the score of an event that needed no adaptation. Scores that are not numbers are ignored. Reservoir sampling (Vitter 1985).
    pub fn add_score(&mut self, score: f32, rng: &mut dyn Rng) {
        if !score.is_finite() {
            return;
        }
        self.seen += 1;
        if self.scores.len() < SCORES_MAX {
            self.scores.push(score);
        } else {
            let place = below(rng, usize::try_from(self.seen).unwrap_or(usize::MAX));
            if let Some(slot) = self.scores.get_mut(place) {
                *slot = score;
            }
        }
    }

    /// The kept scores, in no order.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The table of expected residuals; an error while nothing was observed.
    pub fn residual_table(&self) -> Result<ResidualTable, ResidualTableError> {
        self.residuals.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;

    #[test]
    fn a_store_survives_its_stored_form_and_refuses_other_models() {
        let mut rng = seeded(1);
        let mut store = CalibrationStore::new("base", 10).unwrap();
        for i in 0..200_u8 {
            store.add_residual(f32::from(i) / 200.0, 0.5);
            store.add_score(f32::from(i), &mut rng);
        }
        store.add_score(f32::NAN, &mut rng);
        let again = CalibrationStore::from_json(&store.to_json(), "base").unwrap();
        assert_eq!(again, store);
        assert!((again.residual_table().unwrap().expected(0.3) - 0.5).abs() < 1e-6);
        assert!(matches!(
            CalibrationStore::from_json(&store.to_json(), "other"),
            Err(CalibrationError::OtherModel { .. })
        ));
    }

    #[test]
    fn malformed_stores_are_errors() {
        for json in [
            "",
            "{}",
            r#"{"model":"m","residuals":{"sums":[],"counts":[]},"scores":[],"seen":0}"#,
            r#"{"model":"m","residuals":{"sums":[1.0],"counts":[1,2]},"scores":[],"seen":0}"#,
            r#"{"model":"m","residuals":{"sums":[-1.0],"counts":[1]},"scores":[],"seen":0}"#,
            r#"{"model":"m","residuals":{"sums":[1.0],"counts":[1]},"scores":[1.0],"seen":0}"#,
        ] {
            assert!(
                matches!(CalibrationStore::from_json(json, "m"), Err(CalibrationError::Malformed { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn the_reservoir_keeps_a_uniform_sample() {
        let mut rng = seeded(2);
        let mut store = CalibrationStore::new("base", 1).unwrap();
        let total = 4 * SCORES_MAX;
        for i in 0..total {
            store.add_score(i as f32, &mut rng);
        }
        assert_eq!(store.scores().len(), SCORES_MAX);
        let mean = store.scores().iter().map(|&x| f64::from(x)).sum::<f64>() / SCORES_MAX as f64;
        // Four standard errors of the mean of a uniform sample.
        assert!((mean / total as f64 - 0.5).abs() < 4.0 * 0.289 / (SCORES_MAX as f64).sqrt());
    }
}
