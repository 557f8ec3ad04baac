//! What each order of the user changes.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{AdapterId, Embedding, MemoryId, Timestamp};

use super::observed::STRUCTURAL_SHARE;
use super::row::{Cause, Change, Stage};
use super::{Action, Command, Draft, Evolution, Notice};
use crate::context::ContextId;
use crate::gate;
use crate::portable::CardError;
use crate::registry::{CardState, Entry, SkillCard, Source};

/// The change of an import is refused when its row is longer (bytes): the store takes documents of 4 MiB, and a row that it refuses
/// would hold up all that come after.
pub(crate) const IMPORT_BYTES_MAX: usize = 3 << 20;
/// Imported adapters that are kept at a time: each may be tried for any context, and has a file of up to 256 MiB.
pub(super) const IMPORTED_MAX: usize = 32;

impl Evolution {
    pub(super) fn on_command(&mut self, command: Command, now: Timestamp, out: &mut Vec<Action>) {
        let stage = self.state.stage();
        match command {
            Command::Pause | Command::Resume => {
                let paused = command == Command::Pause;
                if self.state.paused != paused {
                    let reason = if paused { "the user paused training" } else { "the user resumed training" };
                    self.record(Draft::new(stage, stage, reason, Change::Paused { paused }), now, out);
                }
            }
            Command::Pin { adapter, pinned } => match self.state.registry.get(adapter).map(|entry| entry.state) {
                None | Some(CardState::Retired) => refuse(out, format!("adapter {adapter} is not known or is retired")),
                Some(_) => {
                    let reason = if pinned { "the user pinned it" } else { "the user unpinned it" };
                    let draft = Draft::new(stage, stage, reason, Change::Pinned { pinned }).about(adapter, None);
                    self.record(draft, now, out);
                }
            },
            Command::Rollback { adapter } => self.on_rollback(adapter, now, out),
            Command::Retire { adapter } => {
                let entry = self.state.registry.get(adapter).filter(|entry| entry.state != CardState::Retired);
                if entry.is_none() {
                    return refuse(out, format!("adapter {adapter} is not known or is retired"));
                }
                let serving = self.served_by(adapter);
                let job = self.state.job.as_ref().filter(|job| job.spec.parent == Some(adapter));
                let job = job.map(|job| job.spec.adapter);
                let draft =
                    Draft::new(stage, Stage::Retire, "the user retired it", Change::Retired).about(adapter, None);
                self.record(draft, now, out);
                out.extend(
                    serving.into_iter().map(|(adapter, context)| Action::DeactivateAdapter { adapter, context }),
                );
                out.push(Action::RetireAdapter { adapter });
                if let Some(adapter) = job {
                    out.push(Action::StopTraining { adapter });
                    out.push(Action::RetireAdapter { adapter });
                }
            }
            Command::RunNow { situation } => self.on_run_now(situation.as_ref(), now, out),
            Command::Import { card, foreign, guard } => self.on_import(card, foreign, &guard, now, out),
        }
    }

    fn on_rollback(&mut self, adapter: AdapterId, now: Timestamp, out: &mut Vec<Action>) {
        let mut contexts: Vec<ContextId> = self.served_by(adapter).into_iter().map(|(_, context)| context).collect();
        contexts.extend(self.state.trials.iter().filter(|trial| trial.adapter == adapter).map(|trial| trial.context));
        if contexts.is_empty() {
            return refuse(out, format!("adapter {adapter} serves nothing and is not on trial"));
        }
        for context in contexts {
            self.roll_back(adapter, context, "the user took it back".to_owned(), BTreeMap::new(), now, out);
        }
    }

    fn on_run_now(&mut self, situation: Option<&Embedding>, now: Timestamp, out: &mut Vec<Action>) {
        let contexts = self.soft.trigger.contexts();
        let chosen = match situation {
            Some(situation) => contexts.find(situation),
            None => {
                contexts.iter().map(|c| c.id).max_by_key(|id| (self.soft.texts.tokens(*id), std::cmp::Reverse(*id)))
            }
        };
        let Some(context) = chosen.and_then(|id| contexts.get(id)) else {
            return refuse(out, "nothing is known that could be trained on".to_owned());
        };
        let (context, centroid) = (context.id, context.centroid.clone());
        if self.state.job.as_ref().is_some_and(|job| job.spec.context == context) {
            return refuse(out, format!("a job for {context} is under way"));
        }
        let tokens = self.soft.texts.tokens(context) as f64;
        let rounds = self.soft.trigger.rounds_begun();
        let structural = self
            .soft
            .trigger
            .should_evolve(context)
            .is_some_and(|(_, suspicion)| suspicion.structural > STRUCTURAL_SHARE);
        let change = Change::Suspected { cause: Cause::Asked, centroid, structural, rounds };
        let draft = Draft::new(Stage::Serve, Stage::Suspect, "the user asked for training", change);
        self.record(draft.about(None, context).number("tokens", tokens), now, out);
    }

    /// Whether a card from elsewhere may be taken in: it must be of the base here, new, and made from nothing forgotten.
    pub fn admits(&self, card: &SkillCard) -> Result<(), CardError> {
        if self.keeps(card.adapter) {
            return Err(CardError::Known(card.adapter));
        }
        self.state.registry.admits(card)?;
        let is_kept = |entry: &&Entry| entry.state != CardState::Retired && entry.source != Source::Made;
        let kept = self.state.registry.iter().filter(is_kept).count();
        if kept >= IMPORTED_MAX {
            return Err(CardError::TooMany { kept });
        }
        let ours = self.state.base.ok_or(CardError::NoBase)?;
        if card.base_hash != ours {
            return Err(CardError::Base { adapter: card.adapter, theirs: card.base_hash, ours });
        }
        Ok(())
    }

    /// What was judged elsewhere is judged anew here: what can be measured at once is what it forgets, its gain is left to the
    /// shadow.
    fn on_import(
        &mut self,
        card: Box<SkillCard>,
        foreign: BTreeSet<MemoryId>,
        guard: &[(f32, f32)],
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let adapter = card.adapter;
        if let Err(error) = self.admits(&card) {
            return refuse(out, error.to_string());
        }
        // The sender chose the card's seed.
        let (forgetting, failure) = gate::judge_forgetting(guard, &self.policy.gate, self.policy.seed);
        if let Some(failure) = failure {
            return refuse(out, format!("adapter {adapter} is not taken in: {failure}"));
        }
        let stage = self.state.stage();
        let reason = format!(
            "an adapter was imported, made of {} memories of which {} were never here; it is tried where it may help",
            card.lineage.len(),
            foreign.len()
        );
        let change = Change::Imported { card, foreign };
        let bytes = serde_json::to_vec(&change).map_or(usize::MAX, |row| row.len());
        if bytes > IMPORT_BYTES_MAX {
            return refuse(
                out,
                format!("the row of adapter {adapter} has {bytes} bytes, allowed are {IMPORT_BYTES_MAX}"),
            );
        }
        let draft = Draft::new(stage, stage, reason, change).about(adapter, None);
        let bits = |nats: f64| nats / gate::NATS_PER_BIT;
        let draft = match forgetting {
            Some(e) => draft.number("forgetting_bits", bits(e.mean)).number("forgetting_bits_upper", bits(e.upper)),
            None => draft,
        };
        self.record(draft, now, out);
    }
}

fn refuse(out: &mut Vec<Action>, reason: String) {
    out.push(Action::Notify(Notice::Refused { reason }));
}
