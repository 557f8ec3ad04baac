//! A nondeterministic automaton that languages are written into piece by piece, and its determinisation.
//!
//! Pieces are functions from a state to a state: `literal(from, b"null")` returns the state after the word. A piece never leads back into
//! the state it started from, unless it says so, so pieces can be put side by side and one after the other.

use std::collections::HashMap;

use super::{ByteDfa, ConstraintError, Limits};

/// Members of all state sets of one determinisation at most: it bounds memory (64 MiB) and time where few sets are very large.
const SET_MEMBERS_MAX: usize = 16 << 20;

/// A state of the automaton.
pub(super) type Node = usize;

/// The automaton under construction. State 0 is the start.
#[derive(Debug)]
pub(super) struct Nfa {
    empty: Vec<Vec<u32>>,
    ranges: Vec<Vec<(u8, u8, u32)>>,
    limits: Limits,
}

impl Nfa {
    pub(super) const START: Node = 0;

    pub(super) fn new(limits: Limits) -> Self {
        Self { empty: vec![Vec::new()], ranges: vec![Vec::new()], limits }
    }

    /// A fresh state.
    pub(super) fn state(&mut self) -> Result<Node, ConstraintError> {
        if self.empty.len() >= self.limits.nfa_states {
            return Err(ConstraintError::TooLarge {
                what: "states of the unfolded schema",
                limit: self.limits.nfa_states,
            });
        }
        self.empty.push(Vec::new());
        self.ranges.push(Vec::new());
        Ok(self.empty.len() - 1)
    }

    /// Goes from one state to another without a byte.
    pub(super) fn join(&mut self, from: Node, to: Node) {
        self.empty[from].push(to as u32);
    }

    /// Goes from one state to another on any byte of a range.
    pub(super) fn range(&mut self, from: Node, low: u8, high: u8, to: Node) {
        self.ranges[from].push((low, high, to as u32));
    }

    /// A fresh state after one byte of a range.
    pub(super) fn byte(&mut self, from: Node, low: u8, high: u8) -> Result<Node, ConstraintError> {
        let to = self.state()?;
        self.range(from, low, high, to);
        Ok(to)
    }

    /// A fixed text.
    pub(super) fn literal(&mut self, from: Node, text: &[u8]) -> Result<Node, ConstraintError> {
        text.iter().try_fold(from, |state, &byte| self.byte(state, byte, byte))
    }

    /// Between `min` and `max` bytes of a range, `max` small.
    pub(super) fn repeat(
        &mut self,
        from: Node,
        low: u8,
        high: u8,
        min: usize,
        max: usize,
    ) -> Result<Node, ConstraintError> {
        let end = self.state()?;
        let mut here = from;
        for count in 0..=max {
            if count >= min {
                self.join(here, end);
            }
            if count < max {
                here = self.byte(here, low, high)?;
            }
        }
        Ok(end)
    }

    /// Any of several pieces; None when none of them can match.
    pub(super) fn any_of(
        &mut self,
        ends: impl IntoIterator<Item = Option<Node>>,
    ) -> Result<Option<Node>, ConstraintError> {
        let ends: Vec<Node> = ends.into_iter().flatten().collect();
        if let [one] = ends[..] {
            return Ok(Some(one));
        }
        if ends.is_empty() {
            return Ok(None);
        }
        let end = self.state()?;
        for branch in ends {
            self.join(branch, end);
        }
        Ok(Some(end))
    }

    /// The subset construction.
    pub(super) fn determinize(&self, end: Node) -> Result<ByteDfa, ConstraintError> {
        let (class_of, class_count) = self.byte_classes();
        let mut marks = vec![0_u32; self.empty.len()];
        let mut stamp = 0_u32;
        let start = self.closure(vec![Self::START as u32], &mut marks, &mut stamp);
        let mut ids: HashMap<Vec<u32>, u32> = HashMap::from([(start.clone(), 0)]);
        let mut order = vec![start];
        let (mut table, mut accepting) = (Vec::new(), Vec::new());
        let mut members = 0_usize;
        let mut index = 0;
        while index < order.len() {
            members += order[index].len();
            if members > SET_MEMBERS_MAX {
                return Err(ConstraintError::TooLarge { what: "members of state sets", limit: SET_MEMBERS_MAX });
            }
            let mut targets: Vec<Vec<u32>> = vec![Vec::new(); class_count];
            for &state in &order[index] {
                for &(low, high, to) in &self.ranges[state as usize] {
                    for class in class_of[usize::from(low)]..=class_of[usize::from(high)] {
                        targets[usize::from(class)].push(to);
                    }
                }
            }
            accepting.push(order[index].binary_search(&(end as u32)).is_ok());
            let mut by_class = vec![u32::MAX; class_count];
            for (class, to) in targets.into_iter().enumerate() {
                if to.is_empty() {
                    continue;
                }
                let set = self.closure(to, &mut marks, &mut stamp);
                by_class[class] = *ids.entry(set).or_insert_with_key(|set| {
                    order.push(set.clone());
                    (order.len() - 1) as u32
                });
            }
            // Checked before the table grows by another row.
            if order.len() > self.limits.states {
                return Err(ConstraintError::TooLarge { what: "automaton states", limit: self.limits.states });
            }
            table.extend(class_of.iter().map(|&class| by_class[usize::from(class)]));
            index += 1;
        }
        ByteDfa::from_table(&table, &accepting)
    }

    /// Bytes that no range tells apart, numbered in order.
    fn byte_classes(&self) -> ([u8; 256], usize) {
        let mut starts = [false; 257];
        for &(low, high, _) in self.ranges.iter().flatten() {
            starts[usize::from(low)] = true;
            starts[usize::from(high) + 1] = true;
        }
        let mut class_of = [0_u8; 256];
        let mut class = 0_u8;
        for byte in 0..256 {
            if byte > 0 && starts[byte] {
                class += 1;
            }
            class_of[byte] = class;
        }
        (class_of, usize::from(class) + 1)
    }

    /// All states that are reached without a byte, sorted.
    fn closure(&self, mut open: Vec<u32>, marks: &mut [u32], stamp: &mut u32) -> Vec<u32> {
        *stamp += 1;
        let mut set = Vec::with_capacity(open.len());
        while let Some(state) = open.pop() {
            if marks[state as usize] != *stamp {
                marks[state as usize] = *stamp;
                set.push(state);
                open.extend(&self.empty[state as usize]);
            }
        }
        set.sort_unstable();
        set
    }
}
