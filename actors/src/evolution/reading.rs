//! How well the model fits what the user writes: new texts are read by what serves them, and compared with base text.
//!
//! Without this, a user who has written in the same unfamiliar way since the first day would never be surprising.

use std::sync::Arc;
use std::time::Duration;

use mneme_base::{MemoryId, Timestamp};
use mneme_engine_api::{AdapterUse, CancelToken, ScoreItem, ScoreOutcome};
use mneme_evolution::machine::Event;
use mneme_evolution::trigger::reading_surprise;

use super::{Arguments, base_text};
use crate::call::{ActorError, deadline_in};

/// Texts that are read in a minute: each costs about a fifth of a processor second, and an import brings thousands.
const TEXTS_A_MINUTE: u32 = 12;
/// How long reading may take.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// Admits so many texts a minute.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    minute: i64,
    admitted: u32,
}

impl Pace {
    /// Whether another text may be read now.
    pub(super) fn admit(&mut self, now: Timestamp) -> bool {
        let minute = now.as_millis().div_euclid(60_000);
        if minute != self.minute {
            *self = Self { minute, admitted: 0 };
        }
        self.admitted += 1;
        self.admitted <= TEXTS_A_MINUTE
    }
}

/// The base's surprise at text that it needs no adaptation for.
pub(super) async fn calibrate(arguments: &Arguments) -> Result<Event, ActorError> {
    let items = base_text::all().map(|text| ScoreItem { detail: true, ..ScoreItem::new("", text.text) }).collect();
    let reading = score(arguments, items).await?.iter().filter_map(reading_surprise).collect();
    Ok(Event::Calibrated { surprise: Vec::new(), ambiguity: Vec::new(), reading })
}

/// The surprise of what serves at a text; `None` when the text is too short or gone.
pub(super) async fn read(
    arguments: &Arguments,
    memory: MemoryId,
    serving: Option<AdapterUse>,
) -> Result<Option<f32>, ActorError> {
    let Some(memory) = arguments.memory.get(memory, deadline_in(READ_TIMEOUT)).await? else { return Ok(None) };
    let item = ScoreItem { adapter: serving, detail: true, ..ScoreItem::new("", memory.text) };
    Ok(score(arguments, vec![item]).await?.first().and_then(reading_surprise))
}

async fn score(arguments: &Arguments, items: Vec<ScoreItem>) -> Result<Vec<ScoreOutcome>, ActorError> {
    let engine = Arc::clone(&arguments.engine);
    let work = move || engine.score(&items, &CancelToken::with_deadline(READ_TIMEOUT));
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_texts_is_read_in_part_and_the_next_minute_starts_afresh() {
        let mut pace = Pace::default();
        let at = |millis| Timestamp::from_millis(millis);
        let burst = (0..1_000).filter(|text| pace.admit(at(120_000 + text))).count();
        assert_eq!(burst, TEXTS_A_MINUTE as usize);
        assert!(pace.admit(at(180_000)));
    }
}
