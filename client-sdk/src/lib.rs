//! Async and blocking Rust client.
