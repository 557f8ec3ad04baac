//! ArrowQuant: codecs and SIMD kernels for 2, 4 and 8 bit weights. Knows nothing of files, actors, models or tensor libraries.
//!
//! ```
//! use mneme_quant::scan::{RowsI8, Query, quantize_row_i8, scan_top_k};
//! let (first, first_scale) = quantize_row_i8(&[1.0, 0.0, 0.5]).unwrap();
//! let (second, second_scale) = quantize_row_i8(&[0.0, 1.0, 0.5]).unwrap();
//! let codes = [first, second].concat();
//! let scales = [first_scale, second_scale];
//! let rows = RowsI8::new(&codes, &scales, 3).unwrap();
//! let (query, query_scale) = quantize_row_i8(&[0.0, 2.0, 0.0]).unwrap();
//! let best = scan_top_k(rows, Query::new(&query, query_scale), 1, None, 1).unwrap();
//! assert_eq!(best[0].row, 1);
//! ```
//!
//! Every kernel has a scalar form that defines its result; the SIMD forms give the same bits. [`dispatch::Path`] says which
//! forms this processor can run. Reading order: [`dispatch`], [`scan`], [`codec`],
//! [`gemm`], [`floats`]; then what chooses codes well (and [`parallel`], how work is shared): [`calibrate`], [`gptq`], [`rotate`], [`search`].

pub mod calibrate;
pub mod codec;
pub mod dispatch;
pub mod floats;
pub mod gemm;
pub mod gptq;
mod linalg;
pub mod parallel;
pub mod probe;
pub mod rotate;
pub mod scan;
pub mod search;

pub use codec::{Fit, Granularity, Quantized, Scheme, Spec, Width};
pub use dispatch::Path;
pub use gemm::{ActivationScaling, PackedWeights, QuantizedActivations, gemm, gemm_quantized};
