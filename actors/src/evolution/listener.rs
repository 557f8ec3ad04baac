//! What the loop hears of the memory: new texts of the user, and what was forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mneme_base::{MemoryId, Timestamp, TrustTier};
use mneme_engine_api::{CancelToken, EmbedPurpose};
use mneme_evolution::data::{Authorship, Signature};
use mneme_evolution::machine::Event;
use ractor::ActorRef;
use tokio::sync::{broadcast, mpsc};

use super::{Arguments, Message};
use crate::call::deadline_in;
use crate::memory::Change;

/// Texts that wait to be embedded; of an import that brings more, the first are seen.
const WAITING_MAX: usize = 1_024;
/// How long the embedding of one user text may take.
const TEXT_TIMEOUT: Duration = Duration::from_mins(1);

/// Listens to the memory: what is forgotten is passed on at once, new texts of the user are embedded one after the other first.
pub(super) async fn listen(mut changes: broadcast::Receiver<Change>, arguments: Arguments, myself: ActorRef<Message>) {
    let (waiting, queue) = mpsc::channel(WAITING_MAX);
    let missed = Arc::new(AtomicBool::new(false));
    let enabled = arguments.enabled;
    tokio::spawn(embed(queue, arguments, myself.clone(), Arc::clone(&missed)));
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
        match change {
            Change::Forgotten(ids) => {
                // An adapter must not serve on while texts are embedded. And once more behind them: it may be one of theirs.
                let event = Box::new(Event::Forgotten(ids.clone()));
                if myself.send_message(Message::Happened(event)).is_err() {
                    return;
                }
                if waiting.try_send(Waiting::Forgotten(ids)).is_err() {
                    missed.store(true, Ordering::Release);
                }
            }
            Change::Remembered { id, trust: TrustTier::User, valid_from } if enabled => {
                let _ = waiting.try_send(Waiting::Text(id, valid_from));
            }
            Change::Remembered { .. } => {}
        }
    }
}

/// What waits behind texts that are embedded.
enum Waiting {
    Text(MemoryId, Timestamp),
    Forgotten(Vec<MemoryId>),
}

/// Embeds texts in their order and passes them on.
async fn embed(
    mut queue: mpsc::Receiver<Waiting>,
    arguments: Arguments,
    myself: ActorRef<Message>,
    missed: Arc<AtomicBool>,
) {
    while let Some(next) = queue.recv().await {
        let event = match next {
            Waiting::Text(id, valid_from) => user_text(&arguments, id, valid_from).await,
            Waiting::Forgotten(ids) => Some(Event::Forgotten(ids)),
        };
        if let Some(event) = event
            && myself.send_message(Message::Happened(Box::new(event))).is_err()
        {
            return;
        }
        if queue.is_empty() && missed.swap(false, Ordering::AcqRel) {
            let _ = myself.send_message(Message::MissedChanges);
        }
    }
}

async fn user_text(arguments: &Arguments, id: MemoryId, time: Timestamp) -> Option<Event> {
    let deadline = deadline_in(TEXT_TIMEOUT);
    let memory = arguments.memory.get(id, deadline).await.ok()??;
    let (engine, text) = (Arc::clone(&arguments.engine), memory.text.clone());
    // Nobody waits for it: as a stored text it stands in the way of no question and stops no trainer.
    let embed = move || {
        let mut vectors =
            engine.embed(&[text], EmbedPurpose::Document, &CancelToken::with_deadline(TEXT_TIMEOUT)).ok()?;
        vectors.pop()
    };
    let situation = tokio::task::spawn_blocking(embed).await.ok()??;
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
