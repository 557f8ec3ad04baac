//! Numbers between bounds.

use super::super::json::DIGITS_MAX;
use super::{Compiler, ConstraintError, Json, Node, Piece};

/// The largest whole number that is written (its digits are [`DIGITS_MAX`] nines).
const WHOLE_MAX: i64 = 10_i64.pow(DIGITS_MAX as u32) - 1;

impl<'a> Compiler<'a> {
    /// An integer, or a number, with `minimum`, `maximum` and their exclusive forms. Bounded numbers are written without an exponent, and
    /// those with a fraction keep their whole part strictly inside the bounds.
    pub(super) fn numeric(&mut self, from: Node, integer: bool, schema: &'a Json, place: &str) -> Piece {
        let (low, high) = (Self::bound(schema, "minimum", place)?, Self::bound(schema, "maximum", place)?);
        let (above, below) =
            (Self::bound(schema, "exclusiveMinimum", place)?, Self::bound(schema, "exclusiveMaximum", place)?);
        if low.or(high).or(above).or(below).is_none() {
            return if integer { self.nfa.integer(from).map(Some) } else { self.nfa.number(from).map(Some) };
        }
        // The least and the largest whole number within.
        let clip = |x: f64| x.clamp(-(WHOLE_MAX as f64), WHOLE_MAX as f64) as i64;
        let mut least = low.map_or(-WHOLE_MAX, |x| clip(x.ceil()));
        let mut most = high.map_or(WHOLE_MAX, |x| clip(x.floor()));
        if let Some(above) = above {
            least = least.max(clip(above.floor() + 1.0));
        }
        if let Some(below) = below {
            most = most.min(clip(below.ceil() - 1.0));
        }
        // Bounds beyond what is written leave nothing rather than a wrong number.
        let outside = [low, above].into_iter().flatten().any(|x| x > WHOLE_MAX as f64)
            || [high, below].into_iter().flatten().any(|x| x < -(WHOLE_MAX as f64));
        if outside {
            return Ok(None);
        }
        let mut ends = Vec::new();
        if least <= most {
            if most >= 0 {
                ends.push(self.nfa.whole_between(from, least.max(0) as u64, most as u64)?);
            }
            if least < 0 {
                let minus = self.nfa.byte(from, b'-', b'-')?;
                ends.push(self.nfa.whole_between(minus, (-most).max(1) as u64, least.unsigned_abs())?);
            }
        }
        if !integer {
            // k.ddd lies in [k, k + 1), -k.ddd in (-(k + 1), -k]; least and most lie within the bounds, so every k.ddd with
            // least <= k and k + 1 <= most does.
            if most >= 1 && most > least {
                let whole = self.nfa.whole_between(from, least.max(0) as u64, (most - 1) as u64)?;
                if let Some(whole) = whole {
                    ends.push(Some(self.nfa.fraction(whole)?));
                }
            }
            if least <= -1 && most > least {
                let minus = self.nfa.byte(from, b'-', b'-')?;
                let whole = self.nfa.whole_between(minus, (-most).max(0) as u64, (-least - 1) as u64)?;
                if let Some(whole) = whole {
                    ends.push(Some(self.nfa.fraction(whole)?));
                }
            }
        }
        let possible = low.is_none_or(|low| high.is_none_or(|high| low < high));
        match self.nfa.any_of(ends)? {
            None if !integer && possible => {
                Self::unsupported(place, "minimum", "bounds of a number without a whole number between them")
            }
            piece => Ok(piece),
        }
    }

    fn bound(schema: &Json, keyword: &str, place: &str) -> Result<Option<f64>, ConstraintError> {
        match schema.get(keyword) {
            None => Ok(None),
            Some(Json::Number(number)) => match number.as_f64() {
                Some(bound) if bound.is_finite() => Ok(Some(bound)),
                _ => Self::bad(place, format!("{keyword} is a number")),
            },
            // Draft 4 had exclusiveMinimum as a flag.
            Some(_) => Self::bad(place, format!("{keyword} is a number")),
        }
    }
}
