//! Namespaces: the drawers that memories lie in. A recall never crosses one unless it is asked to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A namespace is at most this long (bytes): it is part of every key.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// A namespace that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// Nothing was given.
    #[error("namespace is empty")]
    Empty,
    /// The text is too long.
    #[error("namespace has {bytes} bytes, at most {NAMESPACE_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character is not allowed.
    #[error("namespace contains {character:?}, allowed are letters, digits and . _ - : @ between single slashes")]
    Character {
        /// The first offender.
        character: char,
    },
}

/// A slash-separated path such as `work/notes`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The namespace that is used where none is named.
    pub fn default_namespace() -> Self {
        Self(Arc::from("default"))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::default_namespace()
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;
    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        if text.is_empty() {
            return Err(NamespaceError::Empty);
        }
        if text.len() > NAMESPACE_BYTES_MAX {
            return Err(NamespaceError::TooLong { bytes: text.len() });
        }
        let allowed = |c: &char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '@' | '/');
        if let Some(character) = text.chars().find(|c| !allowed(c)) {
            return Err(NamespaceError::Character { character });
        }
        // Empty and dot-only parts are refused: a namespace may become a folder name in an export.
        if text.split('/').any(|part| part.is_empty() || part.chars().all(|c| c == '.')) {
            return Err(NamespaceError::Character { character: if text.contains("..") { '.' } else { '/' } });
        }
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.0)
    }
}

impl Serialize for Namespace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_paths_and_letters_of_any_script() {
        for text in ["default", "work/notes", "user:anna@home", "заметки", "a.b-c_d"] {
            assert_eq!(text.parse::<Namespace>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_empty_long_and_path_like_tricks() {
        for text in ["", "a b", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", "a\nb"] {
            assert!(text.parse::<Namespace>().is_err(), "{text:?}");
        }
        assert!("x".repeat(NAMESPACE_BYTES_MAX + 1).parse::<Namespace>().is_err());
    }
}
