//! Turns the base model into a masked-diffusion model: a long run that can be stopped and goes on where it was.
//!
//! What is learnt is an adapter that acts on undecided rows only (see [`segments`](crate::train::segments)), so that the base
//! model itself stays what it was, bit for bit. The rate rises, then stays: a run has no end that it must know beforehand, and
//! what is written and judged are the averaged weights.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mneme_base::ContentHash;
use mneme_diffusion::random::{below, seeded, uniform};
use mneme_engine_api::CancelToken;
use mneme_weights::{SafetensorsFile, TensorSource};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::adapter_file::{self, Stored, encode, replace};
use crate::error::{ModelError, Result};
use crate::generator::Generator;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::Additions;
use crate::train::corpus::Corpus;
use crate::train::distil::two_steps;
use crate::train::learner::Learner;
use crate::train::objective::{Clean, Teaching, graph, losses};
use crate::train::segments::{Middles, Mix, Segments};

/// The optimiser's state beside the adapter.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// One line for each look at held-out text.
pub const CURVE: &str = "curve.jsonl";
/// What the checkpoint's metadata must say.
const FORMAT: &str = "mneme-base-checkpoint/1";
/// Block sizes that are looked at on the way: 1 is the base itself, the last is a whole window.
const LOOKED_AT: [usize; 6] = [1, 2, 4, 8, 16, usize::MAX];
/// The average follows the weights over this share of the steps so far...
const AVERAGE_SHARE: f64 = 0.1;
/// ...but over no more than so many steps.
const AVERAGE_STEPS_MAX: f64 = 1_000.0;
/// Tokens of an infill that is looked at on the way.
const INFILL: usize = 16;

/// What an adapter is to learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Task {
    /// Tokens that are masked, many at once: adapter zero.
    Unmasking(Mix),
    /// Holes, left to right, with the text after them in view: the adapter of middles.
    Middles,
}

/// What decides the result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Rank of the adapter.
    pub rank: i64,
    /// Texts of a step.
    pub texts: usize,
    /// Tokens of a text at most.
    pub text_tokens: usize,
    /// Undecided rows for each text.
    pub rows: usize,
    /// What is learnt.
    pub task: Task,
    /// Share of the target that the base teaches.
    pub teaching: f64,
    /// Seed of all draws.
    pub seed: u64,
    /// The teacher's file, when one teaches.
    pub teacher: Option<ContentHash>,
}

/// How long a run goes on and what it leaves. May change where a run is taken up again.
#[derive(Debug, Clone, PartialEq)]
pub struct Course {
    /// Top of the learning rate.
    pub rate: f64,
    /// Steps in which it rises.
    pub warm_up: u32,
    /// Where adapter, checkpoint and curve are written.
    pub folder: PathBuf,
    /// It ends after this many steps in all.
    pub steps: u32,
    /// Over the last of them the rate falls to a tenth.
    pub cool_down: u32,
    /// Steps between two checkpoints.
    pub checkpoint_every: u32,
    /// Steps between two looks at held-out text.
    pub look_every: u32,
    /// Windows of held-out text that are looked at.
    pub look_windows: usize,
}

/// What a run has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Optimiser steps.
    pub step: u32,
    /// Tokens of clean text that were read.
    pub clean_tokens: u64,
    /// Rows of segments.
    pub rows: u64,
    /// Tokens that were guessed.
    pub guesses: u64,
    /// Processor time (seconds).
    pub cpu_seconds: f64,
    /// Time on the clock (seconds).
    pub seconds: f64,
}

/// A look at held-out text.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Look {
    #[serde(flatten)]
    used: Used,
    /// Mean loss of the steps since the last look (nats a token).
    loss: f64,
    /// Perplexity by block size.
    perplexity: std::collections::BTreeMap<String, f64>,
}

struct Run<'a> {
    generator: &'a Generator,
    plan: &'a Plan,
    course: &'a Course,
    corpus: &'a Corpus,
    windows: Vec<Vec<i64>>,
    hash: ContentHash,
    used: Used,
    average: Tensor,
    teacher: Option<Adapter>,
}

/// Adapts; with a teacher, whose content the plan names, the student starts as its equal and learns to do two of its steps in one.
/// Goes on from the checkpoint in the folder when there is one of this plan and corpus. Returns what
/// was used in all.
pub fn run(
    generator: &Generator,
    corpus: &Corpus,
    held_out: &Corpus,
    plan: &Plan,
    teacher: Option<Adapter>,
    course: &Course,
    cancel: &CancelToken,
) -> Result<Used> {
    if generator.adapter_zero.is_some() {
        let problem = "adapter zero is already in use; move it out of the models' folder to train another";
        return Err(ModelError::load("base", problem));
    }
    fs_err::create_dir_all(&course.folder)?;
    let config = generator.backbone().config.clone();
    let device = generator.backbone().device();
    let mut rng = seeded(plan.seed);
    let mut draw = || uniform(&mut rng);
    let adapter = match plan.task {
        Task::Unmasking(_) => Adapter::for_diffusion(&config, plan.rank, device, &mut draw)?,
        Task::Middles => Adapter::for_middles(&config, plan.rank, device, &mut draw)?,
    };
    let mut learner = Learner::new(adapter)?;
    if let Some(teacher) = &teacher {
        learner.start_as(teacher)?;
    }
    let mut rng = seeded(plan.seed ^ 0x6c6f_6f6b);
    let windows = (0..course.look_windows).map(|_| held_out.window(generator, plan.text_tokens, &mut rng));
    let mut run = Run {
        generator,
        plan,
        course,
        corpus,
        windows: windows.collect::<Result<_>>()?,
        hash: hash(plan, generator.base_hash, corpus.hash),
        used: Used::default(),
        average: learner.weights.f_add_scalar(0.0)?,
        teacher,
    };
    run.resume(&mut learner, device)?;
    let (mut loss, mut steps, mut started) = (0.0, 0.0, Instant::now());
    let mut cpu = crate::train::job::cpu_seconds();
    while learner.step < course.steps {
        if learner.step % course.look_every == 0 {
            run.look(&learner, loss / f64::max(steps, 1.0))?;
            (loss, steps) = (0.0, 0.0);
        }
        loss += run.step(&mut learner)?;
        steps += 1.0;
        run.used.step = learner.step;
        let now = crate::train::job::cpu_seconds();
        run.used.cpu_seconds += now - cpu;
        run.used.seconds += started.elapsed().as_secs_f64();
        (cpu, started) = (now, Instant::now());
        let stopped = cancel.check();
        if stopped.is_err() || learner.step % course.checkpoint_every == 0 || learner.step == course.steps {
            run.write(&learner)?;
        }
        stopped?;
    }
    run.look(&learner, loss / f64::max(steps, 1.0))?;
    Ok(run.used)
}

/// Binds a checkpoint to everything that decides the result.
fn hash(plan: &Plan, base: ContentHash, corpus: ContentHash) -> ContentHash {
    ContentHash::of(format!("{plan:?} {base} {corpus}").as_bytes())
}

impl Run<'_> {
    /// One optimiser step. What it sees depends on seed and step alone.
    fn step(&mut self, learner: &mut Learner) -> Result<f64> {
        let mut rng = seeded(self.plan.seed ^ (u64::from(learner.step) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let backbone = self.generator.backbone();
        let mask = backbone.config.mask_token;
        let mut batch = Vec::with_capacity(self.plan.texts);
        for _ in 0..self.plan.texts {
            let text = self.corpus.window(self.generator, self.plan.text_tokens, &mut rng)?;
            let rows = (self.plan.rows * text.len() / self.plan.text_tokens).max(1);
            let drawn = match &self.plan.task {
                Task::Middles => Middles::draw(&text, rows, &mut rng),
                Task::Unmasking(mix) => {
                    let holes = Segments::draw(&text, mask, mix, rows, &mut rng);
                    Middles { holes, ..Middles::default() }
                }
            };
            batch.push((text, drawn));
        }
        let tokens: usize = batch.iter().map(|(_, drawn)| drawn.holes.covered).sum();
        let (mut gradient, mut loss): (Option<Tensor>, f64) = (None, 0.0);
        for (text, Middles { suffixes, holes: segments }) in &batch {
            let mut clean = Clean::read(&backbone, Additions::default(), text)?;
            clean.read_suffixes(&backbone, Additions::default(), suffixes)?;
            let adapters = [&learner.adapter];
            let states = match &self.teacher {
                Some(teacher) => two_steps(&backbone, teacher, &mut clean, segments)?,
                None => None,
            };
            let teaching = states.as_ref().map_or(Teaching::Base(self.plan.teaching), Teaching::Teacher);
            let made = graph(&backbone, &adapters, &mut clean, segments, text, teaching, tokens as f64)?;
            self.used.clean_tokens += text.len() as u64;
            self.used.rows += (segments.tokens.len() + suffixes.tokens.len()) as u64;
            let Some(made) = made else { continue };
            self.used.guesses += made.guesses as u64;
            loss += made.loss;
            let own = learner.gradient(made.surrogate)?;
            gradient = Some(match gradient {
                Some(sum) => sum.f_add(&own)?,
                None => own,
            });
        }
        if !loss.is_finite() {
            return Err(ModelError::load("training", format!("loss is {loss} at step {}", learner.step)));
        }
        if let Some(gradient) = gradient {
            learner.update(&gradient, self.rate(learner.step))?;
        }
        let _guard = tch::no_grad_guard();
        let steps = (f64::from(learner.step) * AVERAGE_SHARE).clamp(1.0, AVERAGE_STEPS_MAX);
        let _ = self.average.f_lerp_(&learner.weights, 1.0 / steps)?;
        Ok(loss)
    }

    fn rate(&self, step: u32) -> f64 {
        let rise = (f64::from(step) + 1.0) / f64::from(self.course.warm_up.max(1));
        let left = f64::from(self.course.steps.saturating_sub(step)) / f64::from(self.course.cool_down.max(1));
        self.course.rate * rise.min(1.0) * left.clamp(0.1, 1.0)
    }

    /// Measures the averaged weights on held-out text and writes a line.
    fn look(&self, learner: &Learner, loss: f64) -> Result<()> {
        learner.show(&self.average)?;
        let backbone = self.generator.backbone();
        let mask = backbone.config.mask_token;
        let adapters = [&learner.adapter];
        let additions = Additions::adapters(&adapters);
        let mut sums: Vec<(String, f64, f64)> = Vec::new();
        for (number, text) in self.windows.iter().enumerate() {
            let mut clean = Clean::read(&backbone, additions, text)?;
            let mut rng = seeded(self.plan.seed ^ number as u64);
            let looks = match self.plan.task {
                Task::Unmasking(_) => unmasking(text, mask, &mut rng),
                Task::Middles => middles(text),
            };
            for (index, (name, Middles { suffixes, holes })) in looks.into_iter().enumerate() {
                clean.read_suffixes(&backbone, additions, &suffixes)?;
                let losses = losses(&backbone, additions, &mut clean, &holes, text)?;
                if index == sums.len() {
                    sums.push((name, 0.0, 0.0));
                }
                sums[index].1 += losses.iter().zip(&holes.guesses).map(|(l, g)| f64::from(*l) * g.weight).sum::<f64>();
                sums[index].2 += holes.covered as f64;
            }
        }
        learner.show(&learner.weights)?;
        let perplexity = sums.into_iter().map(|(name, sum, count)| (name, f64::exp(sum / f64::max(count, 1.0))));
        let look = Look { used: self.used, loss, perplexity: perplexity.collect() };
        let line = serde_json::to_string(&look).map_err(std::io::Error::other)?;
        tracing::info!("{line}");
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(self.course.folder.join(CURVE))?;
        Ok(std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes())?)
    }

    /// Writes the adapter as it would be shipped, then the state to go on from.
    fn write(&self, learner: &Learner) -> Result<()> {
        learner.show(&self.average)?;
        adapter_file::write(&self.course.folder, &learner.adapter, self.generator.base_hash, self.hash, Stored::F16)?;
        learner.show(&learner.weights)?;
        let metadata = [
            ("format", FORMAT.to_owned()),
            ("job", self.hash.to_string()),
            ("used", serde_json::to_string(&self.used).map_err(std::io::Error::other)?),
        ];
        let tensors = [
            ("weights", &learner.weights),
            ("average", &self.average),
            ("first", &learner.first),
            ("second", &learner.second),
        ];
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        replace(&self.course.folder.join(CHECKPOINT), &encode(&metadata, tensors, Stored::F32)?)
    }

    fn resume(&mut self, learner: &mut Learner, device: Device) -> Result<()> {
        let path = self.course.folder.join(CHECKPOINT);
        if !path.is_file() {
            return Ok(());
        }
        let file = SafetensorsFile::open(&path)?;
        let said = |key: &str| file.metadata().get(key).map(String::as_str);
        if said("format") != Some(FORMAT) || said("job") != Some(self.hash.to_string().as_str()) {
            let problem = "it belongs to another plan, corpus or base; take another folder or remove it";
            return Err(ModelError::load(path.display().to_string(), problem));
        }
        let used = said("used").and_then(|text| serde_json::from_str::<Used>(text).ok());
        self.used =
            used.ok_or_else(|| ModelError::load(path.display().to_string(), "it does not say what was used"))?;
        let tensor =
            |name: &str| -> Result<Tensor> { Ok(Tensor::f_from_slice(&file.to_f32(name)?)?.f_to_device(device)?) };
        let average = tensor("average")?;
        if average.size() != self.average.size() || average.kind() != Kind::Float {
            return Err(ModelError::load(
                path.display().to_string(),
                format!("its average has {:?} numbers", average.size()),
            ));
        }
        self.average = average;
        learner.restore(tensor("weights")?, tensor("first")?, tensor("second")?, self.used.step)
    }
}

/// A text in blocks of each size, and one hole all of which is masked.
fn unmasking(text: &[i64], mask: i64, rng: &mut ChaCha8Rng) -> Vec<(String, Middles)> {
    let name = |block: usize| if block == usize::MAX { "block_full".to_owned() } else { format!("block_{block}") };
    let tiling = |block: usize, rng: &mut ChaCha8Rng| Segments::tiling(text, mask, block, rng);
    let mut looks: Vec<(String, Segments)> =
        LOOKED_AT.iter().map(|block| (name(*block), tiling(*block, rng))).collect();
    let mut infill = Segments::default();
    if text.len() > 2 * INFILL + 2 {
        let start = 1 + below(rng, text.len() - 2 * INFILL - 1);
        infill.push(text, mask, start, &[true; INFILL], INFILL, 1.0);
    }
    looks.push((format!("infill_{INFILL}"), infill));
    looks.into_iter().map(|(name, holes)| (name, Middles { holes, ..Middles::default() })).collect()
}

/// A text in holes side by side, each with the text itself before it; with the text after it in view, and without.
fn middles(text: &[i64]) -> Vec<(String, Middles)> {
    let seeing = |suffix: usize| {
        let mut middles = Middles::default();
        for start in (1..(text.len() + 1).saturating_sub(2 * INFILL)).step_by(INFILL) {
            middles.push(text, start..start + INFILL, suffix);
        }
        middles
    };
    vec![(format!("middle_{INFILL}"), seeing(INFILL)), (format!("middle_{INFILL}_unseen"), seeing(0))]
}

/// Whether a folder holds a checkpoint to go on from.
pub fn has_checkpoint(folder: &Path) -> bool {
    folder.join(CHECKPOINT).is_file()
}
