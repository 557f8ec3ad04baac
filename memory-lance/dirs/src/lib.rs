//! What Lance needs of the crate `dirs`: one function. It takes the place of that crate because one of its dependencies is under a
//! licence that is not permissive. Knows nothing.

use std::path::PathBuf;

/// Says that there is no folder for data of programs.
///
/// Lance would look there for the language models of Chinese and Japanese tokenizers, which are features that are not built in;
/// without a folder it says that none is configured.
pub fn data_local_dir() -> Option<PathBuf> {
    None
}
