//! What must hold of the state after every row.

use std::collections::BTreeSet;

use super::state::{JobPhase, State};
use crate::context::ContextId;
use crate::registry::CardState;

impl State {
    /// Whatever is inconsistent, in words; empty always, or there is a bug. For tests and `doctor`.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (context, pointer) in &self.pointers {
            let Some(adapter) = pointer.active else { continue };
            match self.registry.get(adapter).map(|entry| entry.state) {
                Some(CardState::Active) => {}
                state => problems.push(format!("{context} is served by adapter {adapter} whose state is {state:?}")),
            }
        }
        for entry in self.registry.iter() {
            let adapter = entry.card.adapter;
            let serves = self.pointers.values().any(|pointer| pointer.active == Some(adapter));
            let on_trial = self.trials.iter().any(|trial| trial.adapter == adapter);
            if entry.state == CardState::Active && !serves {
                problems.push(format!("adapter {adapter} is active and serves nothing"));
            }
            if entry.state == CardState::Shadow && !on_trial {
                problems.push(format!("adapter {adapter} is in shadow without a trial"));
            }
            if entry.state == CardState::Retired && (serves || on_trial) {
                problems.push(format!("adapter {adapter} is retired and still in use"));
            }
            let learned_forgotten = entry.card.lineage.iter().any(|memory| self.registry.is_forgotten(*memory));
            if learned_forgotten && entry.state != CardState::Retired {
                problems.push(format!("adapter {adapter} learned a forgotten memory and is not retired"));
            }
        }
        let contexts: BTreeSet<ContextId> = self.trials.iter().map(|trial| trial.context).collect();
        if contexts.len() != self.trials.len() {
            problems.push("two adapters are on trial in one context".to_owned());
        }
        if let Some(job) = &self.job {
            if self.registry.get(job.spec.adapter).is_some() {
                problems.push(format!("adapter {} has a card while its job runs", job.spec.adapter));
            }
            if job.spec.memories().any(|memory| self.registry.is_forgotten(*memory)) {
                problems.push("the job uses a forgotten memory".to_owned());
            }
            if (job.phase == JobPhase::Judging) != job.outcome.is_some() {
                problems.push("the job's outcome does not fit its phase".to_owned());
            }
        }
        problems
    }
}
