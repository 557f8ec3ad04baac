//! Errors of Rust as exceptions of Python: the message is the whole chain, outermost first.

use pyo3::PyErr;

pyo3::create_exception!(
    mneme_native,
    NativeError,
    pyo3::exceptions::PyValueError,
    "Input that was refused: what was attempted, the value and the bound."
);

/// The exception for a refusal.
pub(crate) fn refused(error: impl std::error::Error) -> PyErr {
    NativeError::new_err(chain(&error))
}

/// The exception for a text.
pub(crate) fn refused_because(reason: impl Into<String>) -> PyErr {
    NativeError::new_err(reason.into())
}

/// The messages of an error and of its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
