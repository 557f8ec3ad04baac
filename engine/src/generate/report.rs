//! Turns filled holes into the answer: texts, and how every token came about.

use std::sync::OnceLock;

use mneme_diffusion::uncertainty::ResidualTable;
use mneme_engine_api::TokenTrace;
use mneme_text::ControlText;

use crate::error::Result;
use crate::generate::ar::Fill;
use crate::generate::plan::PlanPiece;
use crate::generator::Generator;

/// Expected residual `1 - p` of the token that is there, by mask rate in equal steps from 0 to 1. Printed by
/// `mneme-engine eval --residuals`; it belongs to the model without adapter zero.
const EXPECTED_RESIDUALS: [f32; 2] = [0.5, 0.9];

/// The table that surprise is measured against.
pub fn residuals() -> &'static ResidualTable {
    static TABLE: OnceLock<ResidualTable> = OnceLock::new();
    TABLE.get_or_init(|| ResidualTable::new(EXPECTED_RESIDUALS.to_vec()).expect("the table is a valid constant"))
}

/// The text of one fill, and a trace for each of its tokens. Bytes of an unfinished character go to the token that completes it.
pub fn traces(fill: &Fill, generator: &Generator) -> Result<(String, Vec<TokenTrace>)> {
    let mut stream = generator.tokenizer.decode_stream(ControlText::Hide);
    let (mut text, mut traces) = (String::new(), Vec::with_capacity(fill.tokens.len()));
    for decided in &fill.tokens {
        let piece = stream.push(decided.token).map_err(|error| mneme_engine_api::EngineError::Internal {
            reason: format!("token cannot be decoded: {error}"),
        })?;
        text.push_str(&piece);
        traces.push(TokenTrace {
            text: piece,
            confidence: decided.confidence,
            ambiguity: decided.entropy,
            surprise: residuals().surprise(1.0 - decided.confidence, decided.mask_rate),
            step: decided.step,
        });
    }
    let rest = stream.finish();
    if let Some(last) = traces.last_mut() {
        last.text.push_str(&rest);
    }
    text.push_str(&rest);
    Ok((text, traces))
}

/// The whole canvas with its fills.
pub fn whole(pieces: &[PlanPiece], fills: &[String]) -> String {
    let mut fills = fills.iter();
    let piece = |piece: &PlanPiece| match piece {
        PlanPiece::Text { text, .. } => text.clone(),
        PlanPiece::Hole { .. } => fills.next().cloned().unwrap_or_default(),
    };
    pieces.iter().map(piece).collect()
}
