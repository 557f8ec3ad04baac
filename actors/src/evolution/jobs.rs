//! A training job from its specification to what the loop is told of it.

use std::sync::Arc;

use mneme_engine_api::{AdapterUse, CancelToken, EngineError, TrainEvent, TrainJob, TrainOutcome, TrainText};
use mneme_evolution::machine::{Event, JobSpec};
use mneme_memory::Memory;
use ractor::ActorRef;

use super::{Arguments, JOURNAL_TIMEOUT, Message, adapter_folder, base_text};
use crate::call::{ActorError, deadline_in};

/// Runs a job to its event: what the loop is told of it.
pub(super) async fn run_job(
    arguments: &Arguments,
    spec: JobSpec,
    parent: Option<AdapterUse>,
    scale: f32,
    cancel: CancelToken,
    myself: &ActorRef<Message>,
) -> Event {
    let adapter = spec.adapter;
    let failed = |reason: String| Event::TrainingFailed { adapter, reason, cpu_seconds: 0.0 };
    let job = match job_of(arguments, &spec, parent, scale).await {
        Ok(job) => job,
        Err(error) => return failed(error.to_string()),
    };
    match train(arguments, job, cancel, myself).await {
        Ok(outcome) => Event::Trained(Box::new(outcome)),
        Err(EngineError::Cancelled) => Event::Preempted { adapter },
        Err(error @ EngineError::Unsupported { .. }) => Event::CannotTrain { adapter, reason: error.to_string() },
        Err(error) => failed(error.to_string()),
    }
}

async fn train(
    arguments: &Arguments,
    job: TrainJob,
    cancel: CancelToken,
    myself: &ActorRef<Message>,
) -> Result<TrainOutcome, EngineError> {
    let (engine, myself) = (Arc::clone(&arguments.engine), myself.clone());
    let work = move || {
        let mut observe = |event: TrainEvent| {
            let progress = event.step as f32 / event.steps_total.max(1) as f32;
            let _ = myself.send_message(Message::Progress(job.adapter, progress));
        };
        engine.train(&job, &mut observe, &cancel)
    };
    let lost = |_| EngineError::Internal { reason: String::from("training thread ended early") };
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// Gathers the texts of a job.
async fn job_of(
    arguments: &Arguments,
    spec: &JobSpec,
    parent: Option<AdapterUse>,
    scale: f32,
) -> Result<TrainJob, ActorError> {
    let deadline = deadline_in(JOURNAL_TIMEOUT);
    let train = texts_of(arguments.memory.get_all(spec.train.clone(), deadline).await?);
    let held_out = texts_of(arguments.memory.get_all(spec.held_out.clone(), deadline).await?);
    if train.is_empty() || held_out.is_empty() {
        return Err(ActorError::NotFound { what: String::from("text to learn from") });
    }
    // What neighbouring contexts learned must not be forgotten either.
    let mut guard = base_text::guard();
    guard.extend(texts_of(arguments.memory.get_all(spec.guard.clone(), deadline).await?));
    let bytes: usize = train.iter().map(|text| text.text.len()).sum();
    Ok(TrainJob {
        adapter: spec.adapter,
        level: spec.level,
        replay: base_text::replay((bytes as f64 * spec.replay_fraction) as usize),
        guard,
        parent,
        placebo: if spec.placebo { base_text::placebo(bytes) } else { Vec::new() },
        train,
        held_out,
        steps_max: spec.steps_max,
        scale,
        seed: spec.seed,
        folder: adapter_folder(&arguments.folder, spec.adapter).display().to_string(),
    })
}

fn texts_of(memories: Vec<Memory>) -> Vec<TrainText> {
    memories.into_iter().map(|memory| TrainText { memory: memory.id.to_string(), text: memory.text }).collect()
}
