//! Identifiers: what names a memory, an operation, a task, an adapter, a place in the journal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::{Builder, Uuid};

use crate::time::Timestamp;

/// An identifier that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is not of the identifier's form.
    #[error("{kind} {text:?} is not {expected}")]
    Malformed {
        /// Which identifier was expected.
        kind: &'static str,
        /// What was given, cut to 64 characters.
        text: String,
        /// The form that is accepted.
        expected: &'static str,
    },
}

impl IdError {
    fn malformed(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self::Malformed { kind, text: text.chars().take(64).collect(), expected }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a UUIDv7 for this moment; ids made later sort later (to the millisecond).
            pub fn generate(now: Timestamp) -> Self {
                let random = *Uuid::now_v7().as_bytes();
                let mut tail = [0_u8; 10];
                tail.copy_from_slice(&random[6..16]);
                Self(Builder::from_unix_timestamp_millis(now.as_millis().max(0) as u64, &tail).into_uuid())
            }

            /// Wraps sixteen bytes that were stored by [`Self::as_bytes`].
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The sixteen bytes, big-endian: their order is the order of creation.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::malformed($kind, text, "a UUID"))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// Names one memory, for ever.
    MemoryId,
    "memory id"
);
uuid_id!(
    /// Names one long-running task of the daemon.
    TaskId,
    "task id"
);
uuid_id!(
    /// Names one adapter (skill card).
    AdapterId,
    "adapter id"
);
uuid_id!(
    /// Names one run of the daemon: changes at every start.
    BootId,
    "boot id"
);

/// Names one operation of a client: the same id sent again is the same operation, not a second one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(u128);

impl OpId {
    /// Wraps a client's 128-bit number.
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// Draws a fresh id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().as_u128())
    }

    /// The sixteen bytes, big-endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpId({self})")
    }
}

impl FromStr for OpId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::malformed("op_id", text, "32 hexadecimal digits or a UUID");
        if text.len() == 32 {
            u128::from_str_radix(text, 16).map(Self).map_err(|_| error())
        } else {
            Uuid::try_parse(text).map(|uuid| Self(uuid.as_u128())).map_err(|_| error())
        }
    }
}

impl Serialize for OpId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OpId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A place in the journal (log sequence number): every accepted change has one, and they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The place before the first change.
    pub const ZERO: Self = Self(0);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// BLAKE3 of some content: equal hashes mean equal content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Hashes bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Hashes what a reader gives, to its end, without holding it.
    pub fn of_reader(reader: impl std::io::Read) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(reader)?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// Wraps a stored hash.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::malformed("content hash", text, "64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        let mut bytes = [0_u8; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_later_sort_later() {
        let early = MemoryId::generate(Timestamp::from_millis(1_000));
        let late = MemoryId::generate(Timestamp::from_millis(2_000));
        assert!(early < late && early.as_bytes() < late.as_bytes());
    }

    #[test]
    fn ids_made_in_the_same_millisecond_differ() {
        let now = Timestamp::from_millis(1_000);
        assert_ne!(MemoryId::generate(now), MemoryId::generate(now));
    }

    #[test]
    fn an_op_id_reads_both_hex_and_uuid() {
        let hex: OpId = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        let uuid: OpId = "00010203-0405-0607-0809-0a0b0c0d0e0f".parse().unwrap();
        assert_eq!(hex, uuid);
        assert_eq!(hex, hex.to_string().parse().unwrap());
    }

    #[test]
    fn malformed_ids_name_what_was_given() {
        let error = "xyz".parse::<MemoryId>().unwrap_err().to_string();
        assert_eq!(error, "memory id \"xyz\" is not a UUID");
        assert!("é".repeat(32).parse::<ContentHash>().is_err());
        assert!("+0".repeat(16).parse::<OpId>().is_err());
    }

    #[test]
    fn a_content_hash_survives_its_text_form() {
        let hash = ContentHash::of(b"a memory");
        assert_eq!(ContentHash::of_reader(&b"a memory"[..]).unwrap(), hash);
        assert_eq!(hash, hash.to_string().parse().unwrap());
    }
}
