//! Contexts: clusters of similar situations, found online by cosine radius, with a bounded number.
//!
//! An adapter belongs to a context, evidence is gathered per context, and text is trained on per context.

use std::collections::BTreeSet;

use mneme_base::Embedding;
use serde::{Deserialize, Serialize};

/// Names a context for as long as its evolution is remembered; numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContextId(pub u64);

impl std::fmt::Display for ContextId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "context {}", self.0)
    }
}

/// After this many members the centroid moves as slowly as if it had only these, so that a context can drift.
const MEMBERS_REMEMBERED: u64 = 64;

/// A cluster of similar situations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Its name.
    pub id: ContextId,
    /// Its centre.
    pub centroid: Embedding,
    /// How many situations it has taken in.
    pub members: u64,
    /// The order number of the last one; the smallest is the stalest context.
    pub last_seen: u64,
}

/// The contexts that are known, at most `limit`, each of the same radius.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contexts {
    radius: f32,
    limit: usize,
    next: u64,
    seen: u64,
    all: Vec<Context>,
}

impl Contexts {
    /// Starts without contexts. `radius` is a cosine distance (0 to 2).
    pub fn new(radius: f32, limit: usize) -> Self {
        Self { radius, limit: limit.max(1), next: 1, seen: 0, all: Vec::new() }
    }

    /// The contexts, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Context> {
        self.all.iter()
    }

    /// The context of this name.
    pub fn get(&self, id: ContextId) -> Option<&Context> {
        self.all.iter().find(|context| context.id == id)
    }

    /// The nearest context and its cosine distance, whatever the radius. Costs one dot product per context.
    pub fn nearest(&self, situation: &Embedding) -> Option<(ContextId, f32)> {
        let distances = self.all.iter().filter_map(|c| Some((c.id, 1.0 - c.centroid.cosine(situation)?)));
        distances.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The context that a situation falls into, when one is near enough; changes nothing.
    pub fn find(&self, situation: &Embedding) -> Option<ContextId> {
        self.nearest(situation).filter(|(_, distance)| *distance <= self.radius).map(|(id, _)| id)
    }

    /// Takes a situation in: joins the nearest context in reach, or opens one. When the number is exhausted the stalest
    /// context outside `kept` makes room (second value); when all are kept the nearest takes it in.
    pub fn assign(&mut self, situation: &Embedding, kept: &BTreeSet<ContextId>) -> (ContextId, Option<ContextId>) {
        self.seen += 1;
        let nearest = self.nearest(situation);
        let near = nearest.filter(|(_, distance)| *distance <= self.radius);
        let (room, dropped) = match near {
            Some((id, _)) => (Err(id), None),
            None if self.all.len() < self.limit => (Ok(()), None),
            None => {
                let free = self.all.iter().filter(|c| !kept.contains(&c.id)).min_by_key(|c| c.last_seen).map(|c| c.id);
                match (free, nearest) {
                    (None, Some((id, _))) => (Err(id), None),
                    (stalest, _) => (Ok(()), stalest),
                }
            }
        };
        self.all.retain(|context| Some(context.id) != dropped);
        if let Err(id) = room {
            self.join(id, situation);
            return (id, dropped);
        }
        let id = ContextId(self.next);
        self.next += 1;
        self.all.push(Context { id, centroid: situation.clone(), members: 1, last_seen: self.seen });
        (id, dropped)
    }

    /// Makes sure that a context of this name exists, after a restart that lost it.
    pub fn ensure(&mut self, id: ContextId, centroid: &Embedding) {
        self.next = self.next.max(id.0.saturating_add(1));
        if self.get(id).is_none() {
            self.all.push(Context { id, centroid: centroid.clone(), members: 1, last_seen: self.seen });
        }
    }

    fn join(&mut self, id: ContextId, situation: &Embedding) {
        let seen = self.seen;
        let Some(context) = self.all.iter_mut().find(|context| context.id == id) else { return };
        context.members += 1;
        context.last_seen = seen;
        let weight = 1.0 / context.members.min(MEMBERS_REMEMBERED) as f32;
        let old = context.centroid.as_slice();
        let moved = old.iter().zip(situation.as_slice()).map(|(c, s)| c + weight * (s - c)).collect();
        // Opposite vectors could cancel to zero: then the centre stays where it was.
        if old.len() == situation.dimensions()
            && let Ok(centroid) = Embedding::normalized(moved)
        {
            context.centroid = centroid;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(degrees: f32) -> Embedding {
        Embedding::normalized(vec![degrees.to_radians().cos(), degrees.to_radians().sin()]).unwrap()
    }

    #[test]
    fn near_situations_share_a_context_and_far_ones_do_not() {
        let mut contexts = Contexts::new(0.1, 8);
        let keep = BTreeSet::new();
        let (a, _) = contexts.assign(&at(0.0), &keep);
        let (b, _) = contexts.assign(&at(10.0), &keep);
        let (c, _) = contexts.assign(&at(90.0), &keep);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(contexts.find(&at(50.0)), None);
        assert_eq!(contexts.find(&at(5.0)), Some(a));
    }

    #[test]
    fn the_stalest_context_makes_room_unless_it_is_kept() {
        let mut contexts = Contexts::new(0.01, 2);
        let (a, _) = contexts.assign(&at(0.0), &BTreeSet::new());
        let (b, _) = contexts.assign(&at(90.0), &BTreeSet::new());
        let (c, dropped) = contexts.assign(&at(180.0), &BTreeSet::from([a]));
        assert_eq!(dropped, Some(b));
        let (d, dropped) = contexts.assign(&at(270.0), &BTreeSet::from([a, c]));
        assert!((d == a || d == c) && dropped.is_none());
        assert_eq!(contexts.iter().count(), 2);
    }

    #[test]
    fn another_dimension_opens_a_context_of_its_own() {
        let mut contexts = Contexts::new(0.1, 8);
        let (a, _) = contexts.assign(&at(0.0), &BTreeSet::new());
        let (b, _) = contexts.assign(&Embedding::normalized(vec![1.0, 0.0, 0.0]).unwrap(), &BTreeSet::new());
        assert_ne!(a, b);
    }

    #[test]
    fn names_are_not_used_twice_after_a_restart() {
        let mut contexts = Contexts::new(0.1, 8);
        contexts.ensure(ContextId(41), &at(0.0));
        assert_eq!(contexts.assign(&at(90.0), &BTreeSet::new()).0, ContextId(42));
    }
}
