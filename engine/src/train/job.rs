//! One training job: learn, judge, learn the placebo, judge, report.

use std::path::{Path, PathBuf};

use mneme_base::ContentHash;
use mneme_diffusion::random::{below, seeded, uniform};
use mneme_engine_api::{AdapterLevel, CancelToken, EngineError, TrainEvent, TrainJob, TrainOutcome, TrainText};

use tch::Device;

use crate::adapter_file::{self, Stored};
use crate::embedder::Embedder;
use crate::error::{ModelError, Result};
use crate::generator::Generator;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::BackboneConfig;
use crate::train::batch::{Batch, Noise};
use crate::train::checkpoint;
use crate::train::judge::{Case, TokenLosses, judge};
use crate::train::learner::{Learner, Objective};

/// A job takes at most this many optimiser steps.
const STEPS_MAX: u32 = 100_000;
/// A job brings at most this many texts in one list.
const TEXTS_MAX: usize = 100_000;
/// Texts longer than this are cut into pieces (tokens).
const PIECE_TOKENS: usize = 192;
/// Clean tokens of one batch.
const BATCH_TOKENS: usize = 256;
/// Share of the pieces of a batch that are replayed base text: learning the new must not cost the old.
const REPLAY_SHARE: f64 = 0.3;
/// A text is judged by its first tokens.
const JUDGED_TOKENS: usize = 512;
/// Steps between two checkpoints: at most so much work is lost to a power cut.
const CHECKPOINT_STEPS: u32 = 25;
/// Steps between two events.
const EVENT_STEPS: u32 = 5;
/// Block sizes of the masked half.
const BLOCKS: [usize; 4] = [2, 4, 8, 16];
/// Share of the steps that learn masked text too, which costs them twice: adapters are judged, and serve, left to right.
const NOISY_SHARE: f64 = 0.25;
/// Training texts that the retrieval arm puts before a held-out text.
const RETRIEVED: usize = 3;
/// Tokens of one retrieved text.
const RETRIEVED_TOKENS: usize = 128;
/// Training texts that the retrieval arm searches.
const RETRIEVABLE_MAX: usize = 2_048;
/// Training texts that are searched for strings learnt by heart.
const CANARY_TEXTS_MAX: usize = 128;

/// Runs a job, or goes on where its checkpoint left off.
pub fn run(
    generator: &Generator,
    embedder: &Embedder,
    job: &TrainJob,
    observe: &mut dyn FnMut(TrainEvent),
    cancel: &CancelToken,
) -> Result<TrainOutcome> {
    check(job)?;
    if !generator.backbone().is_trainable() {
        let feature = "training on packed weights: open the engine with dense ones".into();
        return Err(EngineError::Unsupported { engine: crate::NAME.into(), feature }.into());
    }
    let folder = PathBuf::from(&job.folder);
    fs_err::create_dir_all(&folder)?;
    let mut work = Work { generator, job, hash: hash(job, generator.base_hash), observe, cancel, cpu_before: 0.0 };
    let train = work.pieces(&job.train)?;
    let replay = work.pieces(&job.replay)?;
    let parent = work.parent()?;
    let adapted = work.learn("train", &train, &replay, &folder)?;
    let bytes = fs_err::metadata(folder.join(adapter_file::NAME))?.len();
    let adapter_hash = adapter_file::hash(&folder)?.ok_or_else(|| ModelError::load("adapter", "it was not written"))?;

    let held_out = work.cases(&job.held_out)?;
    let guard = work.cases(&job.guard)?;
    let retrieval = work.with_retrieved(embedder, &held_out)?;
    let held_out_base = work.judge_all(None, &held_out)?;
    let held_out_adapted = work.judge_all(Some(&adapted), &held_out)?;
    let guard_base = work.judge_all(None, &guard)?;
    let guard_adapted = work.judge_all(Some(&adapted), &guard)?;
    let held_out_retrieval = work.judge_all(None, &retrieval)?;
    let held_out_retrieval_adapted = work.judge_all(Some(&adapted), &retrieval)?;
    let held_out_parent = match &parent {
        Some(parent) => means(&work.judge_all(Some(parent), &held_out)?),
        None => Vec::new(),
    };
    // Nobody asks how good an adapter is that comes without texts to judge it on: a control arm of an experiment.
    let judged = !(job.held_out.is_empty() && job.guard.is_empty());
    let canaries_extracted = if judged { work.canaries(&adapted)? } else { 0 };

    let held_out_placebo = if job.placebo.is_empty() {
        Vec::new()
    } else {
        let pieces = work.pieces(&job.placebo)?;
        let placebo = work.learn("placebo", &pieces, &replay, &folder.join("placebo"))?;
        means(&work.judge_all(Some(&placebo), &held_out)?)
    };
    Ok(TrainOutcome {
        adapter: job.adapter,
        level: job.level,
        base_hash: generator.base_hash,
        adapter_hash,
        bytes,
        parameters: adapted.parameters(),
        held_out_base: means(&held_out_base),
        held_out_adapted: means(&held_out_adapted),
        held_out_placebo,
        held_out_retrieval: means(&held_out_retrieval),
        held_out_retrieval_adapted: means(&held_out_retrieval_adapted),
        held_out_parent,
        guard_base: means(&guard_base),
        guard_adapted: means(&guard_adapted),
        held_out_tokens: held_out_base.iter().map(|judged| judged.losses.len() as u32).collect(),
        canaries_extracted,
        cpu_seconds: work.cpu_before + cpu_seconds(),
    })
}

fn check(job: &TrainJob) -> Result<()> {
    let refuse = |parameter: &str, problem: String| Err(EngineError::invalid(parameter, problem).into());
    if job.level == AdapterLevel::Composition {
        let feature = format!("training of level {:?}", job.level);
        return Err(EngineError::Unsupported { engine: crate::NAME.into(), feature }.into());
    }
    if job.steps_max == 0 || job.steps_max > STEPS_MAX {
        return refuse("steps_max", format!("is {}, allowed is 1 to {STEPS_MAX}", job.steps_max));
    }
    if !(0.0..=1.0).contains(&job.scale) {
        return refuse("scale", format!("is {}, allowed is 0 to 1", job.scale));
    }
    if job.parent.as_ref().is_some_and(|parent| !(0.0..=1.0).contains(&parent.scale)) {
        return refuse("parent", "has a scale outside 0 to 1".into());
    }
    if job.train.iter().all(|text| text.text.trim().is_empty()) {
        return refuse("train", "has no text".into());
    }
    for texts in [&job.train, &job.held_out, &job.replay, &job.guard, &job.placebo] {
        if texts.len() > TEXTS_MAX {
            return refuse("texts", format!("are {}, at most {TEXTS_MAX} are taken", texts.len()));
        }
    }
    Ok(())
}

/// Binds a checkpoint to everything that decides the result; the folder does not.
fn hash(job: &TrainJob, base: ContentHash) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base.as_bytes());
    hasher.update(&job.seed.to_le_bytes());
    hasher.update(&job.steps_max.to_le_bytes());
    hasher.update(&[job.level as u8]);
    if let Some(parent) = &job.parent {
        hasher.update(parent.id.as_bytes());
        hasher.update(&parent.scale.to_le_bytes());
    }
    for texts in [&job.train, &job.replay, &job.placebo] {
        hasher.update(&(texts.len() as u64).to_le_bytes());
        for text in texts {
            hasher.update(&(text.text.len() as u64).to_le_bytes());
            hasher.update(text.text.as_bytes());
        }
    }
    ContentHash::from_bytes(*hasher.finalize().as_bytes())
}

fn means(judged: &[TokenLosses]) -> Vec<f32> {
    judged.iter().map(TokenLosses::mean).collect()
}

/// Processor time of this process so far (seconds).
pub(crate) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A job at work.
struct Work<'a> {
    generator: &'a Generator,
    job: &'a TrainJob,
    hash: ContentHash,
    observe: &'a mut dyn FnMut(TrainEvent),
    cancel: &'a CancelToken,
    /// CPU seconds of earlier runs of this job.
    cpu_before: f64,
}

impl Work<'_> {
    fn tokens(&self, text: &str) -> Result<Vec<i64>> {
        Ok(self.generator.encode(text)?.into_iter().map(i64::from).collect())
    }

    /// Cuts texts into pieces that each start with the document token.
    fn pieces(&self, texts: &[TrainText]) -> Result<Vec<Vec<i64>>> {
        let document = i64::from(self.generator.special.document);
        let mut pieces = Vec::new();
        for text in texts {
            for piece in self.tokens(&text.text)?.chunks(PIECE_TOKENS) {
                pieces.push([&[document], piece].concat());
            }
        }
        Ok(pieces)
    }

    fn cases(&self, texts: &[TrainText]) -> Result<Vec<Case>> {
        let document = i64::from(self.generator.special.document);
        let case = |text: &TrainText| -> Result<Case> {
            let mut tokens = self.tokens(&text.text)?;
            tokens.truncate(JUDGED_TOKENS);
            tokens.insert(0, document);
            Ok(Case { tokens, scored_from: 1 })
        };
        texts.iter().map(case).collect()
    }

    /// The held-out cases with the most similar training texts before them: what recall would do without any training.
    fn with_retrieved(&mut self, embedder: &Embedder, held_out: &[Case]) -> Result<Vec<Case>> {
        if held_out.is_empty() {
            return Ok(Vec::new());
        }
        let known: Vec<String> = self.job.train.iter().take(RETRIEVABLE_MAX).map(|text| text.text.clone()).collect();
        let asked: Vec<String> = self.job.held_out.iter().map(|text| text.text.clone()).collect();
        let (known_vectors, asked_vectors) =
            (embedder.embed(&known, self.cancel)?, embedder.embed(&asked, self.cancel)?);
        let mut cases = Vec::with_capacity(held_out.len());
        for (case, vector) in held_out.iter().zip(&asked_vectors) {
            let mut order: Vec<(usize, f32)> =
                known_vectors.iter().map(|known| known.cosine(vector).unwrap_or(0.0)).enumerate().collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut tokens = vec![i64::from(self.generator.special.document)];
            for (index, _) in order.iter().take(RETRIEVED).rev() {
                let text = self.tokens(&known[*index])?;
                tokens.extend(&text[..text.len().min(RETRIEVED_TOKENS)]);
                tokens.extend(self.tokens("\n\n")?);
            }
            let scored_from = tokens.len();
            tokens.extend(&case.tokens[1..]);
            cases.push(Case { tokens, scored_from });
        }
        Ok(cases)
    }

    /// Trains one adapter, from its checkpoint when there is one; an adapter of this job is taken as it is. The result has the
    /// strength that is to be judged; its file has the full one.
    fn learn(&mut self, phase: &str, pieces: &[Vec<i64>], replay: &[Vec<i64>], folder: &Path) -> Result<Adapter> {
        let config = self.generator.backbone().config.clone();
        let device = self.generator.backbone().device();
        let path = folder.join("checkpoint.safetensors");
        if !adapter_file::is_of_job(folder, self.hash) {
            fs_err::create_dir_all(folder)?;
            let adapter = self.train(phase, pieces, replay, &path, &config, device)?;
            adapter_file::write(folder, &adapter, self.generator.base_hash, self.hash, Stored::F32)?;
        }
        // The moments are of no use any more, and twice as large as the adapter.
        if path.exists() {
            fs_err::remove_file(&path)?;
        }
        let mut adapter = adapter_file::read(folder, &config, self.generator.base_hash, device)?;
        adapter.strength = f64::from(self.job.scale);
        Ok(adapter)
    }

    /// The adapter that the job starts from, with its scale in its weights.
    fn parent(&self) -> Result<Option<Adapter>> {
        let Some(parent) = &self.job.parent else { return Ok(None) };
        let (config, device) = {
            let backbone = self.generator.backbone();
            (backbone.config.clone(), backbone.device())
        };
        let adapter = adapter_file::read(Path::new(&parent.folder), &config, self.generator.base_hash, device)?;
        Ok(Some(adapter.into_full_strength(f64::from(parent.scale))?))
    }

    fn train(
        &mut self,
        phase: &str,
        pieces: &[Vec<i64>],
        replay: &[Vec<i64>],
        path: &Path,
        config: &BackboneConfig,
        device: Device,
    ) -> Result<Adapter> {
        let mut rng = seeded(self.job.seed ^ salt(phase));
        let start = match self.parent()?.filter(|parent| parent.level() == self.job.level) {
            Some(parent) => parent,
            // A parent of another level has nothing to start from; the outcome is judged beside it all the same.
            None => Adapter::of_level(self.job.level, config, device, || uniform(&mut rng))?,
        };
        let mut learner = Learner::new(start)?;
        if let Some(seconds) = checkpoint::read(path, &mut learner, self.hash, device)? {
            self.cpu_before = self.cpu_before.max(seconds);
        }
        let total = self.job.steps_max;
        let (mut loss_sum, mut loss_count) = (0.0_f64, 0_u32);
        while learner.step < total {
            if let Err(reason) = self.cancel.check() {
                checkpoint::write(path, &learner, self.hash, self.cpu_before + cpu_seconds())?;
                return Err(reason.into());
            }
            let loss = self.step(&mut learner, phase, pieces, replay)?;
            loss_sum += f64::from(loss);
            loss_count += 1;
            if learner.step % EVENT_STEPS == 0 || learner.step == total {
                let loss = (loss_sum / f64::from(loss_count)) as f32;
                (loss_sum, loss_count) = (0.0, 0);
                (self.observe)(TrainEvent { step: learner.step, steps_total: total, loss, phase: phase.into() });
            }
            if learner.step % CHECKPOINT_STEPS == 0 || learner.step == total {
                checkpoint::write(path, &learner, self.hash, self.cpu_before + cpu_seconds())?;
            }
        }
        Ok(learner.adapter)
    }

    /// One optimiser step. What it sees depends on seed and step alone, so that a resumed job sees the same.
    fn step(&self, learner: &mut Learner, phase: &str, pieces: &[Vec<i64>], replay: &[Vec<i64>]) -> Result<f32> {
        let mut rng =
            seeded(self.job.seed ^ salt(phase) ^ (u64::from(learner.step) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut texts: Vec<&[i64]> = Vec::new();
        let mut tokens = 0;
        // A batch holds no more than the text there is: repeats inside one step only cost time.
        let budget = pieces.iter().map(Vec::len).sum::<usize>().min(BATCH_TOKENS);
        loop {
            let from = if !replay.is_empty() && uniform(&mut rng) < REPLAY_SHARE { replay } else { pieces };
            let text = &from[below(&mut rng, from.len())];
            if !texts.is_empty() && tokens + text.len() > budget {
                break;
            }
            tokens += text.len();
            texts.push(text);
        }
        let backbone = self.generator.backbone();
        // Without adapter zero the base knows nothing of masks: a job's few steps would go into learning what a mask is.
        let zero = self.generator.adapter_zero.as_ref();
        let zero = zero.map(|zero| zero.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let is_noisy = zero.is_some() && uniform(&mut rng) < NOISY_SHARE;
        let (noise, masked) = if is_noisy { (Noise::Blocks(&BLOCKS), 1.0) } else { (Noise::None, 0.0) };
        let batch = Batch::pack(&texts, backbone.config.mask_token, noise, &mut rng);
        let frozen: Vec<&Adapter> = zero.as_deref().into_iter().collect();
        learner.learn(&backbone, &frozen, &batch, Objective { causal: 1.0, masked }, self.job.steps_max)
    }

    fn judge_all(&mut self, adapter: Option<&Adapter>, cases: &[Case]) -> Result<Vec<TokenLosses>> {
        let mut judged = Vec::with_capacity(cases.len());
        for case in cases {
            self.cancel.check()?;
            let backbone = self.generator.backbone();
            let zero = self.generator.adapter_zero.as_ref();
            let zero = zero.map(|zero| zero.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            let stack: Vec<&Adapter> = zero.as_deref().into_iter().chain(adapter).collect();
            judged.push(judge(&backbone, &stack, case)?);
        }
        let (step, steps_total) = (self.job.steps_max, self.job.steps_max);
        let tokens: usize = judged.iter().map(|one| one.losses.len()).sum();
        let sum: f64 = judged.iter().flat_map(|one| &one.losses).map(|loss| f64::from(*loss)).sum();
        let loss = (sum / tokens.max(1) as f64) as f32;
        (self.observe)(TrainEvent { step, steps_total, loss, phase: "validate".into() });
        Ok(judged)
    }

    /// Training texts whose rarest string the adapter writes by heart and the base does not.
    fn canaries(&mut self, adapted: &Adapter) -> Result<u32> {
        let texts: Vec<TrainText> = self.job.train.iter().take(CANARY_TEXTS_MAX).cloned().collect();
        let cases = self.cases(&texts)?;
        let base = self.judge_all(None, &cases)?;
        let learnt = self.judge_all(Some(adapted), &cases)?;
        let extracted = base.iter().zip(&learnt).filter(|(base, learnt)| {
            base.rarest().is_some_and(|start| learnt.reproduces(start) && !base.reproduces(start))
        });
        Ok(extracted.count() as u32)
    }
}

/// Keeps the draws of the two phases apart.
fn salt(phase: &str) -> u64 {
    if phase == "placebo" { 0x5bd1_e995_0b0e_7a17 } else { 0 }
}
