//! Constraints on the text of a hole: the automaton over this model's tokens, and its errors in the engine's words.

use std::sync::Arc;

use mneme_diffusion::constraint::{ByteDfa, ConstraintError, Limits, TokenAutomaton, Vocabulary};
use mneme_engine_api::{Constraint, EngineError};

use crate::error::Result;
use crate::generator::Generator;

/// What a hole's text must be, over the tokens of the generator. Its ending token pads a text that is shorter than its hole.
pub type Automaton = TokenAutomaton;

/// Compiles a constraint.
pub fn compile(constraint: &Constraint, generator: &Generator) -> Result<Automaton> {
    let limits = Limits::default();
    let dfa = match constraint {
        Constraint::Regex(pattern) => ByteDfa::regex(pattern, limits),
        Constraint::JsonSchema(schema) => ByteDfa::json_schema(schema, limits),
        other => {
            let feature = format!("constraint {other:?}");
            return Err(EngineError::Unsupported { engine: crate::NAME.into(), feature }.into());
        }
    };
    let vocabulary = generator.byte_vocabulary()?;
    let ending = Some(generator.special.turn_end);
    let automaton = dfa.and_then(|dfa| TokenAutomaton::new(dfa, vocabulary, ending, limits));
    Ok(automaton.map_err(refused)?)
}

/// The bytes of every token of the generator.
pub(crate) fn byte_vocabulary(
    tokens: usize,
    bytes: impl Fn(u32) -> Option<Vec<u8>>,
) -> std::result::Result<Arc<Vocabulary>, EngineError> {
    Vocabulary::new((0..tokens as u32).map(bytes)).map(Arc::new).map_err(refused)
}

/// Says whether the constraint is at fault, or the room it was given.
pub(crate) fn refused(error: ConstraintError) -> EngineError {
    match error {
        ConstraintError::Infeasible { .. } | ConstraintError::Empty => {
            EngineError::Unsatisfiable { problem: error.to_string() }
        }
        ConstraintError::RowLength { .. } | ConstraintError::Vocabulary { .. } => {
            EngineError::Internal { reason: error.to_string() }
        }
        _ => EngineError::invalid("constraint", error.to_string()),
    }
}
