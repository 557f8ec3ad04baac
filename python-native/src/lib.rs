//! The Python module `mneme_native`: ArrowQuant, FastTokenizer, weight files and int8 vector search on numpy and Arrow data.
//! Knows nothing of the daemon, sockets or models.
//!
//! Rust memory is shown to numpy through the array interface and to Arrow through the C data interface, so that nothing is
//! copied; the object that owns the memory lives as long as any view of it. Long work runs with the interpreter released.
//! Reading order: [`error`], [`memory`], [`arrays`], [`format`], [`quant`], [`packed`], [`calibration`], [`weights`],
//! [`tokenizer`], [`index`].

mod arrays;
mod calibration;
mod error;
mod format;
mod index;
mod memory;
mod packed;
mod quant;
mod tokenizer;
mod weights;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::calibration::{Hessian, search_groups};
    #[pymodule_export]
    use crate::error::NativeError;
    #[pymodule_export]
    use crate::format::ArrowQuant;
    #[pymodule_export]
    use crate::index::VectorIndex;
    #[pymodule_export]
    use crate::packed::PackedWeights;
    #[pymodule_export]
    use crate::quant::Quantized;
    #[pymodule_export]
    use crate::tokenizer::FastTokenizer;
    #[pymodule_export]
    use crate::weights::{WeightFile, convert_weights};

    /// The instruction set that the kernels run on.
    #[pyo3::pyfunction]
    fn kernel_path() -> String {
        format!("{:?}", mneme_quant::Path::best()).to_lowercase()
    }
}
