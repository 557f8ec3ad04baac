//! The best tokens of a hole that keep the constraint reachable: dynamic programming over places and states (DINGO, arXiv 2505.23061,
//! algorithm 1).
//!
//! `W[i+1, q] = max over q' of W[i, q'] + max over tokens from q' to q of log p_i(token)`; the path has to end in a state from which the
//! places that are left can complete the text. Cost: for each place, the tokens of the distinct edge lists in reach and the edges.

use rand::Rng;

use super::{ConstraintError, StateId, TokenAutomaton};
use crate::random::gumbel;
use crate::sampler::{Canvas, LogitRows, Slot};

/// What is known of one place of a hole.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// It holds this token.
    Decided(u32),
    /// It is open, and the network says this of it: `[vocab]` logits or log-probabilities (the normaliser does not matter).
    Open(&'a [f32]),
    /// It is open and nothing is known of it, as in blocks that come later: any token.
    Unknown,
}

/// The best way through a hole.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// A token for each place: the decided ones as they were, the others chosen. Together they match the constraint.
    pub tokens: Vec<u32>,
    /// The sum of the logits of the chosen tokens at open places.
    pub score: f64,
}

/// Stands for `-inf` and NaN: such a token is taken only when nothing else completes the text.
const HOPELESS: f32 = -1e9;

/// Ways that one search may keep (12 bytes each): places times the states in reach.
const WAYS_MAX: usize = 16 << 20;

/// Finds the tokens of a hole with the largest sum of logits among all that match the constraint. Ties go to the lower state, then to the
/// lower token. Fails when nothing matches, or when hole and automaton are both so large that the search would not fit in memory.
pub fn best_path(automaton: &TokenAutomaton, places: &[Place<'_>]) -> Result<Path, ConstraintError> {
    let expected = automaton.vocabulary().tokens();
    for place in places {
        if let Place::Open(row) = place
            && row.len() != expected
        {
            return Err(ConstraintError::RowLength { length: row.len(), expected });
        }
    }
    let infeasible = ConstraintError::Infeasible { tokens: places.len() };
    let viable = viability(automaton, places.len())?;
    let states = automaton.states();
    let mut scores = vec![f64::NEG_INFINITY; states];
    if !viable(places.len(), automaton.start()) {
        return Err(infeasible);
    }
    scores[automaton.start() as usize] = 0.0;
    // For each place the way into each state that was reached, by state: (state, state before, token).
    let mut ways: Vec<Vec<(StateId, StateId, u32)>> = Vec::with_capacity(places.len());
    let mut active = vec![automaton.start()];
    let too_large = ConstraintError::TooLarge { what: "places times states", limit: WAYS_MAX };
    let mut kept = 0_usize;
    for (index, place) in places.iter().enumerate() {
        let left = places.len() - index - 1;
        let mut next = vec![f64::NEG_INFINITY; states];
        let mut way = vec![(0, 0); states];
        let mut reached = Vec::new();
        let mut enter = |from: StateId, target: StateId, token: u32, score: f64| {
            if !viable(left, target) {
                return;
            }
            let known = &mut next[target as usize];
            if *known == f64::NEG_INFINITY {
                reached.push(target);
            }
            if score > *known {
                *known = score;
                way[target as usize] = (from, token);
            }
        };
        match *place {
            Place::Decided(token) => {
                for &from in &active {
                    if let Some(target) = automaton.next(from, token) {
                        enter(from, target, token, scores[from as usize]);
                    }
                }
            }
            Place::Unknown => {
                for &from in &active {
                    for edge in automaton.edges(from)? {
                        enter(from, edge.target, edge.tokens.tokens[0], scores[from as usize]);
                    }
                }
            }
            Place::Open(row) => {
                // Many states share their lists of tokens, so the best of a list is looked for once a place.
                let mut best: Vec<Option<(f32, u32)>> = Vec::new();
                for &from in &active {
                    for edge in automaton.edges(from)? {
                        let number = edge.tokens.number as usize;
                        if best.len() <= number {
                            best.resize(number + 1, None);
                        }
                        let (logit, token) = *best[number].get_or_insert_with(|| best_of(row, &edge.tokens.tokens));
                        enter(from, edge.target, token, scores[from as usize] + f64::from(logit));
                    }
                }
            }
        }
        reached.sort_unstable();
        kept += reached.len();
        if kept > WAYS_MAX {
            return Err(too_large);
        }
        ways.push(reached.iter().map(|&state| (state, way[state as usize].0, way[state as usize].1)).collect());
        active = reached;
        scores = next;
    }
    let mut best = None;
    for &state in &active {
        if best.is_none_or(|best: StateId| scores[state as usize] > scores[best as usize]) {
            best = Some(state);
        }
    }
    let mut state = best.ok_or(infeasible)?;
    let score = scores[state as usize];
    let mut tokens = vec![0; places.len()];
    for (token, way) in tokens.iter_mut().zip(&ways).rev() {
        let index = way.binary_search_by_key(&state, |(reached, ..)| *reached).expect("the path was entered here");
        (_, state, *token) = way[index];
    }
    Ok(Path { tokens, score })
}

/// Whether a state can be completed in the places that are left.
fn viability(
    automaton: &TokenAutomaton,
    places: usize,
) -> Result<impl Fn(usize, StateId) -> bool + use<>, ConstraintError> {
    // With a token to pad with it is a matter of distance; without one each number of places has its own answer.
    let mut table: Vec<Vec<bool>> = Vec::new();
    let mut distances: Vec<usize> = Vec::new();
    if automaton.ending().is_some() {
        for state in 0..automaton.states() as StateId {
            distances.push(automaton.tokens_to_accept(state)?.unwrap_or(usize::MAX));
        }
    } else {
        if places.saturating_mul(automaton.states()) > WAYS_MAX {
            return Err(ConstraintError::TooLarge { what: "places times states", limit: WAYS_MAX });
        }
        table.push(automaton.viable(0)?);
        for left in 1..=places {
            let after = &table[left - 1];
            let mut row = vec![false; automaton.states()];
            for (state, viable) in row.iter_mut().enumerate() {
                *viable = automaton.edges(state as StateId)?.iter().any(|edge| after[edge.target as usize]);
            }
            table.push(row);
        }
    }
    Ok(move |left: usize, state: StateId| match table.get(left) {
        Some(row) => row[state as usize],
        None => distances.get(state as usize).is_some_and(|&distance| distance <= left),
    })
}

fn best_of(row: &[f32], tokens: &[u32]) -> (f32, u32) {
    let mut best = (f32::NEG_INFINITY, tokens[0]);
    for &token in tokens {
        let logit = row[token as usize];
        if logit > best.0 {
            best = (logit, token);
        }
    }
    if best.0 > HOPELESS { best } else { (HOPELESS, best.1) }
}

/// Proposes a token for every open position of a hole of a canvas, together with what is decided a match, for
/// [`crate::sampler::DiscreteSampler::step_proposed`]. Positions without a row (blocks that come later) count as unknown.
///
/// Whatever part of the proposal is then decided, the rest of it is a way to complete the text: a hole that could be filled at the first
/// step can be filled at every later one, and its text matches when it is full.
///
/// `temperature` above 0 adds Gumbel noise to the logits divided by it: without a constraint that is an exact draw of each token, with one
/// it is the usual perturb-and-maximise approximation (Papandreou and Yuille 2011) of a draw from the constrained distribution.
pub fn propose(
    automaton: &TokenAutomaton,
    canvas: &Canvas,
    hole: usize,
    logits: &LogitRows<'_>,
    temperature: f32,
    rng: &mut dyn Rng,
) -> Result<Vec<(usize, u32)>, ConstraintError> {
    let Some(range) = canvas.holes().get(hole).cloned() else { return Ok(Vec::new()) };
    let open: Vec<usize> = range.clone().filter(|&position| canvas.slots()[position] == Slot::Masked).collect();
    // A mask token that had bytes must not fill anything.
    let mut rows: Vec<Option<Vec<f32>>> = Vec::with_capacity(open.len());
    for &position in &open {
        rows.push(logits.row(position).map(|row| {
            let mut row = row.to_vec();
            if temperature > 0.0 {
                for logit in &mut row {
                    *logit = *logit / temperature + gumbel(rng) as f32;
                }
            }
            if let Some(logit) = row.get_mut(canvas.mask_id() as usize) {
                *logit = f32::NEG_INFINITY;
            }
            row
        }));
    }
    let places: Vec<Place<'_>> = range
        .clone()
        .map(|position| match open.binary_search(&position) {
            Ok(index) => rows[index].as_deref().map_or(Place::Unknown, Place::Open),
            Err(_) => Place::Decided(canvas.tokens()[position]),
        })
        .collect();
    let path = best_path(automaton, &places)?;
    Ok(open.into_iter().map(|position| (position, path.tokens[position - range.start])).collect())
}
