//! The cache of packed layers beside a model file: written at the first load, mapped after that.
//!
//! Its name holds the hash of the weights and the form, so that it never belongs to another model. It is only a cache: when it is
//! missing, damaged or cannot be written, layers are packed from the model file.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mneme_base::ContentHash;
use mneme_quant::PackedWeights;
use mneme_weights::sidecar::{self, Sidecar};

use crate::error::Result;
use crate::runtime::Precision;

/// Grows when the form of packed layers does.
const VERSION: u32 = 1;

/// Packed layers by name.
#[derive(Debug)]
pub(crate) struct Tiles {
    path: PathBuf,
    found: Option<Sidecar>,
    made: Mutex<Vec<(String, PackedWeights)>>,
}

impl Tiles {
    /// Looks for the cache of a model file; `None` for a form that is not packed.
    pub(crate) fn open(model: &Path, hash: ContentHash, precision: Precision) -> Option<Self> {
        let form = match precision {
            Precision::Dense => return None,
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        };
        let short: String = hash.to_string().chars().take(16).collect();
        let path = model.with_extension(format!("{short}.{form}-{VERSION}.arrow"));
        let found = if path.is_file() {
            Sidecar::open(&path)
                .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "packed layers are made anew"))
                .ok()
        } else {
            None
        };
        Some(Self { path, found, made: Mutex::new(Vec::new()) })
    }

    /// A layer from the cache, when it is there and has the right shape; else what `make` makes.
    pub(crate) fn layer(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        make: impl FnOnce() -> Result<PackedWeights>,
    ) -> Result<PackedWeights> {
        let found = self.found.as_ref().and_then(|sidecar| sidecar.matrix(name)?.ok());
        if let Some(found) = found.filter(|found| found.outputs() == outputs && found.inputs() == inputs) {
            return Ok(found);
        }
        let made = make()?;
        let mut all = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.push((name.to_owned(), made.clone()));
        Ok(made)
    }

    /// Writes the cache when anything was made. A folder that cannot be written to costs the next start some time, no more.
    pub(crate) fn keep(self) {
        let made = self.made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if made.is_empty() {
            return;
        }
        if let Err(error) = sidecar::write(&self.path, made.iter().map(|(name, packed)| (name.as_str(), packed))) {
            tracing::warn!(path = %self.path.display(), %error, "packed layers are not kept");
        }
    }
}
