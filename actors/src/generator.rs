//! Writes from memory: recalls, asks evolution for adapters, lets the engine fill the canvas, reports what it was unsure of.
//!
//! Called by: daemon. Calls: memory, uncertainty, evolution, the engine. Owns: the places in front of the engine. Capacity:
//! [`CALLS_MAX`] requests, of which [`RUNNING_MAX`] run. A restart loses the generations that were under way.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mneme_base::{Embedding, MemoryId, TrustTier};
use mneme_engine_api::types::CONDITIONS_MAX;
use mneme_engine_api::{CancelToken, CanvasEvent, Condition, Engine, GenerateRequest, Generation, Guidance, Segment};
use mneme_memory::{Memory, RecallQuery};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot, deadline_in};
use crate::evolution::EvolutionHandle;
use crate::memory::{MemoryHandle, RecallAsk};
use crate::uncertainty::{Observation, UncertaintyHandle, UncertaintyReport};

/// Generations that wait or run; more are told that the generator is busy.
const CALLS_MAX: usize = 32;
/// Generations that run at once: the engine has one lane for them.
const RUNNING_MAX: usize = 1;
/// Of a long canvas, this much (characters, from the end) is what the memory is asked with.
const QUERY_CHARACTERS_MAX: usize = 1_000;
/// How long a generation waits for the vector of its text.
const SITUATION_TIMEOUT: Duration = Duration::from_secs(2);

/// A generation to do.
#[derive(Debug)]
pub struct GenerateAsk {
    /// Canvas and settings; conditions and adapters are filled in here.
    pub request: GenerateRequest,
    /// What to ask the memory; no guidance without it.
    pub recall: Option<RecallQuery>,
    /// The base model alone.
    pub base_only: bool,
    /// Sees the canvas crystallise; a slow receiver misses events.
    pub events: Option<mpsc::Sender<CanvasEvent>>,
    /// Stops it at its next step.
    pub cancel: CancelToken,
}

/// A generation that was done.
#[derive(Debug, Clone)]
pub struct GenerateAnswer {
    /// What the engine wrote.
    pub generation: Generation,
    /// Memories that guided it, best first.
    pub memories: Vec<MemoryId>,
    /// How unsure it was.
    pub uncertainty: UncertaintyReport,
    /// Place in meaning space of what was asked.
    pub situation: Option<Embedding>,
    /// The engine's name.
    pub engine: String,
    /// What was not available.
    pub degraded: Vec<String>,
}

/// Where the generator can be called.
#[derive(Debug, Clone)]
pub struct GeneratorHandle {
    pub(crate) slot: Slot<Message>,
}

impl GeneratorHandle {
    pub(crate) fn new() -> Self {
        Self { slot: Slot::new("generator", CALLS_MAX) }
    }

    /// Writes from memory. Cancelled when the ask's token says so, or when the caller goes away.
    pub async fn generate(&self, ask: GenerateAsk, deadline: Instant) -> Result<GenerateAnswer, ActorError> {
        // A caller that is dropped (its client is gone) must not leave the engine working for nobody.
        let _guard = CancelOnDrop(ask.cancel.clone());
        self.slot.call(ask, deadline, Message::Generate).await
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }
}

struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What the generator is told.
pub(crate) enum Message {
    /// Write.
    Generate(Request<GenerateAsk, GenerateAnswer>),
}

/// What the generator starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) memory: MemoryHandle,
    pub(crate) uncertainty: UncertaintyHandle,
    pub(crate) evolution: EvolutionHandle,
}

/// What the generator owns.
pub(crate) struct State {
    arguments: Arguments,
    running: Arc<Semaphore>,
    lane: Lane,
}

/// What runs, so that the actor's end ends it.
#[derive(Clone, Default)]
struct Lane(Arc<Mutex<Option<CancelToken>>>);

impl Lane {
    fn enter(&self, cancel: &CancelToken) -> InLane<'_> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
        InLane(self)
    }
}

struct InLane<'a>(&'a Lane);

impl Drop for InLane<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The generator's actor.
pub(crate) struct GeneratorActor;

impl Actor for GeneratorActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        Ok(State { arguments, running: Arc::new(Semaphore::new(RUNNING_MAX)), lane: Lane::default() })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Generate(request) = message;
        let (arguments, running, lane) = (state.arguments.clone(), Arc::clone(&state.running), state.lane.clone());
        tokio::spawn(async move {
            let Request { input, reply, permit, deadline, .. } = request;
            let result = generate(arguments, running, &lane, input, deadline).await;
            let _ = reply.send(result);
            drop(permit);
        });
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        if let Some(cancel) = state.lane.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            cancel.cancel();
        }
        Ok(())
    }
}

async fn generate(
    arguments: Arguments,
    running: Arc<Semaphore>,
    lane: &Lane,
    mut ask: GenerateAsk,
    deadline: Instant,
) -> Result<GenerateAnswer, ActorError> {
    let mut degraded = Vec::new();
    let memories = guide(&arguments, &mut ask, deadline, &mut degraded).await?;
    let situation = situation(&arguments, &ask, deadline).await;
    if !ask.base_only {
        ask.request.adapters = match situation.clone() {
            Some(situation) => arguments.evolution.serving(situation, deadline).await.unwrap_or_default(),
            None => Vec::new(),
        };
    }
    let structural = ask.request.constraint.is_some();
    let place = tokio::time::timeout_at(deadline, running.acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        return Err(ActorError::DeadlineExceeded { actor: "generator" });
    };
    ask.cancel.check().map_err(ActorError::Engine)?;
    let GenerateAsk { mut request, events, cancel, .. } = ask;
    // The lane is free again when nobody waits any more, whatever the engine would still have to say.
    let cancel = cancel.within(deadline.saturating_duration_since(Instant::now()));
    let _lane = lane.enter(&cancel);
    let engine = Arc::clone(&arguments.engine);
    let span = tracing::Span::current();
    let work = move || {
        let _place = place;
        let mut observe = |event| {
            if let Some(events) = &events {
                let _ = events.try_send(event);
            }
        };
        span.in_scope(|| match engine.generate(&request, &mut observe, &cancel) {
            // An adapter that cannot be loaded must not cost the answer: the base model gives it.
            Err(mneme_engine_api::EngineError::Load { what, problem }) if !request.adapters.is_empty() => {
                tracing::warn!(what, problem, "adapter left out");
                request.adapters.clear();
                engine.generate(&request, &mut observe, &cancel).map(|generation| (generation, true))
            }
            result => result.map(|generation| (generation, false)),
        })
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "generator" })?;
    let (generation, without_adapters) = done?;
    if without_adapters {
        degraded.push(String::from("adapters"));
    }
    let observation = Observation::of(&generation, situation.clone(), structural);
    let uncertainty = arguments.uncertainty.observe(observation, deadline).await?;
    Ok(GenerateAnswer { generation, memories, uncertainty, situation, engine: arguments.engine.info().name, degraded })
}

/// Recalls memories and puts them before the generator as labelled data.
async fn guide(
    arguments: &Arguments,
    ask: &mut GenerateAsk,
    deadline: Instant,
    degraded: &mut Vec<String>,
) -> Result<Vec<MemoryId>, ActorError> {
    let Some(mut query) = ask.recall.take() else {
        return Ok(Vec::new());
    };
    if ask.request.guidance == Guidance::None || query.limit == 0 {
        return Ok(Vec::new());
    }
    query.limit = query.limit.min(CONDITIONS_MAX);
    if query.text.is_empty() {
        query.text = canvas_text(&ask.request);
    }
    if query.text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let recall = arguments.memory.recall(RecallAsk::new(query), deadline).await?;
    degraded.extend(recall.degraded);
    ask.request.conditions =
        recall.hits.iter().map(|hit| Condition { text: labelled(&hit.memory), embedding: None }).collect();
    Ok(recall.hits.into_iter().map(|hit| hit.memory.id).collect())
}

/// A memory as it is shown to the generator: dated, with its speaker, and marked when it is hearsay.
fn labelled(memory: &Memory) -> String {
    let date = memory.valid_from.date();
    let speaker = memory.speaker.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
    let mark = if memory.provenance.trust == TrustTier::Untrusted { " (unverified)" } else { "" };
    format!("[{date}{mark}] {speaker}{}", memory.text)
}

/// The fixed text of a canvas, from its end.
fn canvas_text(request: &GenerateRequest) -> String {
    let fixed = request.canvas.iter().filter_map(|segment| match segment {
        Segment::Text(text) => Some(text.as_str()),
        Segment::Hole { .. } => None,
    });
    let text: String = request.instruction.as_deref().into_iter().chain(fixed).collect::<Vec<_>>().join(" ");
    let skip = text.chars().count().saturating_sub(QUERY_CHARACTERS_MAX);
    text.chars().skip(skip).collect()
}

async fn situation(arguments: &Arguments, ask: &GenerateAsk, deadline: Instant) -> Option<Embedding> {
    let text = canvas_text(&ask.request);
    if text.trim().is_empty() {
        return None;
    }
    // It only chooses adapters: a text without it is better than none.
    arguments.memory.embed(text, deadline.min(deadline_in(SITUATION_TIMEOUT))).await.ok()
}
