//! WeightMapProbe: what is in a set of weights, and what changed between two sets.

mod spectrum;
mod statistics;

use serde::Serialize;

pub use spectrum::{RANK_MAX, Spectrum, spectrum};
pub use statistics::{Statistics, statistics};

use crate::{TensorError, TensorInfo, TensorSource};

/// What a probe of one tensor found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Name of the tensor.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Storage type.
    pub dtype: String,
    /// Stored size, scales included (bytes).
    pub bytes: usize,
    /// Distribution of the values; absent when only listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// Largest singular values; absent unless asked for, and for tensors that are no matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spectrum: Option<Spectrum>,
}

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Names, shapes, types, sizes: nothing is read.
    #[default]
    List,
    /// Also the distribution of the values: every tensor is decoded.
    Statistics,
    /// Also this many singular values of each matrix.
    Spectrum {
        /// How many singular values, at most [`RANK_MAX`].
        rank: usize,
    },
}

/// Probes one tensor. Holds its decoded values: four bytes per element.
pub fn probe(source: &dyn TensorSource, tensor: &TensorInfo, depth: Depth) -> Result<TensorReport, TensorError> {
    let mut report = TensorReport {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: tensor.dtype.to_string(),
        bytes: tensor.bytes,
        statistics: None,
        spectrum: None,
    };
    if depth == Depth::List {
        return Ok(report);
    }
    let values = source.to_f32(&tensor.name)?;
    report.statistics = Some(statistics(&values));
    if let (Depth::Spectrum { rank }, [rows, columns]) = (depth, tensor.shape.as_slice()) {
        report.spectrum = spectrum(&values, *rows, *columns, rank);
    }
    source.release(&tensor.name);
    Ok(report)
}

/// How one tensor differs between two sets.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// Bit for bit the same values.
    Equal,
    /// Only in the first set.
    Removed,
    /// Only in the second set.
    Added,
    /// The shapes differ.
    Reshaped {
        /// Shape in the first set.
        before: Vec<usize>,
        /// Shape in the second set.
        after: Vec<usize>,
    },
    /// The values differ.
    Changed {
        /// `|after - before| / |before|` in the Euclidean norm; infinite when `before` is zero.
        relative_error: f64,
        /// Cosine of the angle between the two; 0 when one is zero.
        cosine: f64,
        /// Largest change of a single element.
        max_change: f64,
        /// Share of elements that changed at all.
        changed_fraction: f64,
    },
}

/// A tensor and how it differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Name of the tensor.
    pub name: String,
    /// How it differs.
    #[serde(flatten)]
    pub difference: Difference,
}

/// Compares two sets tensor by tensor: first those of `before` in its order, then those that only `after` has. Values are
/// compared decoded, so a set can be compared with its quantised form.
pub fn diff(
    before: &dyn TensorSource,
    after: &dyn TensorSource,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<TensorDifference>, TensorError> {
    let total = before.tensors().len();
    let mut differences = Vec::with_capacity(total);
    for (done, tensor) in before.tensors().iter().enumerate() {
        let difference = match after.find(&tensor.name) {
            None => Difference::Removed,
            Some(other) if other.shape != tensor.shape => {
                Difference::Reshaped { before: tensor.shape.clone(), after: other.shape.clone() }
            }
            Some(_) => compare(&before.to_f32(&tensor.name)?, &after.to_f32(&tensor.name)?),
        };
        before.release(&tensor.name);
        after.release(&tensor.name);
        differences.push(TensorDifference { name: tensor.name.clone(), difference });
        progress(done + 1, total);
    }
    let added = after.tensors().iter().filter(|tensor| before.find(&tensor.name).is_none());
    differences
        .extend(added.map(|tensor| TensorDifference { name: tensor.name.clone(), difference: Difference::Added }));
    Ok(differences)
}

fn compare(before: &[f32], after: &[f32]) -> Difference {
    let (mut change, mut norm_before, mut norm_after, mut dot) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    let mut max_change = 0.0_f64;
    let mut changed = 0_usize;
    for (&a, &b) in before.iter().zip(after) {
        let (x, y) = (f64::from(a), f64::from(b));
        changed += usize::from(a.to_bits() != b.to_bits());
        change += (y - x) * (y - x);
        max_change = max_change.max((y - x).abs());
        norm_before += x * x;
        norm_after += y * y;
        dot += x * y;
    }
    if changed == 0 {
        return Difference::Equal;
    }
    let norms = (norm_before * norm_after).sqrt();
    Difference::Changed {
        relative_error: if norm_before > 0.0 { (change / norm_before).sqrt() } else { f64::INFINITY },
        cosine: if norms > 0.0 { dot / norms } else { 0.0 },
        max_change,
        changed_fraction: changed as f64 / before.len() as f64,
    }
}
