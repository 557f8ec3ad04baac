//! Skill cards: what each adapter is bound to, was made from and is worth. A card never changes; only its state does.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{AdapterId, ContentHash, Embedding, MemoryId, Timestamp};
use mneme_engine_api::AdapterLevel;
use serde::{Deserialize, Serialize};

use crate::context::ContextId;
use crate::gate::Verdict;
use crate::portable::CardError;

/// What is known of an adapter, for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkillCard {
    /// Its name.
    pub adapter: AdapterId,
    /// The base weights it is bound to: with others it is never served.
    pub base_hash: ContentHash,
    /// The adapter whose weights it started from.
    pub parent: Option<AdapterId>,
    /// How deep it goes.
    pub level: AdapterLevel,
    /// The context it was made for.
    pub context: ContextId,
    /// The centre of that context.
    pub centroid: Embedding,
    /// It is offered at most this far from the centre (cosine distance).
    pub radius: f32,
    /// The memories it learned.
    pub lineage: Vec<MemoryId>,
    /// The memories it was judged on.
    pub judged_on: Vec<MemoryId>,
    /// The verdict with its confidence bounds.
    pub scores: Verdict,
    /// The factor its update is scaled by, 0 to 1.
    pub scale: f64,
    /// Seed of its training.
    pub seed: u64,
    /// Hash of its file.
    pub file_hash: ContentHash,
    /// Size of its file.
    pub bytes: u64,
    /// CPU seconds that it cost.
    pub cpu_seconds: f64,
    /// When it was accepted.
    pub made: Timestamp,
}

/// Where an adapter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CardState {
    /// Compared with the base on real text, not served.
    Shadow,
    /// Served in at least one context.
    Active,
    /// Replaced by a better one; a rollback may return to it.
    Superseded,
    /// Taken back; not served again unless it passes a shadow again.
    RolledBack,
    /// Gone for good: its file is deleted.
    Retired,
}

/// A card with its present state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The card.
    pub card: SkillCard,
    /// Its state.
    pub state: CardState,
    /// Whether the user pinned it: it is neither replaced nor rolled back by itself.
    pub pinned: bool,
    /// Where it comes from.
    pub source: Source,
}

impl Entry {
    /// The memories that it learned and that were in the store here: when one of them is gone, the adapter goes too.
    pub fn own_lineage(&self) -> impl Iterator<Item = MemoryId> {
        let foreign = match &self.source {
            Source::Made => None,
            Source::Imported { foreign } => Some(foreign),
        };
        self.card.lineage.iter().copied().filter(move |memory| foreign.is_none_or(|foreign| !foreign.contains(memory)))
    }

    /// Its gain as it was measured here (nats a token); an imported card's is a claim.
    pub fn measured_gain(&self) -> Option<f64> {
        self.card.scores.gain.filter(|_| self.source == Source::Made).map(|gain| gain.mean)
    }
}

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The loop made it.
    Made,
    /// It was imported.
    Imported {
        /// The memories it learned that were never in the store here: provenance, and nothing more.
        foreign: BTreeSet<MemoryId>,
    },
}

/// All adapters that were ever accepted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Registry {
    entries: BTreeMap<AdapterId, Entry>,
    /// Memories that were forgotten: nothing made from them is taken again.
    forgotten: BTreeSet<MemoryId>,
}

impl Registry {
    /// Whether a new card may be taken in: a name is taken once, and what learned a forgotten memory does not come back.
    pub fn admits(&self, card: &SkillCard) -> Result<(), CardError> {
        if self.entries.contains_key(&card.adapter) {
            return Err(CardError::Known(card.adapter));
        }
        if card.lineage.iter().any(|memory| self.forgotten.contains(memory)) {
            return Err(CardError::Forgotten(card.adapter));
        }
        Ok(())
    }

    /// Takes a new card in, if [`Self::admits`] it.
    pub fn insert(&mut self, card: SkillCard, state: CardState, source: Source) -> Result<(), CardError> {
        self.admits(&card)?;
        self.entries.insert(card.adapter, Entry { card, state, pinned: false, source });
        Ok(())
    }

    /// The entry of an adapter.
    pub fn get(&self, adapter: AdapterId) -> Option<&Entry> {
        self.entries.get(&adapter)
    }

    /// All entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Moves an adapter to another state; what is retired stays so.
    pub fn set_state(&mut self, adapter: AdapterId, state: CardState) {
        if let Some(entry) = self.entries.get_mut(&adapter).filter(|entry| entry.state != CardState::Retired) {
            entry.state = state;
        }
    }

    /// Pins or unpins an adapter.
    pub fn set_pinned(&mut self, adapter: AdapterId, pinned: bool) {
        if let Some(entry) = self.entries.get_mut(&adapter) {
            entry.pinned = pinned;
        }
    }

    /// Whether a memory was forgotten.
    pub fn is_forgotten(&self, memory: MemoryId) -> bool {
        self.forgotten.contains(&memory)
    }

    /// The memories that were forgotten.
    pub const fn forgotten(&self) -> &BTreeSet<MemoryId> {
        &self.forgotten
    }

    /// The adapters, not yet retired, that learned one of these memories, themselves or through their parents.
    pub fn made_from(&self, memories: &BTreeSet<MemoryId>) -> Vec<AdapterId> {
        let alive = |adapter: &AdapterId| self.get(*adapter).is_some_and(|entry| entry.state != CardState::Retired);
        self.learned(memories).into_iter().filter(alive).collect()
    }

    /// All adapters, retired or not, that learned one of these memories, themselves or through their parents.
    pub fn learned(&self, memories: &BTreeSet<MemoryId>) -> BTreeSet<AdapterId> {
        let mut tainted: BTreeSet<AdapterId> = BTreeSet::new();
        let learned = |entry: &Entry| entry.card.lineage.iter().any(|memory| memories.contains(memory));
        tainted.extend(self.iter().filter(|entry| learned(entry)).map(|entry| entry.card.adapter));
        // Parents may have any order of names (imports), so this repeats until nothing is added; each pass adds or ends.
        loop {
            let children: Vec<AdapterId> = self
                .iter()
                .filter(|entry| entry.card.parent.is_some_and(|parent| tainted.contains(&parent)))
                .map(|entry| entry.card.adapter)
                .filter(|adapter| !tainted.contains(adapter))
                .collect();
            if children.is_empty() {
                break;
            }
            tainted.extend(children);
        }
        tainted
    }

    /// Remembers that memories were forgotten and retires what was made from them.
    pub fn forget(&mut self, memories: &BTreeSet<MemoryId>) -> Vec<AdapterId> {
        let retired = self.made_from(memories);
        self.forgotten.extend(memories.iter().copied());
        for adapter in &retired {
            self.set_state(*adapter, CardState::Retired);
        }
        retired
    }

    /// Adapters that might help near a situation: of this base, neither retired nor rolled back, the situation inside
    /// their radius, nearest first. Costs one dot product per card.
    pub fn near(&self, situation: &Embedding, base: ContentHash) -> Vec<(&Entry, f32)> {
        let mut found: Vec<(&Entry, f32)> = self
            .iter()
            .filter(|entry| entry.card.base_hash == base)
            .filter(|entry| matches!(entry.state, CardState::Active | CardState::Superseded))
            .filter_map(|entry| Some((entry, 1.0 - entry.card.centroid.cosine(situation)?)))
            .filter(|(entry, distance)| *distance <= entry.card.radius)
            .collect();
        found.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.card.adapter.cmp(&b.0.card.adapter)));
        found
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::tests::memory;
    use crate::gate::tests::{GOOD, outcome};
    use crate::gate::{GatePolicy, Past, judge};

    pub(crate) fn adapter(number: u8) -> AdapterId {
        AdapterId::from_bytes([number; 16])
    }

    pub(crate) fn card(number: u8, parent: Option<u8>, lineage: &[u64]) -> SkillCard {
        let past = Past { scale: 1.0, ..Past::default() };
        SkillCard {
            adapter: adapter(number),
            base_hash: ContentHash::of(b"base"),
            parent: parent.map(adapter),
            level: AdapterLevel::Lora,
            context: ContextId(1),
            centroid: Embedding::normalized(vec![1.0, 0.2, 0.1]).unwrap(),
            radius: 0.2,
            lineage: lineage.iter().map(|n| memory(*n)).collect(),
            judged_on: vec![memory(500)],
            scores: judge(&outcome(GOOD, 1), &past, &GatePolicy::default(), 1),
            scale: 0.75,
            seed: u64::MAX,
            file_hash: ContentHash::of(b"file"),
            bytes: 1_234,
            cpu_seconds: 12.5,
            made: Timestamp::from_millis(1_700_000_000_123),
        }
    }

    #[test]
    fn forgetting_a_memory_retires_its_adapters_and_their_children() {
        let mut registry = Registry::default();
        // 9 is the grandparent of 1, whose name sorts first.
        registry.insert(card(9, None, &[7]), CardState::Superseded, Source::Made).unwrap();
        registry.insert(card(5, Some(9), &[8]), CardState::Active, Source::Made).unwrap();
        registry.insert(card(1, Some(5), &[10]), CardState::Shadow, Source::Made).unwrap();
        registry.insert(card(3, None, &[11]), CardState::Active, Source::Made).unwrap();
        let retired = registry.forget(&BTreeSet::from([memory(7)]));
        assert_eq!(retired, [adapter(1), adapter(5), adapter(9)]);
        assert_eq!(registry.get(adapter(3)).unwrap().state, CardState::Active);
        registry.set_state(adapter(1), CardState::Active);
        assert_eq!(registry.get(adapter(1)).unwrap().state, CardState::Retired);
    }

    #[test]
    fn a_card_made_from_a_forgotten_memory_cannot_come_back() {
        let mut registry = Registry::default();
        registry.forget(&BTreeSet::from([memory(7)]));
        assert!(matches!(
            registry.insert(card(1, None, &[7]), CardState::Shadow, Source::Made),
            Err(CardError::Forgotten(_))
        ));
        registry.insert(card(2, None, &[8]), CardState::Shadow, Source::Made).unwrap();
        assert!(matches!(
            registry.insert(card(2, None, &[8]), CardState::Shadow, Source::Made),
            Err(CardError::Known(_))
        ));
    }

    #[test]
    fn only_near_adapters_of_this_base_are_offered() {
        let mut registry = Registry::default();
        registry.insert(card(1, None, &[1]), CardState::Active, Source::Made).unwrap();
        registry.insert(card(2, None, &[1]), CardState::RolledBack, Source::Made).unwrap();
        let near = Embedding::normalized(vec![1.0, 0.3, 0.0]).unwrap();
        let far = Embedding::normalized(vec![0.0, 1.0, 0.0]).unwrap();
        let base = ContentHash::of(b"base");
        assert_eq!(registry.near(&near, base).len(), 1);
        assert!(registry.near(&far, base).is_empty());
        assert!(registry.near(&near, ContentHash::of(b"another base")).is_empty());
    }
}
