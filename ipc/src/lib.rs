//! The language of the socket: JSON-RPC 2.0, one JSON object a line. Knows nothing of sockets, actors or the store.
//!
//! Everything on the wire is a type here, and `PROTOCOL.md` is generated from these types.
//!
//! ```
//! use mneme_ipc::{Call, LineDecoder, methods};
//! let mut decoder = LineDecoder::new(1 << 20);
//! decoder.push(br#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}"#).unwrap();
//! decoder.push(b"\n").unwrap();
//! let frame = decoder.next_line().unwrap();
//! let request = mneme_ipc::RequestFrame::parse(&frame).unwrap();
//! assert!(matches!(Call::parse(&request).unwrap(), Call::Ping(_)));
//! # let _ = methods::DOCS;
//! ```
//!
//! Reading order: [`frame`], [`envelope`], [`error`], [`types`], [`methods`], [`doc`].

pub mod doc;
pub mod envelope;
pub mod error;
pub mod frame;
pub mod methods;
pub mod types;

pub use envelope::{Notification, RequestFrame, RequestId, ResponseFrame, ServerFrame};
pub use error::{ErrorBody, ErrorData, ErrorKind};
pub use frame::{FRAME_BYTES_MAX_DEFAULT, FrameError, LineDecoder};
pub use methods::{Call, Method};

/// The version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version that this build still speaks.
pub const PROTOCOL_VERSION_MIN: u32 = 1;
