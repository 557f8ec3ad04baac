//! The language between daemon and engine process: length-prefixed postcard frames over a Unix socket pair.
//!
//! Both ends are builds of this crate, but the versions may differ after an upgrade, and a dying process writes garbage: so
//! the version is checked first, every length is checked before allocation, and what cannot be read ends the connection.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::EngineError;
use crate::types::{CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome};

/// The version of this language. Both ends must speak the same.
pub const WIRE_VERSION: u32 = 2;
/// Frames larger than this are refused before allocation (bytes): 256 texts of the largest size fit.
pub const WIRE_FRAME_BYTES_MAX: u32 = 32 << 20;
/// Opens the handshake, so that a program that is no engine is recognised at once.
pub const WIRE_MAGIC: [u8; 8] = *b"MNEMEENG";

/// A frame that cannot be read or written; the connection is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The other end closed between two frames.
    #[error("connection was closed")]
    Closed,
    /// Reading or writing failed.
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    /// A length is over the limit.
    #[error("frame announces {bytes} bytes, at most {WIRE_FRAME_BYTES_MAX} are allowed")]
    TooLong {
        /// The announced length.
        bytes: u64,
    },
    /// A frame is not what it should be.
    #[error("frame cannot be decoded")]
    Decode(#[from] postcard::Error),
}

/// The first frame of each end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`WIRE_MAGIC`].
    pub magic: [u8; 8],
    /// [`WIRE_VERSION`].
    pub version: u32,
}

impl Greeting {
    /// The greeting of this build.
    pub const OURS: Self = Self { magic: WIRE_MAGIC, version: WIRE_VERSION };
}

/// A frame to the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToEngine {
    /// Names the call; replies carry it.
    pub call: u64,
    /// What to do.
    pub body: Ask,
}

/// What the engine is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ask {
    /// What are you?
    Info,
    /// Are you there? Answered by the reader itself.
    Ping,
    /// Embed texts within a time (milliseconds).
    Embed {
        /// The texts.
        texts: Vec<String>,
        /// What for.
        purpose: EmbedPurpose,
        /// The time.
        within_ms: u64,
    },
    /// Fill a canvas within a time (milliseconds).
    Generate {
        /// The canvas and settings.
        request: Box<GenerateRequest>,
        /// The time.
        within_ms: u64,
    },
    /// Score texts within a time (milliseconds).
    Score {
        /// The texts.
        items: Vec<ScoreItem>,
        /// The time.
        within_ms: u64,
    },
    /// Stop that call at its next step.
    Cancel {
        /// Which.
        call: u64,
    },
}

/// Where a call waits in the engine, by who waits for it. Calls of one lane run one after the other, those of different lanes side
/// by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Vectors of questions: somebody waits for them.
    Questions,
    /// Vectors of what is stored, and scores.
    Notes,
    /// Texts.
    Generations,
}

impl Ask {
    /// The lane that a call waits on; `None` for what the reader answers itself.
    pub fn lane(&self) -> Option<Lane> {
        match self {
            Self::Embed { purpose: EmbedPurpose::Query, .. } => Some(Lane::Questions),
            Self::Embed { .. } | Self::Score { .. } => Some(Lane::Notes),
            Self::Generate { .. } => Some(Lane::Generations),
            Self::Info | Self::Ping | Self::Cancel { .. } => None,
        }
    }
}

/// A frame from the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FromEngine {
    /// The call that it belongs to.
    pub call: u64,
    /// What it says.
    pub body: Tell,
}

/// What the engine says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Tell {
    /// What it is.
    Info(EngineInfo),
    /// It is there.
    Pong,
    /// Vectors, in the order of the texts.
    Embedded(Vec<Vec<f32>>),
    /// The canvas so far; more follows.
    Canvas(CanvasEvent),
    /// The canvas is filled.
    Generated(Box<Generation>),
    /// Scores, in the order of the texts.
    Scored(Vec<ScoreOutcome>),
    /// The call failed.
    Failed(EngineError),
}

/// Writes one frame and flushes.
pub fn write_frame(writer: &mut impl Write, value: &impl Serialize) -> Result<(), WireError> {
    // Four bytes are left for the length, so that a frame goes out in one write.
    let mut bytes = postcard::to_extend(value, vec![0_u8; 4])?;
    let body_bytes = bytes.len() as u64 - 4;
    if body_bytes > u64::from(WIRE_FRAME_BYTES_MAX) {
        return Err(WireError::TooLong { bytes: body_bytes });
    }
    bytes[..4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    writer.write_all(&bytes)?;
    writer.flush()?;
    Ok(())
}

/// Reads one frame. [`WireError::Closed`] when the stream ended between frames.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> Result<T, WireError> {
    let mut length = [0_u8; 4];
    match reader.read(&mut length)? {
        0 => return Err(WireError::Closed),
        n => reader.read_exact(&mut length[n..])?,
    }
    let bytes = u32::from_le_bytes(length);
    if bytes > WIRE_FRAME_BYTES_MAX {
        return Err(WireError::TooLong { bytes: u64::from(bytes) });
    }
    // `take` grows the buffer with what really arrives: a liar who announces 32 MiB and sends ten bytes costs ten bytes.
    let mut body = Vec::new();
    reader.take(u64::from(bytes)).read_to_end(&mut body)?;
    if body.len() < bytes as usize {
        return Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(postcard::from_bytes(&body)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let frame = ToEngine {
            call: 7,
            body: Ask::Generate { request: Box::new(GenerateRequest::continuation("tea is", 8)), within_ms: 100 },
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &frame).unwrap();
        assert_eq!(read_frame::<ToEngine>(&mut bytes.as_slice()).unwrap(), frame);
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_allocation() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(matches!(read_frame::<FromEngine>(&mut &bytes[..]), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn a_truncated_frame_is_an_error_and_an_empty_stream_is_closed() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &FromEngine { call: 1, body: Tell::Pong }).unwrap();
        for cut in 1..bytes.len() {
            assert!(matches!(read_frame::<FromEngine>(&mut &bytes[..cut]), Err(WireError::Io(_))));
        }
        assert!(matches!(read_frame::<FromEngine>(&mut &bytes[..0]), Err(WireError::Closed)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
            bytes.extend(&body);
            let _ = read_frame::<FromEngine>(&mut bytes.as_slice());
            let _ = read_frame::<ToEngine>(&mut bytes.as_slice());
            let _ = read_frame::<ToEngine>(&mut body.as_slice());
        }
    }
}
