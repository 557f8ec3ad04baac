//! Runs the evolution loop: feeds it events, carries out its actions, keeps its rows, runs its training jobs.
//!
//! Called by: daemon, generator; gets events from uncertainty and memory. Calls: memory and the engine. Owns: the loop's state
//! and at most one training job. Capacity: [`CALLS_MAX`] calls. A restart loses what was observed since the last checkpoint;
//! decisions are journaled before their effect and are taken up again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mneme_base::{AdapterId, Clock, Embedding, MemoryId, Timestamp};
use mneme_engine_api::{AdapterLevel, AdapterUse, CancelToken, Engine};
use mneme_evolution::machine::{Action, Command, Event, Evolution, JobSpec, LogRow, Notice, Stage, Status};
use mneme_evolution::registry::Entry;
use mneme_evolution::trigger::Feedback;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot, deadline_in};
use crate::memory::MemoryHandle;
use crate::tunables::Tuned;
use crate::uncertainty::Observation;

mod base_text;
mod jobs;
mod listener;
mod load;
mod reading;
mod rows;

use jobs::run_job;
use listener::{listen, score};
use reading::Pace;
use rows::{read_checkpoint, read_rows, write_checkpoint, write_row};

/// Calls at once.
const CALLS_MAX: usize = 256;
/// Time between two looks at load and battery.
const TICK: Duration = Duration::from_secs(5);
/// How long a row may take to become durable before the loop stops.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(30);

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
}

impl EvolutionHandle {
    pub(crate) fn new(memory: MemoryHandle) -> Self {
        Self { slot: Slot::new("evolution", CALLS_MAX), memory }
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

    /// Decisions with numbers up to `before` (exclusive), newest first.
    pub async fn log(&self, limit: usize, before: Option<u64>, deadline: Instant) -> Result<Vec<LogRow>, ActorError> {
        let mut rows = self.rows(deadline).await?;
        rows.retain(|row| before.is_none_or(|before| row.id < before));
        rows.reverse();
        rows.truncate(limit);
        Ok(rows)
    }

    /// Every decision, oldest first.
    pub async fn rows(&self, deadline: Instant) -> Result<Vec<LogRow>, ActorError> {
        read_rows(&self.memory, deadline).await
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
    /// How is the loop?
    Report(Request<(), EvolutionReport>),
    /// Something happened inside.
    Happened(Box<Event>),
    /// A job made progress.
    Progress(AdapterId, f32),
    /// A job's task ended.
    JobEnded(AdapterId),
    /// Time passes.
    Tick,
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
}

/// Evolution's actor.
pub(crate) struct EvolutionActor;

impl Actor for EvolutionActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        fs_err::create_dir_all(&arguments.folder)?;
        let deadline = deadline_in(JOURNAL_TIMEOUT);
        let rows = read_rows(&arguments.memory, deadline).await?;
        let checkpoint = read_checkpoint(&arguments.memory, deadline).await?;
        let mut stations = BTreeMap::new();
        for row in &rows {
            *stations.entry(row.to).or_insert(0) += 1;
        }
        let evolution = Evolution::restore(arguments.tuned.get().policy.clone(), rows, checkpoint)?;
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
            arguments,
        };
        let actions = state.evolution.reconcile();
        state.carry_out(&myself, actions).await?;
        state.find_forgotten(&myself).await?;
        state.sweep_folders();
        if state.arguments.enabled {
            myself.send_interval(TICK, || Message::Tick);
            let changes = state.arguments.memory.changes();
            tokio::spawn(listen(changes, state.arguments.clone(), myself));
        }
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
                Ok(())
            }
            Message::Judge(request) => {
                let (situation, feedback) = request.input;
                let result = state.happened(&myself, Event::Judged { situation, feedback }).await;
                let _ = request.reply.send(Ok(()));
                result.map(|_| ())
            }
            Message::Command(request) => {
                // An order may come before the first tick.
                state.tick(&myself).await?;
                let notices = state.happened(&myself, Event::Command(request.input)).await?;
                let stage = state.evolution.state().stage();
                let _ = request.reply.send(Ok((stage, words_of(&notices, &state.evolution, state.now()))));
                Ok(())
            }
            Message::Report(request) => {
                let report = state.report();
                let _ = request.reply.send(Ok(report));
                Ok(())
            }
            Message::Happened(event) => {
                if let Event::UserText { memory, situation, .. } = event.as_ref() {
                    state.texts += 1;
                    state.compare(&myself, *memory, situation);
                    state.read(&myself, *memory, situation);
                }
                state.happened(&myself, *event).await.map(|_| ())
            }
            Message::Progress(adapter, progress) => {
                if state.job.as_ref().is_some_and(|(running, _)| *running == adapter) {
                    state.progress = Some(progress);
                }
                Ok(())
            }
            Message::JobEnded(adapter) => {
                if state.job.as_ref().is_some_and(|(running, _)| *running == adapter) {
                    state.job = None;
                    state.progress = None;
                }
                Ok(())
            }
            Message::Tick => state.tick(&myself).await,
            Message::MissedChanges => state.find_forgotten(&myself).await,
            Message::Tuned => {
                state.evolution.set_policy(state.arguments.tuned.get().policy.clone());
                // The levels that may be proposed are told with the engine.
                state.engine_seen = None;
                state.see_engine(&myself).await
            }
        }
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        if let Some((_, cancel)) = &state.job {
            cancel.cancel();
        }
        let checkpoint = state.evolution.checkpoint();
        write_checkpoint(&state.arguments.memory, &checkpoint).await?;
        Ok(())
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.arguments.clock.now()
    }

    /// Feeds an event and carries out what follows. `Err` only when a decision could not be made durable: then the state in
    /// memory is ahead of the rows and must be rebuilt.
    async fn happened(&mut self, myself: &ActorRef<Message>, event: Event) -> Result<Vec<Notice>, ActorProcessingErr> {
        let now = self.now();
        let actions = self.evolution.handle(event, now);
        self.carry_out(myself, actions).await
    }

    async fn carry_out(
        &mut self,
        myself: &ActorRef<Message>,
        actions: Vec<Action>,
    ) -> Result<Vec<Notice>, ActorProcessingErr> {
        let mut notices = Vec::new();
        for action in actions {
            match action {
                Action::Journal(row) => {
                    tracing::info!(from = %row.from, to = %row.to, reason = row.reason, "evolution decided");
                    *self.stations.entry(row.to).or_insert(0) += 1;
                    write_row(&self.arguments.memory, &row).await?;
                }
                Action::Checkpoint(checkpoint) => write_checkpoint(&self.arguments.memory, &checkpoint).await?,
                Action::StartTraining(spec) => self.start_job(myself, spec, 1.0),
                Action::ScaleAdapter { adapter, factor } => {
                    if let Some(spec) = self.job_spec(adapter) {
                        self.start_job(myself, spec, factor as f32);
                    }
                }
                Action::StopTraining { adapter } => self.stop_job(adapter),
                Action::RetireAdapter { adapter } => {
                    self.stop_job(adapter);
                    remove_folder(&self.folder_of(adapter));
                }
                Action::Notify(notice) => {
                    tracing::debug!(?notice, "evolution notice");
                    notices.push(notice);
                }
                // What serves and what is compared is read from the loop's own state at each request.
                Action::ShadowAdapter { .. } | Action::ActivateAdapter { .. } | Action::DeactivateAdapter { .. } => {}
                _ => tracing::warn!("evolution asked for something this build does not know"),
            }
        }
        Ok(notices)
    }

    /// Asks the store which memories in use are gone: the store and the log are not written at once, and a feed has gaps.
    async fn find_forgotten(&mut self, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        let in_use: Vec<MemoryId> = self.evolution.memories_in_use().into_iter().collect();
        if in_use.is_empty() {
            return Ok(());
        }
        let found = self.arguments.memory.get_all(in_use.clone(), deadline_in(JOURNAL_TIMEOUT)).await?;
        let found: std::collections::BTreeSet<MemoryId> = found.into_iter().map(|memory| memory.id).collect();
        let missing: Vec<MemoryId> = in_use.into_iter().filter(|id| !found.contains(id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.happened(myself, Event::Forgotten(missing)).await.map(|_| ())
    }

    /// Removes folders of adapters that nobody keeps: left by a kill between a decision and its effect.
    fn sweep_folders(&self) {
        let Ok(entries) = fs_err::read_dir(&self.arguments.folder) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let adapter = entry.file_name().to_string_lossy().parse::<AdapterId>();
            if adapter.is_ok_and(|adapter| !self.evolution.keeps(adapter)) {
                remove_folder(&entry.path());
            }
        }
    }

    fn job_spec(&self, adapter: AdapterId) -> Option<JobSpec> {
        self.evolution.state().job.as_ref().map(|job| job.spec.clone()).filter(|spec| spec.adapter == adapter)
    }

    fn folder_of(&self, adapter: AdapterId) -> PathBuf {
        adapter_folder(&self.arguments.folder, adapter)
    }

    async fn observe(
        &mut self,
        myself: &ActorRef<Message>,
        observation: Observation,
    ) -> Result<(), ActorProcessingErr> {
        self.observed += 1;
        let Some(situation) = observation.situation.filter(|_| self.arguments.enabled) else {
            return Ok(());
        };
        let Observation { ambiguity, surprise, structural, .. } = observation;
        let event = Event::Generated { situation, ambiguity, surprise, structural };
        self.happened(myself, event).await.map(|_| ())
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

    /// Scores a new text of the user under the base and the adapters that are being compared on texts like it.
    fn compare(&self, myself: &ActorRef<Message>, memory: MemoryId, situation: &Embedding) {
        let Some((context, adapters)) = self.evolution.watched(situation) else {
            return;
        };
        let uses: Vec<AdapterUse> = adapters.into_iter().map(|id| self.adapter_use(id)).collect();
        let (arguments, myself) = (self.arguments.clone(), myself.clone());
        tokio::spawn(async move {
            match score(&arguments, memory, uses).await {
                Ok((tokens, base_loss, adapted)) => {
                    let event = Event::Scored { context, tokens, base_loss, adapted };
                    let _ = myself.send_message(Message::Happened(Box::new(event)));
                }
                Err(error) => tracing::warn!(%error, "comparison on a new text was left out"),
            }
        });
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
    async fn see_engine(&mut self, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        let info = self.arguments.engine.info();
        if !info.trains.is_empty() && self.engine_seen != Some(info.base_hash) {
            self.engine_seen = Some(info.base_hash);
            let levels = &self.arguments.tuned.get().levels;
            let allowed = |level: &AdapterLevel| levels.contains(level);
            let trains = info.trains.into_iter().filter(allowed).collect();
            let event = Event::Engine { base_hash: info.base_hash, trains };
            self.happened(myself, event).await?;
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
        Ok(())
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

    async fn tick(&mut self, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        self.see_engine(myself).await?;
        let on_battery = self.arguments.tuned.get().pause_on_battery && load::on_battery();
        // The job's own work is no reason to stop it: it runs at idle priority.
        let load = if self.job.is_some() { 0.0 } else { load::cpu_pressure() };
        self.happened(myself, Event::Tick { load, on_battery }).await.map(|_| ())
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

fn words_of(notices: &[Notice], evolution: &Evolution, now: Timestamp) -> String {
    let told = notices.iter().find_map(|notice| match notice {
        Notice::Refused { reason } | Notice::Ignored { reason } => Some(reason.clone()),
        _ => None,
    });
    told.or_else(|| evolution.status(now).waiting).unwrap_or_else(|| String::from("done"))
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
