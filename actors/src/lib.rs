//! Long-lived actors and their supervision.
