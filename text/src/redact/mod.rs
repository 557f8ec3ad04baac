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
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for finding in &findings {
        out.push_str(&text[copied..finding.range.start]);
        out.push_str("[redacted:");
        out.push_str(finding.kind.as_str());
        out.push(']');
        copied = finding.range.end;
    }
    out.push_str(&text[copied..]);
    Redacted { text: Cow::Owned(out), findings }
}

/// Finds the secrets in `text`, in order, without overlap, without changing anything.
pub fn find(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    private_key::find(text, &mut findings);
    rules::find(text, &mut findings);
    card::find(text, &mut findings);
    merge(findings)
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
