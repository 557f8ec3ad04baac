//! Configuration: files, environment and flags become one validated value.
