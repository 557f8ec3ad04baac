//! A deterministic automaton over bytes, in which every state can still reach acceptance.

use std::collections::HashMap;

use super::{ConstraintError, Limits};

/// No state.
const DEAD: u32 = u32::MAX;

/// A language over bytes. Every state is reachable and can reach an accepting one: a text that has not died can always be completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteDfa {
    /// Bytes that no state tells apart share a class.
    classes: Box<[u8; 256]>,
    class_count: usize,
    /// `[state, class]`
    transitions: Vec<u32>,
    accepting: Vec<bool>,
}

impl ByteDfa {
    /// The state before the first byte.
    pub const START: u32 = 0;

    /// The texts that match an expression as a whole (syntax of the `regex` crate; Unicode on).
    pub fn regex(pattern: &str, limits: Limits) -> Result<Self, ConstraintError> {
        super::pattern::whole(pattern, limits)
    }

    /// The JSON texts that a schema accepts, within the limits. `schema` is JSON.
    pub fn json_schema(schema: &str, limits: Limits) -> Result<Self, ConstraintError> {
        super::schema::compile(schema, limits)
    }

    /// Builds from a full table `[state, 256]` with [`u32::MAX`] for "no state"; state 0 is the start. Unreachable and hopeless states
    /// are dropped. Fails when nothing is left.
    pub(super) fn from_table(table: &[u32], accepting: &[bool]) -> Result<Self, ConstraintError> {
        let states = accepting.len();
        let hopeful = co_reachable(table, accepting);
        if !hopeful.first().copied().unwrap_or(false) {
            return Err(ConstraintError::Empty);
        }
        // States in order of discovery, so that equal constraints give equal automata.
        let mut renamed = vec![DEAD; states];
        let mut order = vec![0_usize];
        renamed[0] = 0;
        let mut index = 0;
        while index < order.len() {
            for &target in &table[order[index] * 256..(order[index] + 1) * 256] {
                if target != DEAD && hopeful[target as usize] && renamed[target as usize] == DEAD {
                    renamed[target as usize] = order.len() as u32;
                    order.push(target as usize);
                }
            }
            index += 1;
        }
        let rename = |target: u32| if target == DEAD { DEAD } else { renamed[target as usize] };
        let mut column_class: HashMap<Vec<u32>, u8> = HashMap::new();
        let mut classes = Box::new([0_u8; 256]);
        let mut columns: Vec<Vec<u32>> = Vec::new();
        for byte in 0..256 {
            let column: Vec<u32> = order.iter().map(|&state| rename(table[state * 256 + byte])).collect();
            let class = *column_class.entry(column).or_insert_with_key(|column| {
                columns.push(column.clone());
                (columns.len() - 1) as u8
            });
            classes[byte] = class;
        }
        let class_count = columns.len();
        let mut transitions = vec![DEAD; order.len() * class_count];
        for (class, column) in columns.iter().enumerate() {
            for (state, &target) in column.iter().enumerate() {
                transitions[state * class_count + class] = target;
            }
        }
        let accepting = order.iter().map(|&state| accepting[state]).collect();
        Ok(Self { classes, class_count, transitions, accepting })
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.accepting.len()
    }

    /// The state after a byte; None when no text that goes on like this matches.
    pub fn next(&self, state: u32, byte: u8) -> Option<u32> {
        let index = (state as usize).checked_mul(self.class_count)? + usize::from(self.classes[usize::from(byte)]);
        self.transitions.get(index).copied().filter(|&target| target != DEAD)
    }

    /// Whether a text that ends in this state matches.
    pub fn is_accepting(&self, state: u32) -> bool {
        self.accepting.get(state as usize).copied().unwrap_or(false)
    }

    /// The state after a run of bytes.
    pub fn run(&self, state: u32, bytes: &[u8]) -> Option<u32> {
        bytes.iter().try_fold(state, |state, &byte| self.next(state, byte))
    }

    /// Whether a text matches as a whole.
    pub fn accepts(&self, text: &[u8]) -> bool {
        self.run(Self::START, text).is_some_and(|state| self.is_accepting(state))
    }

    /// The texts that both match.
    pub(super) fn intersect(&self, other: &Self, limits: Limits) -> Result<Self, ConstraintError> {
        let mut ids: HashMap<(u32, u32), u32> = HashMap::from([((0, 0), 0)]);
        let mut order = vec![(0_u32, 0_u32)];
        let (mut table, mut accepting) = (Vec::new(), Vec::new());
        let mut index = 0;
        while index < order.len() {
            let (a, b) = order[index];
            accepting.push(self.is_accepting(a) && other.is_accepting(b));
            for byte in 0..=255 {
                table.push(match (self.next(a, byte), other.next(b, byte)) {
                    (Some(a), Some(b)) => *ids.entry((a, b)).or_insert_with(|| {
                        order.push((a, b));
                        (order.len() - 1) as u32
                    }),
                    _ => DEAD,
                });
            }
            if order.len() > limits.states {
                return Err(ConstraintError::TooLarge { what: "automaton states", limit: limits.states });
            }
            index += 1;
        }
        Self::from_table(&table, &accepting)
    }
}

/// States from which an accepting state can be reached.
fn co_reachable(table: &[u32], accepting: &[bool]) -> Vec<bool> {
    let states = accepting.len();
    let mut sources: Vec<Vec<u32>> = vec![Vec::new(); states];
    for state in 0..states {
        let mut last = DEAD;
        for &target in &table[state * 256..(state + 1) * 256] {
            // Neighbouring bytes mostly share a target; duplicates that remain do no harm.
            if target != DEAD && target != last {
                sources[target as usize].push(state as u32);
                last = target;
            }
        }
    }
    let mut hopeful = accepting.to_vec();
    let mut queue: Vec<usize> = (0..states).filter(|&state| accepting[state]).collect();
    while let Some(state) = queue.pop() {
        for &source in &sources[state] {
            if !hopeful[source as usize] {
                hopeful[source as usize] = true;
                queue.push(source as usize);
            }
        }
    }
    hopeful
}
