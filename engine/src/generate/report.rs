//! Turns filled holes into the answer: texts, and how every token came about.

use std::sync::OnceLock;

use mneme_diffusion::uncertainty::ResidualTable;
use mneme_engine_api::TokenTrace;
use mneme_text::ControlText;

use crate::error::Result;
use crate::generate::ar::Fill;
use crate::generate::plan::PlanPiece;
use crate::generate::session::Decided;
use crate::generator::Generator;

/// Mean residual `1 - p` of the token that is there, read left to right. Printed by `mneme-engine eval --residuals`.
const CAUSAL_RESIDUAL: f32 = 0.727;
/// The same in blocks of 8, by mask rate in equal bins from 0 to 1, of the model without adapter zero.
const BLOCK_RESIDUALS: [f32; 8] = [0.872, 0.872, 0.872, 0.924, 0.921, 0.921, 0.932, 0.939];

/// The table that surprise is measured against.
pub fn residuals() -> &'static ResidualTable {
    static TABLE: OnceLock<ResidualTable> = OnceLock::new();
    TABLE.get_or_init(|| ResidualTable::new(BLOCK_RESIDUALS.to_vec()).expect("the table is a valid constant"))
}

/// The residual of a token over the one expected of its mode and mask rate: 1 in the mean on ordinary text.
fn surprise(decided: &Decided) -> f32 {
    let residual = 1.0 - decided.confidence;
    if decided.mask_rate > 0.0 { residuals().surprise(residual, decided.mask_rate) } else { residual / CAUSAL_RESIDUAL }
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
            surprise: surprise(decided),
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

/// The fills without the spaces that belong to the text before them.
pub fn without_borrowed_space(pieces: &[PlanPiece], fills: Vec<String>) -> Vec<String> {
    let spaced = pieces.iter().filter_map(|piece| match piece {
        PlanPiece::Hole { spaced, .. } => Some(*spaced),
        PlanPiece::Text { .. } => None,
    });
    let own = |(fill, spaced): (String, bool)| match fill.strip_prefix(' ') {
        Some(bare) if spaced => bare.to_owned(),
        _ => fill,
    };
    fills.into_iter().zip(spaced).map(own).collect()
}
