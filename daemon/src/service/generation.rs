//! Generation as a task, and feedback on it.

use std::sync::Arc;

use mneme_actors::GenerateAsk;
use mneme_base::{Provenance, TaskId, TrustTier};
use mneme_engine_api::CanvasEvent;
use mneme_evolution::trigger::Feedback as Opinion;
use mneme_ipc::types as wire;
use mneme_ipc::types::{TaskEvent, TaskEventKind, TaskState};
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::{NewMemory, OperationKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CANVAS_EVENTS_MAX, Context, EndOnDrop, Service, remembered, told, unexpected};
use crate::convert::{self, GenerationDefaults, invalid};
use crate::tasks::Generated;

impl Service {
    pub(super) fn defaults(&self) -> GenerationDefaults {
        let generation = &self.config().generation;
        GenerationDefaults {
            steps: generation.steps,
            block: generation.block_tokens,
            tokens_max: generation.tokens_max,
        }
    }

    pub(super) async fn generate(
        self: &Arc<Self>,
        params: wire::GenerateParams,
        context: Context,
    ) -> Result<wire::GenerateResult, ErrorBody> {
        let stream = params.stream;
        let (id, cancel) = self.tasks.begin("generate", None, self.clock.now()).map_err(|_| unexpected())?;
        let events = stream.then_some(context.events);
        self.run_generation(id, params, cancel, events, context.deadline).await
    }

    /// Runs a generation as a task; a caller that goes away cancels it.
    pub(super) async fn run_generation(
        self: &Arc<Self>,
        id: TaskId,
        params: wire::GenerateParams,
        cancel: mneme_engine_api::CancelToken,
        events: Option<mpsc::Sender<TaskEvent>>,
        deadline: Instant,
    ) -> Result<wire::GenerateResult, ErrorBody> {
        let started = Instant::now();
        let mut guard = EndOnDrop { service: self, id, ended: false };
        let namespace = params.namespace.clone().unwrap_or_default();
        let result = async {
            let (request, recall) = convert::generation(&params, self.defaults())?;
            let (sender, mut canvas) = mpsc::channel(CANVAS_EVENTS_MAX);
            let ask = GenerateAsk { request, recall, base_only: params.base_only, events: Some(sender), cancel };
            self.tell(id, TaskEventKind::Started, events.as_ref());
            let generate = self.system.generator.generate(ask, deadline);
            tokio::pin!(generate);
            // The answer ends it, and not the end of the events: an engine that goes on for a step is not waited for.
            let answer = loop {
                tokio::select! {
                    biased;
                    Some(event) = canvas.recv() => self.tell_canvas(id, event, events.as_ref()),
                    answer = &mut generate => break answer,
                }
            };
            while let Ok(event) = canvas.try_recv() {
                self.tell_canvas(id, event, events.as_ref());
            }
            answer.map_err(told)
        }
        .await;
        guard.ended = true;
        let now = self.clock.now();
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                let state = if error.kind() == ErrorKind::Cancelled { TaskState::Cancelled } else { TaskState::Failed };
                self.tasks.end(id, state, Some(error.message.clone()), None, now);
                return Err(error);
            }
        };
        let generation = answer.generation;
        let view = wire::GenerateResult {
            task: id,
            tokens: convert::token_views(&generation),
            text: generation.text,
            fills: generation.fills,
            memories: answer.memories,
            adapters: generation.adapters,
            uncertainty: convert::uncertainty_view(&answer.uncertainty),
            mode: convert::mode_view(generation.mode),
            steps: generation.steps,
            acceptance: generation.acceptance,
            finish: generation.finish,
            engine: answer.engine,
            degraded: answer.degraded,
            took_ms: started.elapsed().as_millis() as u64,
        };
        let kept = Generated { situation: answer.situation, text: view.text.clone(), namespace };
        self.tasks.end(id, TaskState::Succeeded, None, Some((view.clone(), kept)), now);
        Ok(view)
    }

    fn tell_canvas(&self, id: TaskId, event: CanvasEvent, events: Option<&mpsc::Sender<TaskEvent>>) {
        let CanvasEvent { step, steps_total, canvas, decided, holes } = event;
        self.tell(id, TaskEventKind::Canvas { step, steps_total, canvas, decided, holes }, events);
    }

    pub(super) fn tell(&self, id: TaskId, event: TaskEventKind, events: Option<&mpsc::Sender<TaskEvent>>) {
        if let (Some(event), Some(events)) = (self.tasks.tell(id, event), events) {
            let _ = events.try_send(event);
        }
    }

    pub(super) async fn feedback(
        &self,
        params: wire::FeedbackParams,
        context: &Context,
    ) -> Result<wire::FeedbackResult, ErrorBody> {
        let gone = || {
            ErrorBody::new(ErrorKind::NotFound, format!("generation {} is not known (any more)", params.task))
                .hint("feedback is taken for recent generations of this run of the daemon")
        };
        let generated = self.tasks.generated(params.task).ok_or_else(gone)?;
        let (opinion, text) = match (params.verdict, params.correction) {
            (wire::Verdict::Accept, None) => (Opinion::Accept, Some(generated.text.clone())),
            (wire::Verdict::Reject, None) => (Opinion::Reject, None),
            (wire::Verdict::Correct, Some(text)) if !text.trim().is_empty() => (Opinion::Correct, Some(text)),
            (wire::Verdict::Correct, _) => return Err(invalid("correction is missing")),
            (_, Some(_)) => return Err(invalid("correction goes with the verdict correct only")),
        };
        let mut memory = None;
        if let Some(text) = text {
            let mut new = NewMemory::note(generated.namespace.clone(), text, &context.caller.client);
            new.provenance =
                Provenance { source: "feedback".into(), ..Provenance::user(context.caller.client.clone()) };
            new.provenance.trust = params.trust.unwrap_or(TrustTier::User);
            new.metadata.insert("authorship".into(), "accepted".into());
            new.metadata.insert("generation".into(), params.task.to_string());
            memory = Some(remembered(self.apply(OperationKind::Remember(new), context).await?)?.id);
        }
        let again = context.op_id.is_some_and(|op_id| self.tasks.has_feedback(params.task, op_id));
        if let Some(situation) = generated.situation.filter(|_| !again) {
            self.system.evolution.judge(situation, opinion, context.deadline).await.map_err(told)?;
            if let Some(op_id) = context.op_id {
                self.tasks.keep_feedback(params.task, op_id);
            }
        }
        Ok(wire::FeedbackResult { task: params.task, memory })
    }
}
