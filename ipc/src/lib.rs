//! The socket protocol: frames, requests, responses.
