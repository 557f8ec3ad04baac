//! How a new text of the user fits the adapters that are being compared: scored under the base and each of them, one text at a time.

use std::sync::Arc;
use std::time::Duration;

use mneme_base::{AdapterId, Embedding, MemoryId};
use mneme_engine_api::{AdapterUse, CancelToken, ScoreItem, ScoreOutcome};
use mneme_evolution::machine::Event;
use ractor::ActorRef;

use super::{Arguments, Message, State};
use crate::call::{ActorError, deadline_in};

/// Texts that wait to be compared; of an import that brings more, the first are. Which ones does not depend on what they say.
const WAITING_MAX: usize = 256;
/// How long the scoring of one text may take.
const SCORE_TIMEOUT: Duration = Duration::from_mins(1);

impl State {
    /// Has a new text compared when its turn comes: the vectors of notes share the engine's lane with it and must find room.
    pub(super) fn compare(&mut self, myself: &ActorRef<Message>, memory: MemoryId, situation: &Embedding) {
        if self.to_compare.len() < WAITING_MAX && self.evolution.watched(situation).is_some() {
            self.to_compare.push_back((memory, situation.clone()));
            self.compare_next(myself);
        }
    }

    /// Begins the next comparison, unless one is under way.
    pub(super) fn compare_next(&mut self, myself: &ActorRef<Message>) {
        while !self.comparing
            && let Some((memory, situation)) = self.to_compare.pop_front()
        {
            // What is compared may have changed since the text came.
            let Some((context, adapters)) = self.evolution.watched(&situation) else {
                continue;
            };
            self.comparing = true;
            let uses: Vec<AdapterUse> = adapters.into_iter().map(|id| self.adapter_use(id)).collect();
            let (arguments, myself) = (self.arguments.clone(), myself.clone());
            tokio::spawn(async move {
                let event = match score(&arguments, memory, uses).await {
                    Ok((tokens, base_loss, adapted)) => {
                        Some(Box::new(Event::Scored { context, tokens, base_loss, adapted }))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "comparison on a new text was left out");
                        None
                    }
                };
                let _ = myself.send_message(Message::Compared(event));
            });
        }
    }
}

/// Losses of a text (nats a token) under the base and under each adapter.
async fn score(
    arguments: &Arguments,
    memory: MemoryId,
    uses: Vec<AdapterUse>,
) -> Result<(u32, f32, Vec<(AdapterId, f32)>), ActorError> {
    let deadline = deadline_in(SCORE_TIMEOUT);
    let gone = || ActorError::NotFound { what: format!("memory {memory}") };
    let memory = arguments.memory.get(memory, deadline).await?.ok_or_else(gone)?;
    let mut items = vec![ScoreItem::new("", memory.text.clone())];
    items.extend(
        uses.iter()
            .map(|adapter| ScoreItem { adapter: Some(adapter.clone()), ..ScoreItem::new("", memory.text.clone()) }),
    );
    let engine = Arc::clone(&arguments.engine);
    let work = move || engine.score(&items, &CancelToken::with_deadline(SCORE_TIMEOUT));
    let scored = tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })??;
    let loss = |score: &ScoreOutcome| (-score.log_likelihood / f64::from(score.tokens.max(1))) as f32;
    let [base, adapted @ ..] = scored.as_slice() else {
        return Err(ActorError::Stopped { actor: "evolution" });
    };
    let adapted = uses.iter().zip(adapted).map(|(adapter, score)| (adapter.id, loss(score))).collect();
    Ok((base.tokens, loss(base), adapted))
}
