//! What residual is to be expected at a mask rate: the denominator of the surprise ratio.
//!
//! The residual of a token is `1 - p(token)`. Compared with the residual that the model itself expects (`1 - sum p^2`) it says nothing
//! of human uncertainty; compared with the mean residual that was *measured* at the same mask rate on calibration text, its
//! expectation is 1 as long as the text is like the calibration text, and larger when the model fits worse.

use serde::{Deserialize, Serialize};

/// A table has at most this many bins.
pub const RATE_BINS_MAX: usize = 1_024;

/// Below this many observations a bin borrows from its neighbours (tokens): the standard error is then under 0.04.
const BIN_OBSERVATIONS_MIN: u64 = 50;
/// The least expected residual: it keeps the ratio finite where calibration text was predicted perfectly.
const EXPECTED_MIN: f32 = 1e-3;

/// Why a table could not be built or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResidualTableError {
    /// The number of bins is out of bounds.
    #[error("residual table has {bins} bins, it needs 1 to {RATE_BINS_MAX}")]
    Bins {
        /// Bins given.
        bins: usize,
    },
    /// Nothing was observed.
    #[error("residual table has no observations")]
    Empty,
    /// A stored value is not a probability above 0.
    #[error("expected residual of bin {bin} is not in (0, 1]")]
    Value {
        /// The bin.
        bin: usize,
    },
}

/// The expected residual by mask rate, piecewise linear between the centres of equal bins over `[0, 1]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct ResidualTable {
    expected: Vec<f32>,
}

impl ResidualTable {
    /// A table of stored bin means, each in (0, 1].
    pub fn new(expected: Vec<f32>) -> Result<Self, ResidualTableError> {
        if expected.is_empty() || expected.len() > RATE_BINS_MAX {
            return Err(ResidualTableError::Bins { bins: expected.len() });
        }
        match expected.iter().position(|&value| !(value > 0.0 && value <= 1.0)) {
            Some(bin) => Err(ResidualTableError::Value { bin }),
            None => Ok(Self { expected }),
        }
    }

    /// The residual to be expected of a token that is decided while this share of its block is masked.
    pub fn expected(&self, mask_rate: f32) -> f32 {
        let bins = self.expected.len();
        let rate = if mask_rate.is_nan() { 0.0 } else { mask_rate.clamp(0.0, 1.0) };
        let place = (rate * bins as f32 - 0.5).clamp(0.0, (bins - 1) as f32);
        let low = place.floor() as usize;
        let high = (low + 1).min(bins - 1);
        let share = place - low as f32;
        self.expected[low] * (1.0 - share) + self.expected[high] * share
    }

    /// The surprise ratio of a token: its residual over the expected one; 1 on average when calibrated.
    pub fn surprise(&self, residual: f32, mask_rate: f32) -> f32 {
        residual / self.expected(mask_rate)
    }
}

impl TryFrom<Vec<f32>> for ResidualTable {
    type Error = ResidualTableError;

    fn try_from(expected: Vec<f32>) -> Result<Self, Self::Error> {
        Self::new(expected)
    }
}

impl From<ResidualTable> for Vec<f32> {
    fn from(table: ResidualTable) -> Self {
        table.expected
    }
}

/// Collects residuals of calibration text. Mask true tokens of text that is known to need no adaptation, ask the model, and add
/// `1 - p(true token)` with the mask rate; or, for the surprise of a sampler's own choices, add what its traces say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredBuilder", into = "StoredBuilder")]
pub struct ResidualTableBuilder {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl ResidualTableBuilder {
    /// An empty collection with this many bins.
    pub fn new(bins: usize) -> Result<Self, ResidualTableError> {
        if bins == 0 || bins > RATE_BINS_MAX {
            return Err(ResidualTableError::Bins { bins });
        }
        Ok(Self { sums: vec![0.0; bins], counts: vec![0; bins] })
    }

    /// Adds one residual. Values that are not numbers are ignored.
    pub fn add(&mut self, mask_rate: f32, residual: f32) {
        if mask_rate.is_finite() && residual.is_finite() {
            let bins = self.counts.len();
            let bin = ((mask_rate.clamp(0.0, 1.0) * bins as f32) as usize).min(bins - 1);
            self.sums[bin] += f64::from(residual.clamp(0.0, 1.0));
            self.counts[bin] += 1;
        }
    }

    /// The table. A bin with few observations widens over its neighbours until it has enough, or all there are.
    pub fn build(&self) -> Result<ResidualTable, ResidualTableError> {
        let bins = self.counts.len();
        if self.counts.iter().all(|&count| count == 0) {
            return Err(ResidualTableError::Empty);
        }
        let mean_around = |bin: usize| {
            for reach in 0..bins {
                let window = bin.saturating_sub(reach)..(bin + reach + 1).min(bins);
                let count: u64 = self.counts[window.clone()].iter().sum();
                if count >= BIN_OBSERVATIONS_MIN || (count > 0 && reach + 1 == bins) {
                    return (self.sums[window].iter().sum::<f64>() / count as f64) as f32;
                }
            }
            (self.sums.iter().sum::<f64>() / self.counts.iter().sum::<u64>() as f64) as f32
        };
        ResidualTable::new((0..bins).map(|bin| mean_around(bin).clamp(EXPECTED_MIN, 1.0)).collect())
    }
}

/// The stored form of a builder, before it is checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredBuilder {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl From<ResidualTableBuilder> for StoredBuilder {
    fn from(builder: ResidualTableBuilder) -> Self {
        Self { sums: builder.sums, counts: builder.counts }
    }
}

impl TryFrom<StoredBuilder> for ResidualTableBuilder {
    type Error = ResidualTableError;

    fn try_from(stored: StoredBuilder) -> Result<Self, Self::Error> {
        let StoredBuilder { sums, counts } = stored;
        if sums.is_empty() || sums.len() != counts.len() || sums.len() > RATE_BINS_MAX {
            return Err(ResidualTableError::Bins { bins: sums.len() });
        }
        // Each residual was in [0, 1].
        match sums.iter().zip(&counts).position(|(&sum, &count)| !(0.0..=count as f64 + 1e-6).contains(&sum)) {
            Some(bin) => Err(ResidualTableError::Value { bin }),
            None => Ok(Self { sums, counts }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{seeded, uniform};

    #[test]
    fn surprise_is_one_on_average_when_calibrated_and_more_when_the_fit_is_worse() {
        let mut rng = seeded(1);
        // Residuals whose mean rises with the mask rate, as they do.
        let mut draw = |rate: f32, lift: f32| (uniform(&mut rng) as f32 * (0.2 + rate) * lift).min(1.0);
        let mut builder = ResidualTableBuilder::new(10).unwrap();
        let rates: Vec<f32> = (0..20_000).map(|i| (i % 100) as f32 / 100.0).collect();
        for &rate in &rates {
            builder.add(rate, draw(rate, 0.5));
        }
        let table = builder.build().unwrap();
        let mut mean = |lift: f32| {
            rates.iter().map(|&rate| f64::from(table.surprise(draw(rate, lift), rate))).sum::<f64>()
                / rates.len() as f64
        };
        assert!((mean(0.5) - 1.0).abs() < 0.03);
        assert!((mean(0.8) - 1.6).abs() < 0.06);
    }

    #[test]
    fn thin_bins_borrow_and_stored_tables_are_checked() {
        let mut builder = ResidualTableBuilder::new(4).unwrap();
        builder.add(0.1, 0.25);
        builder.add(f32::NAN, 0.9);
        let table = builder.build().unwrap();
        assert!((table.expected(0.9) - 0.25).abs() < 1e-6);
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<ResidualTable>(&json).unwrap(), table);
        assert!(serde_json::from_str::<ResidualTable>("[0.5, 0.0]").is_err());
        assert!(serde_json::from_str::<ResidualTable>("[]").is_err());
        assert_eq!(ResidualTableBuilder::new(2).unwrap().build(), Err(ResidualTableError::Empty));
        assert!(ResidualTableBuilder::new(0).is_err());
    }
}
