//! Checkpoints: weights, moments and the step, so that an interrupted job goes on exactly as if it had not been.
//!
//! Order and masks of a step are drawn from the seed and the step's number alone, so that there is no other state to keep.

use std::path::Path;

use mneme_base::ContentHash;
use mneme_weights::{SafetensorsFile, TensorSource};
use tch::{Device, Tensor};

use crate::adapter_file::{Stored, encode, replace};
use crate::error::{ModelError, Result};
use crate::train::learner::Learner;

/// What the metadata must say.
const FORMAT: &str = "mneme-checkpoint/1";

/// Writes a checkpoint: the old one or the new one survives a crash. `job` binds it to the job's data and settings.
pub fn write(path: &Path, learner: &Learner, job: ContentHash, cpu_seconds: f64) -> Result<()> {
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("job", job.to_string()),
        ("step", learner.step.to_string()),
        ("cpu_seconds", cpu_seconds.to_string()),
    ];
    let tensors = [("weights", &learner.weights), ("first", &learner.first), ("second", &learner.second)];
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
    replace(path, &encode(&metadata, tensors, Stored::F32)?)
}

/// Restores a checkpoint of this job and returns the CPU seconds spent before it; `None` when there is none, or one of
/// another job.
pub fn read(path: &Path, learner: &mut Learner, job: ContentHash, device: Device) -> Result<Option<f64>> {
    if !path.is_file() {
        return Ok(None);
    }
    let file = SafetensorsFile::open(path)?;
    let said = |key: &str| file.metadata().get(key).map(String::as_str);
    if said("format") != Some(FORMAT) || said("job") != Some(job.to_string().as_str()) {
        tracing::warn!(path = %path.display(), "checkpoint belongs to another job and is left aside");
        return Ok(None);
    }
    let damaged = |key: &str| ModelError::load(path.display().to_string(), format!("its {key} is not a number"));
    let step = said("step").and_then(|text| text.parse().ok()).ok_or_else(|| damaged("step"))?;
    let cpu_seconds = said("cpu_seconds").and_then(|text| text.parse().ok()).ok_or_else(|| damaged("cpu_seconds"))?;
    let tensor = |name: &str| -> Result<Tensor> { Ok(Tensor::f_from_slice(&file.to_f32(name)?)?.f_to_device(device)?) };
    learner.restore(tensor("weights")?, tensor("first")?, tensor("second")?, step)?;
    Ok(Some(cpu_seconds))
}
