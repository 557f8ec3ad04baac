//! Plans a job: whether one may run, on what text, how deep, how long.

use std::collections::BTreeMap;

use mneme_base::{AdapterId, MemoryId, Timestamp};
use mneme_engine_api::AdapterLevel;

use super::row::{Cause, JobSpec};
use super::{Evolution, Proposal};
use crate::context::ContextId;
use crate::data::select;
use crate::random::mix;
use crate::registry::Entry;
use crate::router::{LevelBandit, LoraHistory, Need};

/// Texts of neighbouring contexts in a job's guard, besides base text.
const NEIGHBOUR_TEXTS_MAX: usize = 16;

impl Evolution {
    /// Why no training may run now.
    pub(super) fn held_up(&self) -> Option<&'static str> {
        match self.around.busy {
            _ if self.state.paused => Some("training is paused by the user"),
            _ if self.state.base.is_none() || self.around.trains.is_empty() => Some("no engine that trains is there"),
            None => Some("the load of the machine is not known yet"),
            Some(_) if self.around.on_battery => Some("the machine runs on battery"),
            Some(true) => Some("the machine is busy"),
            Some(false) => None,
        }
    }

    /// Plans a job, or says why there is none now.
    pub(super) fn plan(&self, proposal: &Proposal, now: Timestamp) -> Result<(JobSpec, BTreeMap<String, f64>), String> {
        if let Some(why) = self.held_up() {
            return Err(why.to_owned());
        }
        let context = proposal.context;
        let asked = proposal.cause == Cause::Asked;
        let record = self.state.contexts.get(&context).ok_or("its record is missing")?;
        let pointer = self.state.pointers.get(&context);
        let active = pointer.and_then(|pointer| pointer.active).and_then(|adapter| self.state.registry.get(adapter));
        if active.is_some_and(|entry| entry.pinned) {
            return Err("the adapter that serves it is pinned".to_owned());
        }
        if self.state.trials.len() >= self.policy.trials_max {
            return Err(format!("{} adapters are in shadow, no more are allowed", self.state.trials.len()));
        }
        let tokens = self.soft.texts.tokens(context);
        let fresh = tokens.saturating_sub(record.tokens_then);
        let needed = match record.rejections {
            0 => 0,
            n => self.policy.fresh_tokens_min.saturating_mul(1 << (n - 1).min(16)),
        };
        if fresh < needed && !asked {
            return Err(format!(
                "it was rejected {} times; {fresh} of {needed} fresh tokens are there",
                record.rejections
            ));
        }
        let selection = select(&self.soft.texts, context, &self.policy.data).map_err(|error| error.to_string())?;
        let need = Need {
            structural: proposal.structural,
            control_signal: self.policy.control_signal,
            lora: match (record.lora_accepted, record.lora_plateaued) {
                (true, true) => LoraHistory::Plateaued,
                (true, false) => LoraHistory::Accepted,
                (false, _) => LoraHistory::None,
            },
        };
        let seed = mix(self.policy.seed ^ mix(self.state.rows));
        let level = self.state.levels.choose(&need, &self.around.trains, seed);
        let level =
            level.ok_or_else(|| format!("no level is open of {:?}", LevelBandit::open(&need, &self.around.trains)))?;
        let (steps, cost) = self.steps(selection.train_tokens, asked, now)?;
        let numbers = BTreeMap::from([
            ("train_tokens".to_owned(), selection.train_tokens as f64),
            ("duplicates".to_owned(), selection.duplicates as f64),
            ("in_gap".to_owned(), selection.in_gap as f64),
            ("cpu_seconds_expected".to_owned(), cost),
            ("cpu_seconds_today".to_owned(), self.state.spent(now)),
        ]);
        let may_start_from = |entry: &&Entry| {
            Some(entry.card.base_hash) == self.state.base && entry.card.level == level && level == AdapterLevel::Lora
        };
        let spec = JobSpec {
            adapter: adapter_id(seed, self.state.rows, now),
            level,
            context,
            train: selection.train,
            held_out: selection.held_out,
            guard: self.guard(context),
            train_tokens: selection.train_tokens,
            parent: active.filter(may_start_from).map(|entry| entry.card.adapter),
            replay_fraction: self.policy.data.replay_fraction.clamp(0.0, 0.9),
            placebo: self.policy.gate.placebo_required,
            steps_max: steps,
            seed,
        };
        Ok((spec, numbers))
    }

    /// The newest texts of other contexts that an adapter serves.
    fn guard(&self, context: ContextId) -> Vec<MemoryId> {
        let serves = |other: ContextId| {
            other != context && self.state.pointers.get(&other).is_some_and(|pointer| pointer.active.is_some())
        };
        let newest = self.soft.texts.iter().rev().filter(|text| serves(text.context));
        newest.take(NEIGHBOUR_TEXTS_MAX).map(|text| text.memory).collect()
    }

    /// Steps for a number of tokens and their expected cost (CPU seconds, with the placebo), within today's budget.
    fn steps(&self, train_tokens: u64, asked: bool, now: Timestamp) -> Result<(u32, f64), String> {
        let policy = &self.policy;
        let replay = 1.0 / (1.0 - policy.data.replay_fraction.clamp(0.0, 0.9));
        let tokens_per_step = f64::from(policy.tokens_per_step.max(1));
        let wished = (train_tokens as f64 * policy.epochs * replay / tokens_per_step).ceil() as u32;
        let wished = wished.clamp(policy.steps_min, policy.steps_max.max(policy.steps_min));
        let arms = if policy.gate.placebo_required { 2.0 } else { 1.0 };
        let step_cost = arms * tokens_per_step / policy.tokens_per_cpu_second.max(1e-3);
        let left = (policy.cpu_seconds_a_day - self.state.spent(now)).max(0.0);
        let affordable = if asked { wished } else { (left / step_cost) as u32 };
        if affordable < policy.steps_min {
            return Err(format!("today's budget has {left:.0} CPU seconds left, a job needs more"));
        }
        let steps = wished.min(affordable);
        Ok((steps, f64::from(steps) * step_cost))
    }
}

/// A UUID of version 7 made of the time, the seed and the row, so that the same history makes the same names.
fn adapter_id(seed: u64, row: u64, now: Timestamp) -> AdapterId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&(now.as_millis().max(0) as u64).to_be_bytes()[2..]);
    bytes[6..8].copy_from_slice(&(0x7000 | (row & 0x0FFF) as u16).to_be_bytes());
    bytes[8..].copy_from_slice(&mix(seed ^ row.rotate_left(32)).to_be_bytes());
    bytes[8] = 0x80 | (bytes[8] & 0x3F);
    AdapterId::from_bytes(bytes)
}
