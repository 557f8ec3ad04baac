//! Embeddings and scores: numbers that are known to be finite.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An embedding has at most this many dimensions: larger ones are refused before they are stored.
pub const DIMENSIONS_MAX: usize = 8_192;

/// A vector or score that could not be taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// The vector has no dimensions or too many.
    #[error("embedding has {dimensions} dimensions, allowed are 1 to {DIMENSIONS_MAX}")]
    Dimensions {
        /// Its length.
        dimensions: usize,
    },
    /// A component is not a number.
    #[error("embedding component {index} is {value}, only finite numbers are allowed")]
    NotFinite {
        /// Which component.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// All components are zero, so the vector has no direction.
    #[error("embedding has length zero")]
    Zero,
}

/// Names the model and recipe that made an embedding: only embeddings of one generation can be compared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EmbeddingGeneration(pub String);

impl fmt::Display for EmbeddingGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EmbeddingGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmbeddingGeneration({})", self.0)
    }
}

/// A direction in meaning space: finite components, Euclidean length 1.
///
/// # Shapes
/// `[dimensions] f32`, 1 to [`DIMENSIONS_MAX`]; the dot product of two is their cosine.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct Embedding(Box<[f32]>);

impl Embedding {
    /// Checks the components and scales them to length 1. Costs two passes.
    pub fn normalized(mut components: Vec<f32>) -> Result<Self, EmbeddingError> {
        if components.is_empty() || components.len() > DIMENSIONS_MAX {
            return Err(EmbeddingError::Dimensions { dimensions: components.len() });
        }
        if let Some(index) = components.iter().position(|x| !x.is_finite()) {
            return Err(EmbeddingError::NotFinite { index, value: components[index] });
        }
        // f64 keeps the sum finite for every finite f32 vector of the allowed length.
        let length = components.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if length == 0.0 {
            return Err(EmbeddingError::Zero);
        }
        // A vector that is already of unit length keeps its bits, so that storing and loading is exact.
        if (length - 1.0).abs() > 1e-6 {
            for x in &mut components {
                *x = (f64::from(*x) / length) as f32;
            }
        }
        Ok(Self(components.into_boxed_slice()))
    }

    /// How many dimensions it has.
    pub fn dimensions(&self) -> usize {
        self.0.len()
    }

    /// The components.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The cosine of the angle to another embedding; `None` when the dimensions differ.
    pub fn cosine(&self, other: &Self) -> Option<f32> {
        (self.0.len() == other.0.len()).then(|| self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum())
    }
}

impl TryFrom<Vec<f32>> for Embedding {
    type Error = EmbeddingError;
    fn try_from(components: Vec<f32>) -> Result<Self, EmbeddingError> {
        Self::normalized(components)
    }
}

impl From<Embedding> for Vec<f32> {
    fn from(embedding: Embedding) -> Self {
        embedding.0.into_vec()
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedding[{}]", self.0.len())
    }
}

/// A finite relevance score; larger is more relevant. Totally ordered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(f32);

impl Score {
    /// Takes a score; what is not finite becomes the lowest score.
    pub fn new(value: f32) -> Self {
        Self(if value.is_finite() { value } else { f32::MIN })
    }

    /// The number.
    pub const fn get(self) -> f32 {
        self.0
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_to_unit_length() {
        let embedding = Embedding::normalized(vec![3.0, 4.0]).unwrap();
        assert_eq!(embedding.as_slice(), &[0.6, 0.8]);
        assert!((embedding.cosine(&embedding).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn refuses_what_has_no_direction() {
        assert!(matches!(Embedding::normalized(vec![]), Err(EmbeddingError::Dimensions { dimensions: 0 })));
        assert!(matches!(Embedding::normalized(vec![0.0; 3]), Err(EmbeddingError::Zero)));
        assert!(matches!(Embedding::normalized(vec![1.0, f32::NAN]), Err(EmbeddingError::NotFinite { index: 1, .. })));
    }

    #[test]
    fn huge_components_do_not_overflow() {
        let embedding = Embedding::normalized(vec![f32::MAX; 4]).unwrap();
        assert!(embedding.as_slice().iter().all(|x| (x - 0.5).abs() < 1e-6));
    }

    #[test]
    fn a_score_orders_nan_last() {
        assert!(Score::new(f32::NAN) < Score::new(-1e30));
    }
}
