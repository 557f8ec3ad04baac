//! The Rust client of Mneme: async, and blocking for programs without a runtime. Knows nothing of the store or the engine.
//!
//! ```no_run
//! use mneme_client_sdk::blocking::Client;
//! use mneme_ipc::{methods, types::{RecallParams, RememberParams}};
//!
//! let client = Client::connect(mneme_client_sdk::ClientOptions::new("my-agent"))?;
//! client.call::<methods::Remember>(RememberParams { text: "tea is at four".into(), ..Default::default() })?;
//! let recall = client.call::<methods::Recall>(RecallParams { query: "when is tea?".into(), ..Default::default() })?;
//! println!("{}", recall.hits[0].memory.text);
//! # Ok::<(), mneme_client_sdk::ClientError>(())
//! ```
//!
//! A lost connection is opened again and the request is sent again under the same `op_id`, so that a change is made once
//! however often it is sent. Reading order: [`options`], [`error`], [`client`], [`blocking`].

pub mod blocking;
pub mod client;
mod connection;
pub mod error;
pub mod options;

pub use client::{CallOptions, CancelToken, Client};
pub use error::ClientError;
pub use mneme_ipc as ipc;
pub use options::{ClientOptions, default_socket};
