//! Runs the evolution loop: feeds it events, carries out its actions, keeps its rows, runs its training jobs.
//!
//! Called by: daemon, generator; gets events from uncertainty and memory. Calls: memory and the engine. Owns: the loop's state
//! and at most one training job. Capacity: [`CALLS_MAX`] calls. A restart loses what was observed since the last checkpoint;
//! decisions are journaled before their effect and are taken up again. A store that refuses writes fails no part of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mneme_base::{AdapterId, Clock, Embedding, MemoryId, Timestamp};
use mneme_engine_api::trainer::JOB_FILE;
use mneme_engine_api::{AdapterLevel, AdapterUse, CancelToken, Engine};
use mneme_evolution::machine::{Action, Command, Event, Evolution, JobSpec, LogRow, Notice, Stage, Status};
use mneme_evolution::registry::{Entry, SkillCard};
use mneme_evolution::trigger::Feedback;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot};
use crate::memory::MemoryHandle;
use crate::tunables::Tuned;
use crate::uncertainty::Observation;

mod base_text;
mod comparing;
mod jobs;
mod journal;
mod listener;
mod load;
mod reading;
mod rows;
mod skills;

use jobs::run_job;
use listener::listen;
use reading::Pace;
use rows::{Snapshot, read_about, read_checkpoint, read_history, read_newest, write_checkpoint};
use skills::{Admission, Adoption};
pub use skills::{SkillPart, SkillReceipt, SkillUpload};

/// Calls at once.
const CALLS_MAX: usize = 256;
/// Time between two looks at load and battery.
const TICK: Duration = Duration::from_secs(5);
/// How long a row may take to become durable before it has to be tried again.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a job may take to leave when the daemon stops: within the time that an actor has for its own end.
const JOB_LEAVES: Duration = Duration::from_secs(3);

/// The loop as it is told to a person.
#[derive(Debug, Clone)]
pub struct EvolutionReport {
    /// The loop at a glance.
    pub status: Status,
    /// Adapters with their state, newest first.
    pub adapters: Vec<Entry>,
    /// How often each station was entered.
    pub stations: BTreeMap<Stage, u64>,
    /// Generations observed since the start.
    pub observed: u64,
    /// Texts of the user since the start.
    pub texts: u64,
    /// Progress of the job, 0 to 1.
    pub progress: Option<f32>,
}

/// Where evolution can be called.
#[derive(Debug, Clone)]
pub struct EvolutionHandle {
    pub(crate) slot: Slot<Message>,
    memory: MemoryHandle,
    engine: Arc<dyn Engine>,
    folder: PathBuf,
    /// One skill arrives at a time; the last one that was taken in.
    arriving: Arc<tokio::sync::Mutex<Option<skills::Taken>>>,
    /// The number of the last row that was written.
    pub(crate) last_row: Arc<AtomicU64>,
}

impl EvolutionHandle {
    pub(crate) fn new(memory: MemoryHandle, engine: Arc<dyn Engine>, folder: PathBuf) -> Self {
        Self {
            slot: Slot::new("evolution", CALLS_MAX),
            memory,
            engine,
            folder,
            arriving: Arc::default(),
            last_row: Arc::default(),
        }
    }

    /// Tells of a generation that was observed. Lost while the actor is away: one observation among many.
    pub(crate) fn observed(&self, observation: Observation) {
        self.slot.cast(Message::Observed(observation));
    }

    /// Adapters that serve a situation, with weight and scale; none means the base, bit for bit.
    pub async fn serving(&self, situation: Embedding, deadline: Instant) -> Result<Vec<AdapterUse>, ActorError> {
        self.slot.call(situation, deadline, Message::Serving).await
    }

    /// Takes the user's word on an answer.
    pub async fn judge(&self, situation: Embedding, feedback: Feedback, deadline: Instant) -> Result<(), ActorError> {
        self.slot.call((situation, feedback), deadline, Message::Judge).await
    }

    /// Gives an order; returns the station after it and what happened, in words.
    pub async fn command(&self, command: Command, deadline: Instant) -> Result<(Stage, String), ActorError> {
        self.slot.call(command, deadline, Message::Command).await
    }

    /// The loop at a glance.
    pub async fn report(&self, deadline: Instant) -> Result<EvolutionReport, ActorError> {
        self.slot.call((), deadline, Message::Report).await
    }

    /// Takes adapters that learned one of these memories out of service and off the disk, and names them. Harmless to repeat: the loop
    /// hears of what was forgotten by itself too, a moment later.
    pub async fn forgotten(&self, memories: Vec<MemoryId>, deadline: Instant) -> Result<Vec<AdapterId>, ActorError> {
        self.slot.call(memories, deadline, Message::Forgotten).await
    }

    /// Decisions with numbers up to `before` (exclusive), newest first. The newest ten thousand or so are kept.
    pub async fn log(&self, limit: usize, before: Option<u64>, deadline: Instant) -> Result<Vec<LogRow>, ActorError> {
        let next = self.last_row.load(Ordering::Acquire) + 1;
        read_newest(&self.memory, limit, before.unwrap_or(next).min(next), deadline).await
    }

    /// The newest decisions on an adapter, oldest first.
    pub async fn log_about(&self, adapter: AdapterId, deadline: Instant) -> Result<Vec<LogRow>, ActorError> {
        read_about(&self.memory, adapter, deadline).await
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }
}

/// What evolution is told.
pub(crate) enum Message {
    /// A generation was observed.
    Observed(Observation),
    /// What serves this situation?
    Serving(Request<Embedding, Vec<AdapterUse>>),
    /// The user judged an answer.
    Judge(Request<(Embedding, Feedback), ()>),
    /// The user gave an order.
    Command(Request<Command, (Stage, String)>),
    /// May a card from elsewhere be taken in, or, without one, any? What needs the base model is left open while that is not known.
    Admits(Request<Option<Box<SkillCard>>, Admission>),
    /// Take in an adapter whose file lies here.
    Adopt(Request<Adoption, (Stage, String)>),
    /// Nobody works on this adapter's folder any more: it goes unless it is kept.
    Placed(AdapterId),
    /// How is the loop?
    Report(Request<(), EvolutionReport>),
    /// The user forgot memories: which adapters learned them?
    Forgotten(Request<Vec<MemoryId>, Vec<AdapterId>>),
    /// The comparison under way ended with these.
    Compared(Vec<Event>),
    /// Something happened inside.
    Happened(Box<Event>),
    /// A job made progress.
    Progress(AdapterId, f32),
    /// A job's task ended.
    JobEnded(AdapterId),
    /// Time passes.
    Tick,
    /// The actor has started.
    Begun,
    /// Some changes of the memory were not heard of.
    MissedChanges,
    /// The settings are new.
    Tuned,
}

/// What evolution starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) memory: MemoryHandle,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tuned: Tuned,
    pub(crate) enabled: bool,
    /// Where adapters and job folders lie.
    pub(crate) folder: PathBuf,
    /// Where the number of the last row that was written is told.
    pub(crate) last_row: Arc<AtomicU64>,
}

/// What evolution owns.
pub(crate) struct State {
    arguments: Arguments,
    evolution: Evolution,
    stations: BTreeMap<Stage, u64>,
    observed: u64,
    texts: u64,
    engine_seen: Option<mneme_base::ContentHash>,
    job: Option<(AdapterId, CancelToken)>,
    /// The task of the last job: a new one begins when it has ended, so that one job trains at a time.
    job_task: Option<tokio::task::JoinHandle<()>>,
    /// Tells the last job that another one took its place.
    replaced: Arc<AtomicBool>,
    progress: Option<f32>,
    /// How many texts are still read this minute.
    pace: Pace,
    /// What was decided and could not be carried out yet, in order; empty or led by a row.
    waiting: VecDeque<Action>,
    /// The state as it was last written down.
    snapshot: Snapshot,
    /// The store could not be asked what it no longer has.
    look_for_forgotten: bool,
    /// It stops: nothing is begun any more.
    leaving: bool,
    /// Texts to compare adapters on, and whether one is under way.
    to_compare: VecDeque<(MemoryId, Embedding)>,
    comparing: bool,
}

/// Evolution's actor.
pub(crate) struct EvolutionActor;

impl Actor for EvolutionActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        fs_err::create_dir_all(&arguments.folder)?;
        // From here on nothing is missed; what was before is found in the store.
        let changes = arguments.memory.changes();
        let (snapshot, Snapshot { state: history, stations, .. }) = read_history(&arguments.memory).await?;
        let checkpoint = read_checkpoint(&arguments.memory).await?;
        arguments.last_row.store(history.rows, Ordering::Release);
        let evolution = Evolution::resume(arguments.tuned.get().policy.clone(), history, checkpoint);
        let mut state = State {
            evolution,
            stations,
            observed: 0,
            texts: 0,
            engine_seen: None,
            job: None,
            job_task: None,
            replaced: Arc::default(),
            progress: None,
            pace: Pace::default(),
            waiting: VecDeque::new(),
            snapshot,
            look_for_forgotten: false,
            leaving: false,
            to_compare: VecDeque::new(),
            comparing: false,
            arguments,
        };
        for problem in state.evolution.state().problems() {
            tracing::error!(problem, "the loop's rows do not make a consistent state");
        }
        state.waiting.extend(state.evolution.reconcile());
        state.sweep_folders();
        skills::forget_uploads(&state.arguments.folder);
        // What needs many reads or a write comes first of all messages, and holds up no start.
        let _ = myself.send_message(Message::Begun);
        myself.send_interval(TICK, || Message::Tick);
        tokio::spawn(listen(changes, state.arguments.clone(), myself));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Observed(observation) => state.observe(&myself, observation).await,
            Message::Serving(request) => {
                let serving = state.serving(&request.input);
                let _ = request.reply.send(Ok(serving));
            }
            Message::Judge(request) => {
                let (situation, feedback) = request.input;
                let result = state.happened(&myself, Event::Judged { situation, feedback }).await;
                let _ = request.reply.send(result.map(|_| ()));
            }
            Message::Command(request) => {
                // An order may come before the first tick.
                state.tick(&myself).await;
                let result = state.happened(&myself, Event::Command(request.input)).await;
                let _ = request.reply.send(result.map(|notices| state.words_of(&notices)));
            }
            Message::Admits(request) => {
                let admission = state.admit(&myself, request.input.as_deref()).await;
                let _ = request.reply.send(admission);
            }
            // Whoever gave up waiting is told nothing, and nothing is taken in for them.
            Message::Adopt(request) if request.reply.is_closed() => {}
            Message::Adopt(request) => {
                state.tick(&myself).await;
                let adopted = state.adopt(&myself, request.input).await;
                let _ = request.reply.send(adopted);
            }
            Message::Placed(adapter) => state.leave(adapter),
            Message::Report(request) => {
                let report = state.report();
                let _ = request.reply.send(Ok(report));
            }
            Message::Forgotten(request) => {
                let memories: BTreeSet<MemoryId> = request.input.iter().copied().collect();
                state.heard(&myself, Event::Forgotten(request.input)).await;
                let learned = state.evolution.state().registry.learned(&memories);
                let _ = request.reply.send(Ok(learned.into_iter().collect()));
            }
            Message::Happened(event) => {
                if let Event::UserText { memory, situation, .. } = event.as_ref() {
                    state.texts += 1;
                    state.compare(&myself, *memory, situation);
                    state.read(&myself, *memory, situation);
                }
                state.heard(&myself, *event).await;
            }
            Message::Compared(events) => {
                state.comparing = false;
                for event in events {
                    state.heard(&myself, event).await;
                }
                state.compare_next(&myself);
            }
            Message::Progress(adapter, progress) => {
                if state.job.as_ref().is_some_and(|(running, _)| *running == adapter) {
                    state.progress = Some(progress);
                }
            }
            Message::JobEnded(adapter) => state.job_ended(adapter),
            Message::Tick => state.tick(&myself).await,
            Message::Begun => {
                if let Err(error) = state.catch_up(&myself).await {
                    tracing::warn!(%error, "what the last run left is carried out later");
                }
                state.find_forgotten(&myself).await;
            }
            Message::MissedChanges => state.find_forgotten(&myself).await,
            Message::Tuned => {
                state.evolution.set_policy(state.arguments.tuned.get().policy.clone());
                // The levels that may be proposed are told with the engine.
                state.engine_seen = None;
                if state.arguments.enabled {
                    state.see_engine(&myself).await;
                }
            }
        }
        Ok(())
    }

    async fn post_stop(&self, myself: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.leaving = true;
        if let Some((_, cancel)) = &state.job {
            cancel.cancel();
        }
        if let Err(error) = state.catch_up(&myself).await {
            tracing::warn!(%error, waiting = state.waiting.len(), "decisions are lost that could not be written");
        }
        let checkpoint = state.evolution.checkpoint();
        if let Err(error) = write_checkpoint(&state.arguments.memory, &checkpoint).await {
            tracing::warn!(%error, "evolution's checkpoint was left out");
        }
        // With its end its texts are off the disk and its own checkpoint is written; otherwise it goes with this process.
        if let Some(job) = state.job_task.take()
            && tokio::time::timeout(JOB_LEAVES, job).await.is_err()
        {
            tracing::warn!("the training job takes too long to leave");
        }
        Ok(())
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.arguments.clock.now()
    }

    /// Removes folders of adapters that nobody keeps: left by a kill between a decision and its effect.
    fn sweep_folders(&self) {
        let Ok(entries) = fs_err::read_dir(&self.arguments.folder) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let Ok(adapter) = entry.file_name().to_string_lossy().parse::<AdapterId>() else {
                continue;
            };
            if !self.evolution.keeps(adapter) {
                remove_folder(&entry.path());
                continue;
            }
            // Texts that a trainer had read when it was killed, or that an older version left; a job that goes on writes them again.
            match fs_err::remove_file(entry.path().join(JOB_FILE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::error!(%error, "texts of a training job stay on disk");
                }
                _ => {}
            }
        }
    }

    fn folder_of(&self, adapter: AdapterId) -> PathBuf {
        adapter_folder(&self.arguments.folder, adapter)
    }

    fn job_ended(&mut self, adapter: AdapterId) {
        if self.job.as_ref().is_some_and(|(running, _)| *running == adapter) {
            self.job = None;
            self.progress = None;
        }
        // A trainer that was told to stop may have written its last checkpoint into a folder that was gone.
        self.leave(adapter);
    }

    /// Removes an adapter's folder unless it is kept.
    fn leave(&self, adapter: AdapterId) {
        if !self.evolution.keeps(adapter) {
            remove_folder(&self.folder_of(adapter));
        }
    }

    async fn observe(&mut self, myself: &ActorRef<Message>, observation: Observation) {
        self.observed += 1;
        let Some(situation) = observation.situation.filter(|_| self.arguments.enabled) else {
            return;
        };
        let Observation { ambiguity, surprise, structural, .. } = observation;
        let event = Event::Generated { situation, ambiguity, surprise, structural };
        self.heard(myself, event).await;
    }

    fn serving(&self, situation: &Embedding) -> Vec<AdapterUse> {
        if !self.arguments.enabled {
            return Vec::new();
        }
        let to_use = |served: mneme_evolution::machine::Served| AdapterUse {
            id: served.adapter,
            folder: self.folder_of(served.adapter).display().to_string(),
            weight: served.weight as f32,
            scale: served.scale as f32,
        };
        self.evolution.mixture(situation).into_iter().map(to_use).collect()
    }

    /// An adapter at the scale that its card says.
    fn adapter_use(&self, id: AdapterId) -> AdapterUse {
        let scale = self.evolution.state().registry.get(id).map_or(1.0, |entry| entry.card.scale);
        AdapterUse { id, folder: self.folder_of(id).display().to_string(), weight: 1.0, scale: scale as f32 }
    }

    /// The station after an order, and what came of it in words.
    fn words_of(&self, notices: &[Notice]) -> (Stage, String) {
        let told = notices.iter().find_map(|notice| match notice {
            Notice::Refused { reason } | Notice::Ignored { reason } => Some(reason.clone()),
            _ => None,
        });
        let mut words =
            told.or_else(|| self.evolution.status(self.now()).waiting).unwrap_or_else(|| String::from("done"));
        if !self.waiting.is_empty() {
            words.push_str("; it is written down when the store takes it");
        }
        (self.evolution.state().stage(), words)
    }

    fn report(&self) -> EvolutionReport {
        let mut adapters: Vec<Entry> = self.evolution.state().registry.iter().cloned().collect();
        adapters.sort_by_key(|entry| std::cmp::Reverse(entry.card.made));
        EvolutionReport {
            status: self.evolution.status(self.now()),
            adapters,
            stations: self.stations.clone(),
            observed: self.observed,
            texts: self.texts,
            progress: self.progress,
        }
    }

    /// Tells the loop of an engine that it has not seen yet.
    async fn see_engine(&mut self, myself: &ActorRef<Message>) {
        let info = self.arguments.engine.info();
        if !info.trains.is_empty() && self.engine_seen != Some(info.base_hash) {
            self.engine_seen = Some(info.base_hash);
            let levels = &self.arguments.tuned.get().levels;
            let allowed = |level: &AdapterLevel| levels.contains(level);
            let trains = info.trains.into_iter().filter(allowed).collect();
            let event = Event::Engine { base_hash: info.base_hash, trains };
            self.heard(myself, event).await;
            if !self.evolution.is_calibrated() {
                let (arguments, myself) = (self.arguments.clone(), myself.clone());
                tokio::spawn(async move {
                    match reading::calibrate(&arguments).await {
                        Ok(event) => drop(myself.send_message(Message::Happened(Box::new(event)))),
                        Err(error) => {
                            tracing::warn!(%error, "the base's surprise at its own kind of text is not known");
                        }
                    }
                });
            }
        }
    }

    /// Has what serves a situation read a new text of the user, as often as the pace allows.
    fn read(&mut self, myself: &ActorRef<Message>, memory: MemoryId, situation: &Embedding) {
        if !self.evolution.is_calibrated() || !self.pace.admit(self.now()) {
            return;
        }
        let serving = self.evolution.route(situation).map(|served| self.adapter_use(served.adapter));
        let (arguments, myself, situation) = (self.arguments.clone(), myself.clone(), situation.clone());
        tokio::spawn(async move {
            match reading::read(&arguments, memory, serving).await {
                Ok(Some(surprise)) => {
                    let _ = myself.send_message(Message::Happened(Box::new(Event::Read { situation, surprise })));
                }
                // A text too short to judge, or one that is gone already.
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a new text was not read"),
            }
        });
    }

    async fn tick(&mut self, myself: &ActorRef<Message>) {
        if self.look_for_forgotten {
            self.find_forgotten(myself).await;
        }
        if !self.arguments.enabled {
            // What was forgotten is still to be written down.
            let _ = self.catch_up(myself).await;
            return;
        }
        self.see_engine(myself).await;
        let on_battery = self.arguments.tuned.get().pause_on_battery && load::on_battery();
        // The job's own work is no reason to stop it: it runs at idle priority.
        let load = if self.job.is_some() { 0.0 } else { load::cpu_pressure() };
        self.heard(myself, Event::Tick { load, on_battery }).await;
    }

    fn stop_job(&mut self, adapter: AdapterId) {
        if let Some((running, cancel)) = &self.job
            && *running == adapter
        {
            cancel.cancel();
        }
    }

    fn start_job(&mut self, myself: &ActorRef<Message>, spec: JobSpec, scale: f32) {
        if let Some((_, cancel)) = &self.job {
            cancel.cancel();
        }
        self.replaced.store(true, Ordering::Release);
        let replaced = Arc::new(AtomicBool::new(false));
        self.replaced = Arc::clone(&replaced);
        let cancel = CancelToken::default();
        self.job = Some((spec.adapter, cancel.clone()));
        self.progress = Some(0.0);
        let parent = spec.parent.map(|parent| self.adapter_use(parent));
        let (arguments, myself) = (self.arguments.clone(), myself.clone());
        let before = self.job_task.take();
        self.job_task = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let adapter = spec.adapter;
            let event = run_job(&arguments, spec, parent, scale, cancel, &myself).await;
            // A job that another one has replaced has nothing more to say: its preemption is not the new one's.
            if replaced.load(Ordering::Acquire) {
                return;
            }
            let _ = myself.send_message(Message::JobEnded(adapter));
            let _ = myself.send_message(Message::Happened(Box::new(event)));
        }));
    }
}

fn adapter_folder(root: &Path, adapter: AdapterId) -> PathBuf {
    root.join(adapter.to_string())
}

fn remove_folder(folder: &Path) {
    match fs_err::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => tracing::error!(%error, "adapter stays on disk"),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
