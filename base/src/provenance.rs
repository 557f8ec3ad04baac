//! Where a memory came from, and how far it is trusted. Provenance is written once and never changed.

use serde::{Deserialize, Serialize};

/// How far what a memory says is trusted.
///
/// The order is the order of trust: `Untrusted < Reported < Observed < User`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrustTier {
    /// From outside (web pages, mail, tool output): kept in quarantine until corroborated, always returned as labelled data.
    Untrusted,
    /// Told by an agent on somebody's behalf.
    #[default]
    Reported,
    /// Read by Mneme itself, such as a watched file.
    Observed,
    /// Written or confirmed by the user.
    User,
}

/// The place inside a source that a memory was read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceLocation {
    /// The file, as an absolute path or URI.
    pub path: String,
    /// First line, from 1.
    pub line_first: u32,
    /// Last line, inclusive.
    pub line_last: u32,
}

/// Who brought a memory, from where, and how far it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The client program, such as `cli`, `mcp:claude-code` or `watch`.
    pub client: String,
    /// The client's session or conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The source that can be revoked as a whole, such as `user`, `file:/home/anna/notes` or `web:example.org`.
    pub source: String,
    /// How far it is trusted.
    pub trust: TrustTier,
    /// The place inside the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<SourceLocation>,
}

impl Provenance {
    /// Provenance of something that the user said through a client.
    pub fn user(client: impl Into<String>) -> Self {
        Self { client: client.into(), session: None, source: "user".into(), trust: TrustTier::User, location: None }
    }
}
