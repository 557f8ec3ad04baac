//! How a new text of the user fits the adapters that are being compared: scored under the base and each of them, one text at a time.

use std::sync::Arc;
use std::time::Duration;

use mneme_base::{AdapterId, Embedding, MemoryId};
use mneme_engine_api::{AdapterUse, CancelToken, Engine, EngineError, ScoreItem, ScoreOutcome};
use mneme_evolution::context::ContextId;
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
                let events = match compared(&arguments, context, memory, uses).await {
                    Ok(events) => events,
                    Err(error) => {
                        tracing::warn!(%error, "comparison on a new text was left out");
                        Vec::new()
                    }
                };
                let _ = myself.send_message(Message::Compared(events));
            });
        }
    }
}

/// Scores a text under the base and under each adapter.
async fn compared(
    arguments: &Arguments,
    context: ContextId,
    memory: MemoryId,
    uses: Vec<AdapterUse>,
) -> Result<Vec<Event>, ActorError> {
    let deadline = deadline_in(SCORE_TIMEOUT);
    let gone = || ActorError::NotFound { what: format!("memory {memory}") };
    let memory = arguments.memory.get(memory, deadline).await?.ok_or_else(gone)?;
    let engine = Arc::clone(&arguments.engine);
    let work = move || score(&*engine, context, &memory.text, &uses);
    let scored = tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })?;
    Ok(scored?)
}

/// Losses of a text (nats a token), all at once; one by one when one of them cannot be read, so that it speaks for itself only.
fn score(engine: &dyn Engine, context: ContextId, text: &str, uses: &[AdapterUse]) -> Result<Vec<Event>, EngineError> {
    let cancel = CancelToken::with_deadline(SCORE_TIMEOUT);
    let item = |adapter: Option<&AdapterUse>| ScoreItem { adapter: adapter.cloned(), ..ScoreItem::new("", text) };
    let loss = |score: &ScoreOutcome| (-score.log_likelihood / f64::from(score.tokens.max(1))) as f32;
    let short = || EngineError::Internal { reason: String::from("fewer scores than texts") };
    let all: Vec<ScoreItem> = std::iter::once(None).chain(uses.iter().map(Some)).map(item).collect();
    let mut events = Vec::new();
    let (base, adapted) = match engine.score(&all, &cancel) {
        Ok(scored) => {
            let (base, adapted) = scored.split_first().ok_or_else(short)?;
            (base.clone(), uses.iter().zip(adapted).map(|(adapter, score)| (adapter.id, loss(score))).collect())
        }
        Err(EngineError::Load { .. }) => {
            let base = engine.score(&[item(None)], &cancel)?.into_iter().next().ok_or_else(short)?;
            let mut adapted = Vec::new();
            for adapter in uses {
                match engine.score(&[item(Some(adapter))], &cancel) {
                    Ok(scored) => adapted.extend(scored.first().map(|score| (adapter.id, loss(score)))),
                    Err(error @ EngineError::Load { .. }) => {
                        events.push(Event::Unusable { adapter: adapter.id, reason: error.to_string() });
                    }
                    Err(error) => return Err(error),
                }
            }
            (base, adapted)
        }
        Err(error) => return Err(error),
    };
    let scored: Vec<(AdapterId, f32)> = adapted;
    events.insert(0, Event::Scored { context, tokens: base.tokens, base_loss: loss(&base), adapted: scored });
    Ok(events)
}

#[cfg(test)]
mod tests {
    use mneme_engine_api::FakeEngine;

    use super::*;

    #[test]
    fn an_adapter_that_cannot_be_read_spoils_no_score_but_its_own() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("adapter.txt"), "up betimes and to the office\n").unwrap();
        let adapter = |number, folder: &std::path::Path| AdapterUse {
            id: AdapterId::from_bytes([number; 16]),
            folder: folder.display().to_string(),
            weight: 1.0,
            scale: 1.0,
        };
        let uses = [adapter(1, folder.path()), adapter(2, &folder.path().join("gone")), adapter(3, folder.path())];
        let text = "up betimes and to my office";
        let events = score(&FakeEngine::default(), ContextId(1), text, &uses).unwrap();
        let [Event::Scored { adapted, base_loss, .. }, Event::Unusable { adapter, .. }] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(*adapter, uses[1].id);
        let whole = score(&FakeEngine::default(), ContextId(1), text, &[uses[0].clone(), uses[2].clone()]).unwrap();
        let [Event::Scored { adapted: alone, base_loss: base, .. }] = whole.as_slice() else { panic!("{whole:?}") };
        assert_eq!((adapted, base_loss), (alone, base));
    }
}
