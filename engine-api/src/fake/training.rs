//! How the stand-in learns: text by text in a drawn order, with checkpoints. A training that was killed goes on from its last
//! checkpoint and ends in the same bytes as one that was not.

use std::io::Write as _;
use std::path::Path;

use mneme_base::ContentHash;
use serde::{Deserialize, Serialize};

use super::{SplitMix, ngram::words};
use crate::engine::EngineError;
use crate::types::{AdapterLevel, TrainJob, TrainText};

/// The checkpoint inside a job's folder.
const CHECKPOINT_FILE: &str = "checkpoint.json";
/// Texts between two checkpoints: each costs a synced write.
const CHECKPOINT_EVERY: usize = 16;
/// Texts that the stand-in's smaller levels hold: like a low-rank update, they gain nothing more at some point.
const SMALL_TEXTS_MAX: usize = 100;

/// A training under way: what was learned, and what decides the rest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Learning {
    /// Hash of the job that it belongs to.
    job: ContentHash,
    /// State of the draws.
    random: u64,
    /// Texts not learned yet, by their place in the job.
    left: Vec<usize>,
    /// What was learned, one text a line.
    lines: String,
    /// Texts that it still has room for.
    room: usize,
}

impl Learning {
    /// Begins a job, or takes it up at its checkpoint.
    pub(super) fn begin_or_resume(job: &TrainJob, parent: &str) -> Self {
        let hash = hash(job, parent);
        let kept = fs_err::read(Path::new(&job.folder).join(CHECKPOINT_FILE)).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let fits = |kept: &Self| kept.job == hash && kept.left.iter().all(|text| *text < job.train.len());
        let room = match job.level {
            AdapterLevel::Layers => usize::MAX,
            _ => SMALL_TEXTS_MAX.saturating_sub(parent.lines().count()),
        };
        kept.filter(fits).unwrap_or_else(|| Self {
            job: hash,
            random: job.seed,
            left: (0..job.train.len()).collect(),
            lines: parent.to_owned(),
            room,
        })
    }

    /// Texts not learned yet.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Learns the next text; false when there is none.
    pub(super) fn step(&mut self, texts: &[TrainText]) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let mut random = SplitMix(self.random);
        let place = (random.next_unit() * self.left.len() as f64) as usize;
        self.random = random.0;
        let text = self.left.swap_remove(place.min(self.left.len() - 1));
        if let Some(room) = self.room.checked_sub(1) {
            self.room = room;
            self.lines.push_str(&words(&texts[text].text).join(" "));
            self.lines.push('\n');
        }
        true
    }

    /// Writes the checkpoint when it is due.
    pub(super) fn save_when_due(&self, folder: &Path) -> Result<(), EngineError> {
        if !self.left.len().is_multiple_of(CHECKPOINT_EVERY) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(self).map_err(|error| EngineError::Internal { reason: error.to_string() })?;
        replace(&folder.join(CHECKPOINT_FILE), &bytes)
    }

    /// What was learned.
    pub(super) fn into_lines(self) -> String {
        self.lines
    }
}

/// Everything that decides what is learned: the scale is applied afterwards, and a folder is only a place.
fn hash(job: &TrainJob, parent: &str) -> ContentHash {
    let mut text = format!("{} {} {:?} {}", job.adapter, job.seed, job.level, ContentHash::of(parent.as_bytes()));
    for TrainText { text: learned, .. } in &job.train {
        text.push('\n');
        text.push_str(&ContentHash::of(learned.as_bytes()).to_string());
    }
    ContentHash::of(text.as_bytes())
}

/// A finished job needs no checkpoint, and this one is words of its texts.
pub(super) fn forget_checkpoint(folder: &Path) -> Result<(), EngineError> {
    match fs_err::remove_file(folder.join(CHECKPOINT_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::Internal { reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Replaces a file: written beside it, synced, renamed.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = fs_err::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)
    };
    write().map_err(|error| EngineError::Internal { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CancelToken, Engine as _};
    use crate::fake::FakeEngine;
    use crate::types::TrainEvent;

    fn job(folder: &Path) -> TrainJob {
        let texts = |range: std::ops::Range<u32>| {
            let text = |n| TrainText { memory: String::new(), text: format!("day {n}: up betimes and to the office") };
            range.map(text).collect::<Vec<_>>()
        };
        TrainJob {
            adapter: mneme_base::AdapterId::from_bytes([1; 16]),
            level: AdapterLevel::Lora,
            train: texts(0..40),
            held_out: texts(40..44),
            replay: Vec::new(),
            guard: Vec::new(),
            placebo: Vec::new(),
            parent: None,
            steps_max: 10,
            scale: 1.0,
            seed: 7,
            folder: folder.display().to_string(),
        }
    }

    #[test]
    fn an_interrupted_training_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let engine = FakeEngine::default();
        let (whole, broken) = (job(&folder.path().join("whole")), job(&folder.path().join("broken")));
        let expected = engine.train(&whole, &mut |_| {}, &CancelToken::default()).unwrap();
        let cancel = CancelToken::default();
        let stop = |event: TrainEvent| {
            if event.step == 20 {
                cancel.cancel();
            }
        };
        assert_eq!(engine.train(&broken, &mut { stop }, &cancel.clone()), Err(EngineError::Cancelled));
        assert!(!folder.path().join("broken/adapter.txt").exists());
        let mut steps = Vec::new();
        let resumed = engine.train(&broken, &mut |event| steps.push(event.step), &CancelToken::default()).unwrap();
        assert_eq!(steps.first(), Some(&9), "40 less 32 texts were learned at the last checkpoint");
        assert_eq!(resumed.adapter_hash, expected.adapter_hash);
        // A smaller level has room for so much, and selected layers for more.
        let size = |level, name: &str| {
            let mut job = TrainJob { level, ..job(&folder.path().join(name)) };
            job.train = job.train.iter().cycle().take(120).cloned().collect();
            engine.train(&job, &mut |_| {}, &CancelToken::default()).unwrap().bytes
        };
        assert!(size(AdapterLevel::Layers, "layers") > size(AdapterLevel::Lora, "lora"));
        // A checkpoint of another job is no start.
        let other = TrainJob { seed: 8, ..broken };
        let other = engine.train(&other, &mut |_| {}, &CancelToken::default()).unwrap();
        assert_ne!(other.adapter_hash, expected.adapter_hash, "the seed draws the order");
    }
}
