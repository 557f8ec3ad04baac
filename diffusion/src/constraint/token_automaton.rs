//! A language over tokens: the byte automaton, walked by whole tokens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{ByteDfa, ConstraintError, Limits, Vocabulary};

/// A state of a [`TokenAutomaton`].
pub type StateId = u32;

/// No number of tokens leads to acceptance.
const NEVER: u32 = u32::MAX;

/// Tokens that lead from one state to another.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub(super) target: StateId,
    pub(super) tokens: TokenList,
}

/// A sorted list of tokens, shared by all edges that have the same one.
#[derive(Debug, Clone)]
pub(super) struct TokenList {
    /// Equal lists have equal numbers.
    pub(super) number: u32,
    pub(super) tokens: Arc<[u32]>,
}

/// A language over the tokens of a vocabulary. Edges of a state are worked out when the state is first asked for and kept.
///
/// With an ending token a text may be shorter than its hole: the ending token is accepted where the text matches, and after it only
/// itself. Without one a text has to fill its hole exactly.
#[derive(Debug)]
pub struct TokenAutomaton {
    dfa: ByteDfa,
    vocabulary: Arc<Vocabulary>,
    ending: Option<u32>,
    limits: Limits,
    rows: Vec<OnceLock<Box<[Edge]>>>,
    lists: Mutex<HashMap<Arc<[u32]>, u32>>,
    cached_bytes: AtomicUsize,
    distances: OnceLock<Box<[u32]>>,
}

impl TokenAutomaton {
    /// Joins a language and a vocabulary. `ending` is a token id of the vocabulary, usually a special one.
    pub fn new(
        dfa: ByteDfa,
        vocabulary: Arc<Vocabulary>,
        ending: Option<u32>,
        limits: Limits,
    ) -> Result<Self, ConstraintError> {
        if let Some(token) = ending
            && token as usize >= vocabulary.tokens()
        {
            return Err(ConstraintError::Vocabulary { tokens: token as usize, limit: vocabulary.tokens() });
        }
        let rows = (0..=dfa.states()).map(|_| OnceLock::new()).collect();
        Ok(Self {
            dfa,
            vocabulary,
            ending,
            limits,
            rows,
            lists: Mutex::default(),
            cached_bytes: AtomicUsize::new(0),
            distances: OnceLock::new(),
        })
    }

    /// The state before the first token.
    pub fn start(&self) -> StateId {
        ByteDfa::START
    }

    /// The state after the ending token.
    fn ended(&self) -> StateId {
        self.dfa.states() as u32
    }

    /// Number of states, the ended one included.
    pub fn states(&self) -> usize {
        self.dfa.states() + 1
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The token that ends a text and pads its hole.
    pub fn ending(&self) -> Option<u32> {
        self.ending
    }

    /// Whether a text that stops in this state matches.
    pub fn is_accepting(&self, state: StateId) -> bool {
        state == self.ended() || self.dfa.is_accepting(state)
    }

    /// The state after a token; None when no text that goes on like this matches. Special tokens other than the ending one never fit.
    pub fn next(&self, state: StateId, token: u32) -> Option<StateId> {
        if Some(token) == self.ending && self.is_accepting(state) {
            return Some(self.ended());
        }
        self.dfa.run(state, self.vocabulary.bytes(token)?)
    }

    /// The state after a run of tokens from the start.
    pub fn run(&self, tokens: &[u32]) -> Option<StateId> {
        tokens.iter().try_fold(self.start(), |state, &token| self.next(state, token))
    }

    /// The text that tokens of an accepted path stand for.
    pub fn text(&self, tokens: &[u32]) -> Vec<u8> {
        let end = tokens.iter().position(|token| Some(*token) == self.ending).unwrap_or(tokens.len());
        self.vocabulary.text(&tokens[..end])
    }

    /// Tokens that may follow a state, as bits: token t is bit `t % 64` of word `t / 64`.
    pub fn allowed(&self, state: StateId) -> Result<Vec<u64>, ConstraintError> {
        self.allowed_where(state, |_| true)
    }

    /// Tokens that may follow a state when `remaining` places are left (the one to be filled included), so that the text can still be
    /// completed in them.
    pub fn allowed_within(&self, state: StateId, remaining: usize) -> Result<Vec<u64>, ConstraintError> {
        let viable = self.viable(remaining.saturating_sub(1))?;
        if remaining == 0 {
            return Ok(vec![0; self.vocabulary.tokens().div_ceil(64)]);
        }
        self.allowed_where(state, |target| viable.get(target as usize).copied().unwrap_or(false))
    }

    fn allowed_where(&self, state: StateId, keep: impl Fn(StateId) -> bool) -> Result<Vec<u64>, ConstraintError> {
        let mut bits = vec![0_u64; self.vocabulary.tokens().div_ceil(64)];
        for edge in self.edges(state)?.iter().filter(|edge| keep(edge.target)) {
            for &token in edge.tokens.tokens.iter() {
                bits[token as usize / 64] |= 1 << (token % 64);
            }
        }
        Ok(bits)
    }

    /// Sets the logits of tokens that may not come next to `-inf`: one step of constrained autoregressive decoding. Fails when nothing
    /// may, which does not happen along a path that was masked like this from the start, if the first mask had a token.
    ///
    /// # Shapes
    /// `logits: [vocab]`
    pub fn mask(&self, state: StateId, remaining: usize, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let expected = self.vocabulary.tokens();
        if logits.len() != expected {
            return Err(ConstraintError::RowLength { length: logits.len(), expected });
        }
        let bits = self.allowed_within(state, remaining)?;
        if bits.iter().all(|&word| word == 0) {
            return Err(ConstraintError::Infeasible { tokens: remaining });
        }
        for (token, logit) in logits.iter_mut().enumerate() {
            if bits[token / 64] >> (token % 64) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// The fewest tokens that complete a text from this state; None when no tokens of the vocabulary do.
    pub fn tokens_to_accept(&self, state: StateId) -> Result<Option<usize>, ConstraintError> {
        let distance = self.distances()?.get(state as usize).copied().unwrap_or(NEVER);
        Ok((distance != NEVER).then_some(distance as usize))
    }

    /// Which states can be completed in the places that are left: by at most so many tokens with an ending token to pad with, by exactly
    /// so many without.
    pub(super) fn viable(&self, remaining: usize) -> Result<Vec<bool>, ConstraintError> {
        if self.ending.is_some() {
            return Ok(self.distances()?.iter().map(|&d| d != NEVER && d as usize <= remaining).collect());
        }
        let mut viable: Vec<bool> = (0..self.states() as u32).map(|state| self.dfa.is_accepting(state)).collect();
        for _ in 0..remaining {
            let mut before = vec![false; viable.len()];
            for (state, before) in before.iter_mut().enumerate() {
                *before = self.edges(state as u32)?.iter().any(|edge| viable[edge.target as usize]);
            }
            viable = before;
        }
        Ok(viable)
    }

    /// Breadth-first from the accepting states, backwards. Needs the edges of every state, once.
    fn distances(&self) -> Result<&[u32], ConstraintError> {
        if let Some(distances) = self.distances.get() {
            return Ok(distances);
        }
        let mut sources: Vec<Vec<u32>> = vec![Vec::new(); self.states()];
        for state in 0..self.states() as u32 {
            for edge in self.edges(state)? {
                sources[edge.target as usize].push(state);
            }
        }
        let mut distances = vec![NEVER; self.states()];
        let mut front: Vec<u32> = (0..self.states() as u32).filter(|&state| self.is_accepting(state)).collect();
        let mut distance = 0;
        while !front.is_empty() {
            let mut next = Vec::new();
            for state in front {
                if distances[state as usize] == NEVER {
                    distances[state as usize] = distance;
                    next.extend(&sources[state as usize]);
                }
            }
            front = next;
            distance += 1;
        }
        Ok(self.distances.get_or_init(|| distances.into_boxed_slice()))
    }

    /// The edges of a state, one for each target. Costs one walk of the vocabulary's tree the first time.
    pub(super) fn edges(&self, state: StateId) -> Result<&[Edge], ConstraintError> {
        let Some(cell) = self.rows.get(state as usize) else { return Ok(&[]) };
        if let Some(edges) = cell.get() {
            return Ok(edges);
        }
        let edges = self.walk(state)?;
        Ok(cell.get_or_init(|| edges))
    }

    fn walk(&self, state: StateId) -> Result<Box<[Edge]>, ConstraintError> {
        let mut by_target: HashMap<StateId, Vec<u32>> = HashMap::new();
        if let Some(token) = self.ending.filter(|_| self.is_accepting(state)) {
            by_target.entry(self.ended()).or_default().push(token);
        }
        if state != self.ended() {
            let nodes = &self.vocabulary.nodes;
            // The state after each byte of the current path, the start of the path first.
            let mut path: Vec<StateId> = vec![state];
            let mut index = 0;
            while let Some(node) = nodes.get(index) {
                path.truncate(usize::from(node.depth) + 1);
                let here = path.last().copied().and_then(|state| self.dfa.next(state, node.byte));
                match here {
                    None => index = node.end as usize,
                    Some(here) => {
                        path.push(here);
                        if node.tokens.0 < node.tokens.1 {
                            let tokens = &self.vocabulary.order[node.tokens.0 as usize..node.tokens.1 as usize];
                            // The ending token ends, even if it has bytes.
                            let tokens = tokens.iter().copied().filter(|token| Some(*token) != self.ending);
                            by_target.entry(here).or_default().extend(tokens);
                        }
                        index += 1;
                    }
                }
            }
        }
        let mut edges: Vec<Edge> = Vec::with_capacity(by_target.len());
        for (target, mut tokens) in by_target {
            if !tokens.is_empty() {
                tokens.sort_unstable();
                edges.push(Edge { target, tokens: self.shared(tokens)? });
            }
        }
        // The hash map's order is not the same from run to run.
        edges.sort_by_key(|edge| edge.target);
        self.charge(edges.len() * size_of::<Edge>())?;
        Ok(edges.into_boxed_slice())
    }

    fn shared(&self, tokens: Vec<u32>) -> Result<TokenList, ConstraintError> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((tokens, &number)) = lists.get_key_value(tokens.as_slice()) {
            return Ok(TokenList { number, tokens: Arc::clone(tokens) });
        }
        self.charge(tokens.len() * size_of::<u32>())?;
        let tokens: Arc<[u32]> = tokens.into();
        let number = lists.len() as u32;
        lists.insert(Arc::clone(&tokens), number);
        Ok(TokenList { number, tokens })
    }

    fn charge(&self, bytes: usize) -> Result<(), ConstraintError> {
        let before = self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limits.cache_bytes {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ConstraintError::TooLarge { what: "bytes of token lists", limit: self.limits.cache_bytes });
        }
        Ok(())
    }
}
