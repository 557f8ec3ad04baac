//! The engine behind the daemon's trait: an embedder that is ready at once, and a generator that is loaded when it is needed.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mneme_base::{AdapterId, Embedding};
use mneme_diffusion::random::seeded;
use mneme_diffusion::sampler::lengths::candidates;
use mneme_engine_api::types::{CANVAS_TOKENS_MAX, EMBED_TEXTS_MAX, SCORE_ITEMS_MAX};
use mneme_engine_api::{
    AdapterLevel, AdapterUse, CancelToken, CanvasEvent, Condition, EmbedPurpose, Engine, EngineError, EngineInfo,
    GenerateRequest, Generation, GenerationMode, Guidance, ScoreItem, ScoreOutcome, TrainEvent, TrainJob, TrainOutcome,
};

use crate::adapter_file;
use crate::assets::Assets;
use crate::embedder::{self, Embedder};
use crate::error::Result;
use crate::generate::ar::{Fill, Hole};
use crate::generate::auto::Acceptance;
use crate::generate::constrain::{self, Automaton};
use crate::generate::diffuse::{Diffused, Pace};
use crate::generate::ensemble::Ensemble;
use crate::generate::plan::{Plan, PlanPiece};
use crate::generate::report;
use crate::generate::session::Session;
use crate::generate::stream::Stream;
use crate::generator::{self, Generator, Hashes, SharedAdapter};
use crate::nn::adapter::Adapter;
use crate::runtime::Runtime;
use crate::{score, train};

/// Candidate lengths that diffusion tries for holes inside a text.
const LENGTHS_TRIED: usize = 4;
/// An adapter of less weight than this has no say.
const WEIGHT_MIN: f32 = 1e-6;

/// Embedder and generator on libtorch.
#[derive(Debug)]
pub struct ArrowEngine {
    runtime: Runtime,
    assets: Assets,
    embedder: Embedder,
    hashes: Hashes,
    generator: OnceLock<Arc<Generator>>,
    /// Held while the generator is loaded, so that two first requests do not load it twice.
    loading: Mutex<()>,
}

impl ArrowEngine {
    /// Loads the embedder and hashes the generator's weights. Costs some 200 ms.
    pub fn open(assets: Assets, runtime: Runtime) -> Result<Self> {
        Ok(Self {
            embedder: Embedder::load(&assets, runtime)?,
            hashes: Generator::hashes(&assets)?,
            runtime,
            assets,
            generator: OnceLock::new(),
            loading: Mutex::new(()),
        })
    }

    /// The generator, loaded at the first call.
    pub fn generator(&self) -> Result<Arc<Generator>> {
        if let Some(generator) = self.generator.get() {
            return Ok(Arc::clone(generator));
        }
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(generator) = self.generator.get() {
            return Ok(Arc::clone(generator));
        }
        let loaded = Arc::new(Generator::load(&self.assets, self.hashes, self.runtime)?);
        Ok(Arc::clone(self.generator.get_or_init(|| loaded)))
    }

    fn fill(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation> {
        let generator = self.generator()?;
        let attends = matches!(request.guidance, Guidance::CrossAttention | Guidance::Both);
        if attends && generator.conditioner().is_none() {
            let feature = "guidance by cross-attention: this model has no trained conditioner".into();
            return Err(EngineError::Unsupported { engine: crate::NAME.into(), feature }.into());
        }
        let plan = Plan::new(request, &generator)?;
        let automaton = request.constraint.as_ref().map(|c| constrain::compile(c, &generator)).transpose()?;
        cancel.check()?;
        let adapters = self.adapters(request, &generator)?;
        let memories = if attends { self.memories(request, cancel)? } else { Vec::new() };
        let ensemble = ensemble(&generator, &plan, &adapters, &memories, request.guidance_scale)?;
        let mut session = Session {
            generator: &generator,
            plan: &plan,
            ensemble,
            rng: seeded(request.seed),
            cancel,
            observe,
            control: generator.tokenizer.control_ids(),
            step: 0,
            steps_total: 0,
        };
        session.ensemble.prompt(&plan.prompt, &plan.prompt_unconditional, &mut || Ok(cancel.check()?))?;
        let given = plan.pieces.iter().take_while(|piece| matches!(piece, PlanPiece::Text { .. })).count();
        let (lead, rest) = plan.pieces.split_at(given);
        for piece in lead {
            if let PlanPiece::Text { tokens, .. } = piece {
                session.read(tokens)?;
            }
        }
        let pace = Pace { steps: request.steps, block: request.block as usize };
        let mut acceptance = Acceptance::default();
        let fills = match request.mode {
            GenerationMode::Ar => session.left_to_right(rest, automaton.as_ref(), Sight::Before)?,
            GenerationMode::Diffusion => session.by_diffusion(rest, pace, automaton.as_ref())?.fills,
            GenerationMode::Auto => {
                let sight = Sight::Ahead { block: pace.block, acceptance: &mut acceptance };
                session.left_to_right(rest, automaton.as_ref(), sight)?
            }
        };
        finish(request, &session, &fills, &adapters, acceptance)
    }

    /// The embeddings of the memories, made here where they did not come along.
    fn memories(&self, request: &GenerateRequest, cancel: &CancelToken) -> Result<Vec<Embedding>> {
        let one = |condition: &Condition| -> Result<Embedding> {
            match &condition.embedding {
                Some(vector) if vector.len() == embedder::DIMENSIONS => Ok(Embedding::normalized(vector.clone())
                    .map_err(|error| EngineError::invalid("conditions", error.to_string()))?),
                _ => Ok(self.embedder.embed(std::slice::from_ref(&condition.text), cancel)?.remove(0)),
            }
        };
        request.conditions.iter().map(one).collect()
    }

    /// Reads an adapter at the scale that it is used with.
    fn adapter(&self, adapter: &AdapterUse, generator: &Generator) -> Result<Adapter> {
        if !(0.0..=1.0).contains(&adapter.scale) {
            let problem = format!("scale of {} is {}, allowed is 0 to 1", adapter.id, adapter.scale);
            return Err(EngineError::invalid("adapters", problem).into());
        }
        let config = generator.backbone().config.clone();
        let mut read = adapter_file::read(Path::new(&adapter.folder), &config, self.hashes.base, self.runtime.device)?;
        read.strength *= f64::from(adapter.scale);
        Ok(read)
    }

    /// Reads the adapters that have a say.
    fn adapters(&self, request: &GenerateRequest, generator: &Generator) -> Result<Vec<Named>> {
        let mut adapters = Vec::new();
        for adapter in request.adapters.iter().filter(|adapter| adapter.weight > WEIGHT_MIN) {
            let read = self.adapter(adapter, generator)?;
            adapters.push(Named {
                id: adapter.id,
                weight: f64::from(adapter.weight),
                shared: Arc::new(Mutex::new(read)),
            });
        }
        Ok(adapters)
    }
}

/// An adapter in use.
struct Named {
    id: AdapterId,
    weight: f64,
    shared: Arc<SharedAdapter>,
}

fn ensemble<'a>(
    generator: &'a Generator,
    plan: &Plan,
    adapters: &[Named],
    memories: &[Embedding],
    guidance: f32,
) -> Result<Ensemble<'a>> {
    let zero = generator.shipped();
    let capacity = plan.tokens_max();
    let mut members = vec![Stream::new(generator, zero.clone(), capacity)?];
    let mut prior = vec![(1.0 - adapters.iter().map(|adapter| adapter.weight).sum::<f64>()).max(0.0)];
    for adapter in adapters {
        let stacked = zero.iter().cloned().chain([Arc::clone(&adapter.shared)]).collect();
        members.push(Stream::new(generator, stacked, capacity)?);
        prior.push(adapter.weight);
    }
    if !memories.is_empty() {
        let vectors: Vec<&[f32]> = memories.iter().map(Embedding::as_slice).collect();
        members.iter_mut().try_for_each(|member| member.attend_to(&vectors))?;
    }
    // Guidance compares with the canvas without its memories: without memories there is nothing to compare.
    let guided = guidance > 0.0 && (plan.prompt != plan.prompt_unconditional || !memories.is_empty());
    let unconditional = if guided { Some(Stream::new(generator, zero, capacity)?) } else { None };
    Ensemble::new(members, &prior, unconditional, guidance, generator.vocabulary)
}

/// What a hole sees that is filled from the left.
enum Sight<'a> {
    /// The text before it.
    Before,
    /// The text after it too, where there is some and the model has learnt to look at it; a hole at the end is drafted by diffusion
    /// and verified token by token.
    Ahead {
        /// Tokens of a draft; 0 takes the default.
        block: usize,
        /// How drafts fared.
        acceptance: &'a mut Acceptance,
    },
}

impl Session<'_> {
    /// Fills hole after hole from the left.
    fn left_to_right(
        &mut self,
        pieces: &[PlanPiece],
        automaton: Option<&Automaton>,
        mut sight: Sight<'_>,
    ) -> Result<Vec<Fill>> {
        self.steps_total = self.plan.canvas_tokens_max() as u32;
        let mut fills: Vec<Fill> = Vec::new();
        let mut shown: Vec<Vec<Option<u32>>> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let (min, max, spaced) = match piece {
                PlanPiece::Text { tokens, .. } => {
                    // Text after the last hole changes nothing any more.
                    if index + 1 < pieces.len() {
                        self.feed(tokens)?;
                    }
                    continue;
                }
                PlanPiece::Hole { min, max, spaced } => (*min, *max, *spaced),
            };
            let hole = Hole { min, max, may_stop: index + 1 == pieces.len(), spaced };
            let suffix = match pieces.get(index + 1) {
                Some(PlanPiece::Text { tokens, .. }) => tokens.as_slice(),
                _ => &[],
            };
            let is_between = !suffix.is_empty() && self.generator.adapter_middle.is_some();
            let fill = match (&mut sight, automaton) {
                (Sight::Ahead { block, acceptance }, None) if hole.may_stop => {
                    self.fill_drafting(hole, *block, acceptance, &shown)?
                }
                (Sight::Ahead { .. }, None) if is_between => self.fill_between(hole, suffix, &shown)?,
                _ => self.fill_left_to_right(hole, suffix, automaton, &shown)?,
            };
            shown.push(fill.tokens.iter().map(|decided| Some(decided.token)).collect());
            fills.push(fill);
        }
        Ok(fills)
    }

    /// Fills all holes by diffusion; of several lengths the one is kept whose tokens are likeliest in the mean.
    fn by_diffusion(&mut self, pieces: &[PlanPiece], pace: Pace, automaton: Option<&Automaton>) -> Result<Diffused> {
        let bounds: Vec<(usize, usize)> = pieces
            .iter()
            .filter_map(|piece| match piece {
                PlanPiece::Hole { min, max, .. } => Some((*min, *max)),
                PlanPiece::Text { .. } => None,
            })
            .collect();
        // A text that may end early, or that a constraint ends, needs no other length than its longest.
        let tries = if self.plan.is_continuation() || automaton.is_some() { 1 } else { LENGTHS_TRIED };
        let lengths: Vec<Vec<usize>> = bounds.iter().map(|(min, max)| candidates(*min, *max, tries)).collect();
        let rounds = lengths.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let mut best: Option<Diffused> = None;
        for round in 0..rounds {
            let of_round: Vec<usize> = lengths
                .iter()
                .map(|of_hole| of_hole.get(round * of_hole.len() / rounds).copied().unwrap_or(1))
                .collect();
            let one = self.fill_by_diffusion(pieces, &of_round, pace, automaton)?;
            if best.as_ref().is_none_or(|best| one.mean_log_probability > best.mean_log_probability) {
                best = Some(one);
            }
        }
        Ok(best.expect("at least one round was made"))
    }
}

fn finish(
    request: &GenerateRequest,
    session: &Session<'_>,
    fills: &[Fill],
    adapters: &[Named],
    acceptance: Acceptance,
) -> Result<Generation> {
    let (mut texts, mut tokens) = (Vec::new(), Vec::new());
    for fill in fills {
        let (text, traces) = report::traces(fill, session.generator)?;
        texts.push(text);
        tokens.extend(traces);
    }
    let weights = session.ensemble.weights();
    Ok(Generation {
        text: report::whole(&session.plan.pieces, &texts),
        fills: report::without_borrowed_space(&session.plan.pieces, texts),
        tokens,
        mode: request.mode,
        steps: session.ensemble.evaluations,
        acceptance: acceptance.rate(),
        adapters: adapters
            .iter()
            .zip(weights.iter().skip(1))
            .map(|(named, weight)| (named.id, *weight as f32))
            .collect(),
        disagreement: session.ensemble.disagreement(),
        finish: fills.last().map_or("length", |fill| fill.finish).into(),
    })
}

impl Engine for ArrowEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: crate::NAME.into(),
            embedding_generation: Embedder::generation(),
            embedding_dimensions: self.embedder.dimensions() as u32,
            model: generator::MODEL.into(),
            base_hash: self.hashes.base,
            canvas_tokens_max: CANVAS_TOKENS_MAX,
            trains: vec![AdapterLevel::ControlNet, AdapterLevel::Lora, AdapterLevel::Layers],
        }
    }

    fn embed(
        &self,
        texts: &[String],
        _purpose: EmbedPurpose,
        cancel: &CancelToken,
    ) -> std::result::Result<Vec<Embedding>, EngineError> {
        if texts.len() > EMBED_TEXTS_MAX {
            let problem = format!("are {}, at most {EMBED_TEXTS_MAX} are taken", texts.len());
            return Err(EngineError::invalid("texts", problem));
        }
        Ok(self.embedder.embed(texts, cancel)?)
    }

    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> std::result::Result<Generation, EngineError> {
        Ok(self.fill(request, observe, cancel)?)
    }

    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> std::result::Result<Vec<ScoreOutcome>, EngineError> {
        if items.len() > SCORE_ITEMS_MAX {
            let problem = format!("are {}, at most {SCORE_ITEMS_MAX} are taken", items.len());
            return Err(EngineError::invalid("items", problem));
        }
        let generator = self.generator()?;
        let read = |adapter: &AdapterUse| self.adapter(adapter, &generator);
        Ok(score::score(&generator, items, &read, cancel)?)
    }

    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> std::result::Result<TrainOutcome, EngineError> {
        let generator = self.generator()?;
        Ok(train::job::run(&generator, &self.embedder, job, observe, cancel)?)
    }
}
