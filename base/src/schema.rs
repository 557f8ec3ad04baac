//! JSON Schemas of the nouns, as they look on the wire.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{AdapterId, BootId, ContentHash, Lsn, MemoryId, Namespace, OpId, TaskId, Timestamp, TrustTier};

macro_rules! string_schema {
    ($($name:ident: $format:literal, $description:literal;)*) => {$(
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "format": $format, "description": $description})
            }
        }
    )*};
}

string_schema! {
    MemoryId: "uuid", "Names one memory, for ever.";
    TaskId: "uuid", "Names one long-running task.";
    AdapterId: "uuid", "Names one adapter.";
    BootId: "uuid", "Names one run of the daemon.";
    OpId: "uuid", "128 bits as 32 hexadecimal digits or a UUID.";
    ContentHash: "hex", "BLAKE3, 64 hexadecimal digits.";
    Timestamp: "date-time", "RFC 3339, or a plain date.";
    Namespace: "path", "Letters, digits and `. _ - : @` between single slashes, at most 128 bytes.";
}

impl JsonSchema for Lsn {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Lsn".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": 0, "description": "A place in the journal."})
    }
}

impl JsonSchema for TrustTier {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "TrustTier".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": ["untrusted", "reported", "observed", "user"],
            "description": "How far a memory is trusted, in rising order."})
    }
}
