//! The pieces that JSON texts are made of, written into an automaton.
//!
//! Layout is compact with at most one space after a comma, a colon or an opening bracket; what generators write by habit fits, and runs of
//! white space that never end do not.

use super::nfa::{Nfa, Node};
use super::{ByteDfa, ConstraintError};

/// Digits of a whole part at most: fifteen keep integers exact in a double, which is what many readers use.
pub(super) const DIGITS_MAX: usize = 15;
/// Digits after the point at most.
const FRACTION_DIGITS_MAX: usize = 15;

type Piece = Result<Node, ConstraintError>;

impl Nfa {
    /// Nothing or one space.
    pub(super) fn space(&mut self, from: Node) -> Piece {
        let to = self.state()?;
        self.join(from, to);
        self.range(from, b' ', b' ', to);
        Ok(to)
    }

    /// A mark and perhaps a space.
    pub(super) fn mark(&mut self, from: Node, mark: u8) -> Piece {
        let after = self.byte(from, mark, mark)?;
        self.space(after)
    }

    /// One character of a string, raw or escaped, between two given states. Lone surrogates are left out: readers refuse them.
    pub(super) fn string_char(&mut self, from: Node, to: Node) -> Result<(), ConstraintError> {
        for (low, high) in [(0x20, b'!'), (b'#', b'['), (b']', 0x7E)] {
            self.range(from, low, high, to);
        }
        let escape = self.byte(from, b'\\', b'\\')?;
        for plain in *b"\"\\/bfnrt" {
            self.range(escape, plain, plain, to);
        }
        let hex = self.byte(escape, b'u', b'u')?;
        let (three, two, one, high) = (self.state()?, self.state()?, self.state()?, self.state()?);
        for (low, high) in [(b'0', b'9'), (b'a', b'c'), (b'A', b'C'), (b'e', b'f'), (b'E', b'F')] {
            self.range(hex, low, high, three);
        }
        self.range(hex, b'd', b'd', high);
        self.range(hex, b'D', b'D', high);
        self.range(high, b'0', b'7', two);
        for (start, end) in [(three, two), (two, one), (one, to)] {
            for (low, high) in [(b'0', b'9'), (b'a', b'f'), (b'A', b'F')] {
                self.range(start, low, high, end);
            }
        }
        self.wide_char(from, to)
    }

    /// One UTF-8 character beyond ASCII (Unicode 16, table 3-7).
    fn wide_char(&mut self, from: Node, to: Node) -> Result<(), ConstraintError> {
        let (last, two) = (self.state()?, self.state()?);
        self.range(last, 0x80, 0xBF, to);
        self.range(two, 0x80, 0xBF, last);
        self.range(from, 0xC2, 0xDF, last);
        self.range(from, 0xE1, 0xEC, two);
        self.range(from, 0xEE, 0xEF, two);
        let three = self.byte(from, 0xF1, 0xF3)?;
        self.range(three, 0x80, 0xBF, two);
        for (lead, low, high, next) in
            [(0xE0, 0xA0, 0xBF, last), (0xED, 0x80, 0x9F, last), (0xF0, 0x90, 0xBF, two), (0xF4, 0x80, 0x8F, two)]
        {
            let second = self.byte(from, lead, lead)?;
            self.range(second, low, high, next);
        }
        Ok(())
    }

    /// A quoted string of `min` to `max` characters; without a maximum of any length.
    pub(super) fn string(&mut self, from: Node, min: usize, max: Option<usize>) -> Piece {
        let mut here = self.byte(from, b'"', b'"')?;
        for _ in 0..min {
            let next = self.state()?;
            self.string_char(here, next)?;
            here = next;
        }
        let end = self.state()?;
        match max {
            None => {
                let around = self.state()?;
                self.join(here, around);
                self.string_char(around, around)?;
                self.range(around, b'"', b'"', end);
            }
            Some(max) => {
                for _ in min..max {
                    self.range(here, b'"', b'"', end);
                    let next = self.state()?;
                    self.string_char(here, next)?;
                    here = next;
                }
                self.range(here, b'"', b'"', end);
            }
        }
        Ok(end)
    }

    /// A quoted string whose content is in a language over UTF-8. Characters that have to be escaped are written in their short form;
    /// control characters without one cannot come out.
    pub(super) fn string_of(&mut self, from: Node, content: &ByteDfa) -> Piece {
        const ESCAPES: [(u8, u8); 7] =
            [(b'"', b'"'), (b'\\', b'\\'), (8, b'b'), (12, b'f'), (b'\n', b'n'), (b'\r', b'r'), (b'\t', b't')];
        let open = self.byte(from, b'"', b'"')?;
        let nodes = (0..content.states()).map(|_| self.state()).collect::<Result<Vec<Node>, _>>()?;
        self.join(open, nodes[ByteDfa::START as usize]);
        let end = self.state()?;
        for (state, &node) in nodes.iter().enumerate() {
            let state = state as u32;
            if content.is_accepting(state) {
                self.range(node, b'"', b'"', end);
            }
            let plain = (0x20..=255_u8).filter(|byte| !matches!(byte, b'"' | b'\\' | 0x7F));
            for byte in plain {
                if let Some(target) = content.next(state, byte) {
                    self.range(node, byte, byte, nodes[target as usize]);
                }
            }
            let targets: Vec<(u8, u32)> =
                ESCAPES.iter().filter_map(|&(byte, name)| Some((name, content.next(state, byte)?))).collect();
            if !targets.is_empty() {
                let escape = self.byte(node, b'\\', b'\\')?;
                for (name, target) in targets {
                    self.range(escape, name, name, nodes[target as usize]);
                }
            }
        }
        Ok(end)
    }

    /// A whole number without a leading zero, of at most [`DIGITS_MAX`] digits.
    pub(super) fn integer(&mut self, from: Node) -> Piece {
        let signed = self.state()?;
        self.join(from, signed);
        self.range(from, b'-', b'-', signed);
        let zero = self.byte(signed, b'0', b'0')?;
        let first = self.byte(signed, b'1', b'9')?;
        let rest = self.repeat(first, b'0', b'9', 0, DIGITS_MAX - 1)?;
        self.join(zero, rest);
        Ok(rest)
    }

    /// A point and digits.
    pub(super) fn fraction(&mut self, from: Node) -> Piece {
        let point = self.byte(from, b'.', b'.')?;
        self.repeat(point, b'0', b'9', 1, FRACTION_DIGITS_MAX)
    }

    /// A number: whole part, perhaps a fraction, perhaps an exponent of at most two digits, which every double can hold.
    pub(super) fn number(&mut self, from: Node) -> Piece {
        let whole = self.integer(from)?;
        let fraction = self.fraction(whole)?;
        let mantissa = self.state()?;
        self.join(whole, mantissa);
        self.join(fraction, mantissa);
        let signed = self.state()?;
        let marked = self.state()?;
        for exponent in *b"eE" {
            self.range(mantissa, exponent, exponent, marked);
        }
        self.join(marked, signed);
        self.range(marked, b'-', b'-', signed);
        self.range(marked, b'+', b'+', signed);
        let exponent = self.repeat(signed, b'0', b'9', 1, 2)?;
        let end = self.state()?;
        self.join(mantissa, end);
        self.join(exponent, end);
        Ok(end)
    }

    /// The decimal whole numbers from `low` to `high`, without leading zeros.
    pub(super) fn whole_between(&mut self, from: Node, low: u64, high: u64) -> Result<Option<Node>, ConstraintError> {
        let mut ends = Vec::new();
        let mut low = low;
        // One stretch for each number of digits.
        while low <= high {
            let digits = low.max(1).ilog10() + 1;
            let top = 10_u64.checked_pow(digits).map_or(u64::MAX, |next| next - 1).min(high);
            let end = self.state()?;
            self.digits_between(from, low.to_string().as_bytes(), top.to_string().as_bytes(), end)?;
            ends.push(Some(end));
            match top.checked_add(1) {
                Some(next) => low = next,
                None => break,
            }
        }
        self.any_of(ends)
    }

    /// Digit strings between two of the same length.
    fn digits_between(&mut self, from: Node, low: &[u8], high: &[u8], end: Node) -> Result<(), ConstraintError> {
        let (Some((&l, low_rest)), Some((&h, high_rest))) = (low.split_first(), high.split_first()) else {
            self.join(from, end);
            return Ok(());
        };
        if low.iter().all(|&digit| digit == b'0') && high.iter().all(|&digit| digit == b'9') {
            let rest = self.repeat(from, b'0', b'9', low.len(), low.len())?;
            self.join(rest, end);
            return Ok(());
        }
        if l == h {
            let next = self.byte(from, l, l)?;
            return self.digits_between(next, low_rest, high_rest, end);
        }
        let lower = self.byte(from, l, l)?;
        self.digits_between(lower, low_rest, &vec![b'9'; low_rest.len()], end)?;
        let upper = self.byte(from, h, h)?;
        self.digits_between(upper, &vec![b'0'; high_rest.len()], high_rest, end)?;
        if l + 1 < h {
            let free = self.byte(from, l + 1, h - 1)?;
            let rest = self.repeat(free, b'0', b'9', low_rest.len(), low_rest.len())?;
            self.join(rest, end);
        }
        Ok(())
    }
}
