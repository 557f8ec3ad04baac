//! Takes secrets out of text before it is stored: keys, tokens, passwords, private keys, card numbers.
//!
//! ```
//! use mneme_text::redact::{SecretKind, redact};
//! let redacted = redact("export DB=postgres://app:hunter2@db/prod");
//! assert_eq!(redacted.text, "export DB=postgres://app:[redacted:password]@db/prod");
//! assert_eq!(redacted.findings[0].kind, SecretKind::Password);
//! ```
//!
//! Time is linear in the text: a literal scan picks the rules that can match at all, every rule is a finite automaton, and
//! repetition is bounded. A rule prefers to miss an odd secret over damaging prose, code, hashes or UUIDs; what is
//! written next to a telling word (`password = ...`) is judged less strictly than what stands alone.
//!
//! This is a safety net, not a vault: a secret in a shape that no rule knows passes.

mod card;
mod checks;
mod private_key;
mod rules;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// What kind of secret was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SecretKind {
    /// A PEM, OpenSSH or PGP private key.
    PrivateKey,
    /// A key in the known shape of a provider (AWS, GitHub, Slack, Stripe, ...).
    ApiKey,
    /// A JSON Web Token.
    Jwt,
    /// A password in a URL, in an assignment or in a sentence.
    Password,
    /// A bearer token or basic credentials of an HTTP header.
    Bearer,
    /// A secret, token or key without a known shape, recognised by the word beside it.
    Token,
    /// A payment card number that passes the Luhn check.
    CreditCard,
}

impl SecretKind {
    /// The word in the replacement `[redacted:...]`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrivateKey => "private_key",
            Self::ApiKey => "api_key",
            Self::Jwt => "jwt",
            Self::Password => "password",
            Self::Bearer => "bearer",
            Self::Token => "token",
            Self::CreditCard => "credit_card",
        }
    }
}

impl fmt::Display for SecretKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A secret found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: SecretKind,
    /// Where it stood in the original text (bytes).
    pub range: Range<usize>,
}

/// What a secret is replaced by: its kind, between these.
const OPEN: &str = "[redacted:";
const CLOSE: &str = "]";
/// How often a text is read for secrets that come into view when others are taken out.
const ROUNDS_MAX: usize = 8;

/// A text without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted<'a> {
    /// The text with each secret replaced by `[redacted:kind]`; borrowed when nothing was found.
    pub text: Cow<'a, str>,
    /// What was taken out, in order, without overlap.
    pub findings: Vec<Finding>,
}

/// Replaces every secret in `text` by `[redacted:kind]`. Redacting a redacted text changes nothing.
pub fn redact(text: &str) -> Redacted<'_> {
    let findings = find(text);
    if findings.is_empty() {
        return Redacted { text: Cow::Borrowed(text), findings };
    }
    Redacted { text: Cow::Owned(replaced(text, &findings)), findings }
}

fn replaced(text: &str, findings: &[Finding]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for finding in findings {
        out.push_str(&text[copied..finding.range.start]);
        out.extend([OPEN, finding.kind.as_str(), CLOSE]);
        copied = finding.range.end;
    }
    out.push_str(&text[copied..]);
    out
}

/// Finds the secrets in `text`, in order, without overlap, without changing anything.
///
/// A secret that is taken out may bring the word before it near to another one, so the rest is read again, until nothing more is
/// found (or [`ROUNDS_MAX`] times, which keeps the time linear).
pub fn find(text: &str) -> Vec<Finding> {
    let mut findings = find_once(text);
    for _ in 1..ROUNDS_MAX {
        if findings.is_empty() {
            break;
        }
        let more = find_once(&replaced(text, &findings));
        let more = more.into_iter().map(|finding| Finding { range: in_original(&findings, finding.range), ..finding });
        let merged = merge(findings.iter().cloned().chain(more).collect());
        if merged == findings {
            break;
        }
        findings = merged;
    }
    findings
}

fn find_once(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    private_key::find(text, &mut findings);
    rules::find(text, &mut findings);
    card::find(text, &mut findings);
    findings.retain(|finding| !in_replacement(text, &finding.range));
    merge(findings)
}

/// Whether a range lies inside of an earlier replacement, `[redacted:kind]`: its words are ours and no secret.
fn in_replacement(text: &str, range: &Range<usize>) -> bool {
    /// The longest replacement (bytes): the search for its start looks no further.
    const LEN_MAX: usize = 32;
    let before = &text.as_bytes()[range.end.saturating_sub(LEN_MAX)..range.end];
    let opens = before.windows(OPEN.len()).rposition(|window| window == OPEN.as_bytes());
    opens.is_some_and(|at| {
        let start = range.end.saturating_sub(LEN_MAX) + at;
        let near = &text.as_bytes()[start..text.len().min(start + LEN_MAX)];
        let closes = near.windows(CLOSE.len()).position(|window| window == CLOSE.as_bytes());
        range.start >= start && closes.is_some_and(|len| range.end <= start + len + CLOSE.len())
    })
}

/// The bytes of the original text that a range of the text with `findings` replaced stands for. A range that reaches into a
/// replacement takes in the whole secret.
fn in_original(findings: &[Finding], range: Range<usize>) -> Range<usize> {
    let mut mapped = range.clone();
    // By how much the text before the replacement at hand has grown (bytes), as two unsigned sums.
    let (mut added, mut removed) = (0, 0);
    for finding in findings {
        let start = finding.range.start + added - removed;
        let len = OPEN.len() + finding.kind.as_str().len() + CLOSE.len();
        if range.start >= start {
            let inside = range.start < start + len;
            mapped.start = if inside { finding.range.start } else { range.start - (start + len) + finding.range.end };
        }
        if range.end > start {
            let inside = range.end < start + len;
            mapped.end = if inside { finding.range.end } else { range.end - (start + len) + finding.range.end };
        }
        added += len;
        removed += finding.range.len();
    }
    mapped
}

/// Where findings overlap, the union is one secret of the kind that is most specific (the order of [`SecretKind`]).
fn merge(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| (finding.range.start, finding.range.end));
    let mut merged: Vec<Finding> = Vec::with_capacity(findings.len());
    for finding in findings {
        match merged.last_mut() {
            Some(last) if finding.range.start < last.range.end => {
                last.range.end = last.range.end.max(finding.range.end);
                last.kind = last.kind.min(finding.kind);
            }
            _ => merged.push(finding),
        }
    }
    merged
}
