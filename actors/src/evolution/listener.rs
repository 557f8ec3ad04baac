//! What the loop hears of the memory: new texts of the user, and what was forgotten; and how a new text fits the adapters.

use std::sync::Arc;
use std::time::Duration;

use mneme_base::{AdapterId, MemoryId, Timestamp, TrustTier};
use mneme_engine_api::{AdapterUse, CancelToken, ScoreItem, ScoreOutcome};
use mneme_evolution::data::{Authorship, Signature};
use mneme_evolution::machine::Event;
use ractor::ActorRef;
use tokio::sync::broadcast;

use super::{Arguments, Message};
use crate::call::{ActorError, deadline_in};
use crate::memory::Change;

/// How long the embedding and scoring of one user text may take.
const TEXT_TIMEOUT: Duration = Duration::from_mins(1);

/// Listens to the memory: new texts of the user are embedded, scored where an adapter is being compared, and passed on.
pub(super) async fn listen(mut changes: broadcast::Receiver<Change>, arguments: Arguments, myself: ActorRef<Message>) {
    loop {
        let change = match changes.recv().await {
            Ok(change) => change,
            // New texts that were skipped over are no loss, the loop keeps the newest in any case; a forgotten one is.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let _ = myself.send_message(Message::MissedChanges);
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let event = match change {
            Change::Forgotten(ids) => Some(Event::Forgotten(ids)),
            Change::Remembered { id, trust: TrustTier::User, valid_from } => {
                user_text(&arguments, id, valid_from).await
            }
            Change::Remembered { .. } => None,
        };
        if let Some(event) = event
            && myself.send_message(Message::Happened(Box::new(event))).is_err()
        {
            return;
        }
    }
}

async fn user_text(arguments: &Arguments, id: MemoryId, time: Timestamp) -> Option<Event> {
    let deadline = deadline_in(TEXT_TIMEOUT);
    let memory = arguments.memory.get(id, deadline).await.ok()??;
    let situation = arguments.memory.embed(memory.text.clone(), deadline).await.ok()?;
    let accepted = memory.metadata.get("authorship").is_some_and(|value| value == "accepted");
    Some(Event::UserText {
        memory: id,
        time,
        // Characters / 4 is the usual estimate; policy needs no better.
        tokens: (memory.text.chars().count() / 4).max(1) as u32,
        situation,
        signature: Signature::of(&memory.text),
        authorship: if accepted { Authorship::Accepted } else { Authorship::Authored },
    })
}

/// Losses of a text (nats a token) under the base and under each adapter.
pub(super) async fn score(
    arguments: &Arguments,
    memory: MemoryId,
    uses: Vec<AdapterUse>,
) -> Result<(u32, f32, Vec<(AdapterId, f32)>), ActorError> {
    let deadline = deadline_in(TEXT_TIMEOUT);
    let gone = || ActorError::NotFound { what: format!("memory {memory}") };
    let memory = arguments.memory.get(memory, deadline).await?.ok_or_else(gone)?;
    let mut items = vec![ScoreItem::new("", memory.text.clone())];
    items.extend(
        uses.iter()
            .map(|adapter| ScoreItem { adapter: Some(adapter.clone()), ..ScoreItem::new("", memory.text.clone()) }),
    );
    let engine = Arc::clone(&arguments.engine);
    let work = move || engine.score(&items, &CancelToken::with_deadline(TEXT_TIMEOUT));
    let scored = tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })??;
    let loss = |score: &ScoreOutcome| (-score.log_likelihood / f64::from(score.tokens.max(1))) as f32;
    let [base, adapted @ ..] = scored.as_slice() else {
        return Err(ActorError::Stopped { actor: "evolution" });
    };
    let adapted = uses.iter().zip(adapted).map(|(adapter, score)| (adapter.id, loss(score))).collect();
    Ok((base.tokens, loss(base), adapted))
}
