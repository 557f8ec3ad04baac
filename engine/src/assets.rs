//! Where the models lie on disk.

use std::path::{Path, PathBuf};

use crate::adapter_file;
use crate::error::{ModelError, Result};

/// The folder that set-up fills.
#[derive(Debug, Clone)]
pub struct Assets {
    root: PathBuf,
    /// Where adapter zero lies; `None` leaves it out.
    adapter_zero: Option<PathBuf>,
    /// Where the adapter of middles lies; `None` leaves it out.
    adapter_middle: Option<PathBuf>,
}

impl Assets {
    /// Uses this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let adapter_zero = Some(root.join("models/adapter-zero"));
        let adapter_middle = Some(root.join("models/adapter-middle"));
        Self { root, adapter_zero, adapter_middle }
    }

    /// The same with adapter zero from another folder.
    #[must_use]
    pub fn with_adapter_zero(self, folder: impl Into<PathBuf>) -> Self {
        Self { adapter_zero: Some(folder.into()), ..self }
    }

    /// The same with the adapter of middles from another folder.
    #[must_use]
    pub fn with_adapter_middle(self, folder: impl Into<PathBuf>) -> Self {
        Self { adapter_middle: Some(folder.into()), ..self }
    }

    /// The same as the base model is, without adapter zero and the adapter of middles.
    #[must_use]
    pub fn unadapted(self) -> Self {
        Self { adapter_zero: None, adapter_middle: None, ..self }
    }

    /// Looks for the folder: the one given, else `.assets` beside or above the working directory and the program.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(given) = given {
            if given.join("models").is_dir() {
                return Ok(Self::at(given));
            }
            return Err(ModelError::load("models", format!("{} has no folder models", given.display())));
        }
        let here = std::env::current_dir().ok();
        let program = std::env::current_exe().ok();
        let starts = [here, program].into_iter().flatten();
        let candidates =
            starts.flat_map(|start| start.ancestors().map(|folder| folder.join(".assets")).collect::<Vec<_>>());
        candidates.into_iter().find(|folder| folder.join("models").is_dir()).map(Self::at).ok_or_else(|| {
            ModelError::load("models", "no folder .assets with models was found; run `cargo xtask setup`")
        })
    }

    /// Weights of the embedder.
    pub fn embedder_weights(&self) -> PathBuf {
        self.root.join("models/all-MiniLM-L6-v2/model.safetensors")
    }

    /// Tokenizer of the embedder.
    pub fn embedder_tokenizer(&self) -> PathBuf {
        self.root.join("models/all-MiniLM-L6-v2/tokenizer.json")
    }

    /// Weights and tokenizer of the generator.
    pub fn generator(&self) -> PathBuf {
        self.root.join("models/smollm2-135m-instruct/smollm2.gguf")
    }

    /// The trained conditioner, when there is one.
    pub fn conditioner(&self) -> PathBuf {
        self.root.join("models/conditioner")
    }

    /// The adapter that turns the base generator into a diffusion model, when there is one.
    pub fn adapter_zero(&self) -> Option<&Path> {
        self.adapter_zero.as_deref().filter(|folder| folder.join(adapter_file::NAME).is_file())
    }

    /// The adapter that writes holes with the text after them in view, when there is one.
    pub fn adapter_middle(&self) -> Option<&Path> {
        self.adapter_middle.as_deref().filter(|folder| folder.join(adapter_file::NAME).is_file())
    }
}
