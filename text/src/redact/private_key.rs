//! Private keys in armour: from the opening line to the closing one.

use super::{Finding, SecretKind};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// `-----BEGIN ENCRYPTED PRIVATE KEY BLOCK-----` and its like are shorter (bytes).
const LABEL_BYTES_MAX: usize = 64;

pub(super) fn find(text: &str, findings: &mut Vec<Finding>) {
    let mut from = 0;
    // Remembered, so that many openings without a closing do not each search to the end.
    let mut closings_left = true;
    while let Some(start) = text[from..].find(BEGIN).map(|at| from + at) {
        let label_start = start + BEGIN.len();
        let Some(label_end) = label_end(text, label_start) else {
            from = label_start;
            continue;
        };
        let body_start = label_end + DASHES.len();
        if !text[label_start..label_end].contains("PRIVATE KEY") {
            from = body_start;
            continue;
        }
        let closing = if closings_left { text[body_start..].find(END).map(|at| body_start + at) } else { None };
        closings_left &= closing.is_some();
        let end = match closing {
            Some(closing) => label_end_or(text, closing + END.len()),
            None => unclosed_body_end(text, body_start),
        };
        findings.push(Finding { kind: SecretKind::PrivateKey, range: start..end });
        from = end;
    }
}

/// Where the label that starts at `start` ends, if five dashes close it soon enough.
fn label_end(text: &str, start: usize) -> Option<usize> {
    let limit = text.len().min(start + LABEL_BYTES_MAX);
    let bytes = text.as_bytes().get(start..limit)?;
    bytes.windows(DASHES.len()).position(|window| window == DASHES.as_bytes()).map(|at| start + at)
}

fn label_end_or(text: &str, start: usize) -> usize {
    label_end(text, start).map_or(start, |end| end + DASHES.len())
}

/// A key cut short: everything that can belong to one, which prose cannot because its words are too short.
fn unclosed_body_end(text: &str, start: usize) -> usize {
    let mut end = start;
    for piece in text[start..].split_inclusive(|character: char| character.is_whitespace() || character == '\\') {
        // After a backslash comes the `n` of an escaped line break.
        let body = piece.trim_end_matches(|character: char| character.is_whitespace() || character == '\\');
        let belongs = body.len() < 2
            || (body.len() >= 16 && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-:".contains(&byte)));
        if !belongs {
            break;
        }
        end += piece.len();
    }
    start + text[start..end].trim_end().len()
}
