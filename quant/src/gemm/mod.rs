//! Products of activations with quantised weights in integer arithmetic: W8A8, W4A8, W2A8.
//!
//! For a row `m` and an output `n`, groups `g` in their order:
//!
//! ```text
//! dot = sum over the group of (code - offset) * activation code                 exact, in 32 bits
//! out = fma(dot * activation scale[m, g], weight scale[n, g], out)
//! out = fma(activation scale[m, g] * activation sum[m, g], minimum[n, g], out)   with minimums
//! ```
//!
//! Every path computes exactly this, so that results are the same bits on all of them and for any number of threads.
//!
//! ```
//! use mneme_quant::{PackedWeights, Spec, gemm};
//! let weights = PackedWeights::from_f32(&[1.0, 0.0, 0.0, 2.0], 2, 2, Spec::int8(), 1).unwrap();
//! let mut out = [0.0; 2];
//! gemm(&weights, &[3.0, 4.0], 1, &mut out, 1).unwrap();
//! assert!((out[0] - 3.0).abs() < 0.05 && (out[1] - 8.0).abs() < 0.05);
//! ```

mod activations;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lines;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod scalar;

use crate::codec::CodecError;
use crate::dispatch::Path;
use crate::parallel::for_each_part;
pub use activations::{ActivationScaling, QuantizedActivations, ROWS_MAX};
pub use packed::{INPUTS_MAX, OUTPUTS_MAX, PackedWeights};
use packed::{Layout, Regions, TILE};

/// A thread gets at least this many multiplications, or waking it costs more than it saves.
const THREAD_PRODUCTS_MIN: usize = 1 << 18;
/// Parts for each thread where there is work enough, so that a busy core does not hold up the others.
const PARTS_PER_THREAD: usize = 4;
/// From this many rows on weights are unpacked to bytes first, and AMX tiles are worth filling.
const PANEL_ROWS_MIN: usize = 5;

/// Why a product was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GemmError {
    /// The weights could not be quantised.
    #[error("weights could not be quantised")]
    Codec(#[from] CodecError),
    /// A layer beyond the limits.
    #[error("layer of {outputs} outputs and {inputs} inputs, at most {OUTPUTS_MAX} and {INPUTS_MAX}")]
    Dimensions {
        /// Outputs.
        outputs: usize,
        /// Inputs.
        inputs: usize,
    },
    /// Weights with a scale for each input.
    #[error("scales for each input do not factor out of an integer dot product, quantise by output or by group")]
    InputScales,
    /// A packed matrix whose header is not one.
    #[error("packed weights are not valid: {problem}")]
    Header {
        /// What is wrong.
        problem: &'static str,
    },
    /// A packed matrix of the wrong length.
    #[error("packed weights hold {found} bytes, their header needs {expected}")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// Activations that are not `rows * inputs`, or beyond the limits.
    #[error("{values} activations do not make {rows} rows of {inputs} inputs (at most {ROWS_MAX} rows)")]
    Activations {
        /// Rows.
        rows: usize,
        /// Inputs of the layer.
        inputs: usize,
        /// Values given.
        values: usize,
    },
    /// An activation that is not a finite number.
    #[error("activation {column} of row {row} is not finite")]
    NotFinite {
        /// Row.
        row: usize,
        /// Column.
        column: usize,
    },
    /// A static scale that is no positive normal number.
    #[error("static activation scale is {scale}, must be positive and finite")]
    StaticScale {
        /// The scale.
        scale: f32,
    },
    /// Activations made for weights of another shape or group length.
    #[error(
        "activations were quantised for {found_inputs} inputs in groups of {found_group}, the weights have {inputs} in {group}"
    )]
    Mismatch {
        /// The activations' inputs.
        found_inputs: usize,
        /// The activations' group length.
        found_group: usize,
        /// The weights' inputs.
        inputs: usize,
        /// The weights' group length.
        group: usize,
    },
    /// An output buffer of the wrong length.
    #[error("output holds {found} values, the product has {expected}")]
    Output {
        /// Its length.
        found: usize,
        /// The product's.
        expected: usize,
    },
}

/// Multiplies activations `[rows, inputs]` with weights: `out[rows, outputs]`. Activations are quantised for each token.
///
/// `threads`: the caller's and helpers of [`crate::parallel`]; less work than a thread repays runs on the caller's.
pub fn gemm(
    weights: &PackedWeights,
    activations: &[f32],
    rows: usize,
    out: &mut [f32],
    threads: usize,
) -> Result<(), GemmError> {
    let quantized = QuantizedActivations::quantize(activations, rows, weights, ActivationScaling::PerToken, threads)?;
    gemm_quantized(weights, &quantized, out, threads)
}

/// As [`gemm`], with activations that were quantised before: for layers that share their input, and for other scalings.
pub fn gemm_quantized(
    weights: &PackedWeights,
    activations: &QuantizedActivations,
    out: &mut [f32],
    threads: usize,
) -> Result<(), GemmError> {
    gemm_quantized_on(Path::best(), weights, activations, out, threads)
}

/// As [`gemm`] with a scaling, all of it on a given path (the best one if this processor does not run it).
pub fn gemm_on(
    path: Path,
    weights: &PackedWeights,
    activations: &[f32],
    rows: usize,
    scaling: ActivationScaling,
    out: &mut [f32],
    threads: usize,
) -> Result<(), GemmError> {
    let path = path.or_best();
    let (inputs, group) = (weights.inputs(), weights.group());
    let quantized = QuantizedActivations::quantize_on(path, activations, rows, inputs, group, scaling, threads)?;
    gemm_quantized_on(path, weights, &quantized, out, threads)
}

fn gemm_quantized_on(
    path: Path,
    weights: &PackedWeights,
    activations: &QuantizedActivations,
    out: &mut [f32],
    threads: usize,
) -> Result<(), GemmError> {
    let layout = weights.layout();
    if activations.inputs != layout.inputs || activations.group != layout.group {
        return Err(GemmError::Mismatch {
            found_inputs: activations.inputs,
            found_group: activations.group,
            inputs: layout.inputs,
            group: layout.group,
        });
    }
    let expected = activations.rows * layout.outputs;
    if out.len() != expected {
        return Err(GemmError::Output { found: out.len(), expected });
    }
    if out.is_empty() {
        return Ok(());
    }
    if layout.inputs == 0 {
        out.fill(0.0);
        return Ok(());
    }
    let job = Job { layout, weights: weights.regions()?, activations, out: Output::new(out, layout.outputs) };
    let products = activations.rows * layout.padded_inputs() * layout.outputs;
    let threads = threads.clamp(1, (products / THREAD_PRODUCTS_MIN).max(1));
    // Pairs of tiles, because the panel kernels work on two at once.
    let pairs = layout.tiles().div_ceil(2);
    if threads == 1 || pairs == 1 {
        job.run(path, 0, layout.tiles());
        return Ok(());
    }
    let spare = if products / threads > 16 * THREAD_PRODUCTS_MIN { PARTS_PER_THREAD } else { 1 };
    let part = pairs.div_ceil(threads * spare) * 2;
    for_each_part(layout.tiles().div_ceil(part), threads, |index| {
        job.run(path, index * part, ((index + 1) * part).min(layout.tiles()));
    });
    Ok(())
}

/// One product, shared by its threads.
struct Job<'a> {
    layout: Layout,
    weights: Regions<'a>,
    activations: &'a QuantizedActivations,
    out: Output<'a>,
}

impl Job<'_> {
    /// Computes the outputs of these tiles for all rows. No two calls for one job may overlap in tiles.
    fn run(&self, path: Path, first: usize, end: usize) {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Amx if self.activations.rows >= PANEL_ROWS_MIN => amx::run(self, first, end),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => avx512::run(self, first, end),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::run(self, first, end),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => neon::run(self, first, end, false),
            #[cfg(target_arch = "aarch64")]
            Path::NeonI8mm => neon::run(self, first, end, true),
            _ => scalar::run(self, first, end),
        }
    }

    /// What the kernels rely on for their pointers.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn check(&self, end: usize) {
        let (layout, activations) = (self.layout, self.activations);
        assert!(end <= layout.tiles());
        assert!(self.weights.codes.len() == layout.tiles() * layout.tile_code_bytes());
        assert!(self.weights.scales.len() == layout.tiles() * layout.tile_scale_bytes());
        assert!(!layout.has_minimums || self.weights.minimums.len() == self.weights.scales.len());
        assert!(activations.padded_inputs == layout.padded_inputs() && activations.groups == layout.groups());
        let padded_rows = activations.rows.next_multiple_of(activations.tile_rows);
        assert!(activations.codes.signed().len() == padded_rows * activations.padded_inputs);
        assert!(activations.scales.len() == activations.rows * activations.groups);
        assert!(activations.sums.len() == activations.scales.len());
        assert!(activations.weighted_sums.len() == activations.scales.len());
    }

    /// First and last input of a group; the last group takes the padding.
    fn group_bounds(&self, group: usize) -> (usize, usize) {
        let start = group * self.layout.group;
        let end =
            if group + 1 == self.layout.groups() { self.layout.padded_inputs() } else { start + self.layout.group };
        (start, end)
    }
}

/// The output matrix, written by several threads in different columns.
struct Output<'a> {
    pointer: *mut f32,
    length: usize,
    columns: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "threads write different columns of one matrix")]
// SAFETY: `Job::run` is called for disjoint tiles, and writes only their columns.
unsafe impl Sync for Output<'_> {}

#[expect(unsafe_code, reason = "threads write different columns of one matrix")]
impl<'a> Output<'a> {
    fn new(out: &'a mut [f32], columns: usize) -> Self {
        Self { pointer: out.as_mut_ptr(), length: out.len(), columns, borrow: std::marker::PhantomData }
    }

    /// Writes the values of one row and one tile; values past the last column are dropped.
    #[inline]
    fn write(&self, row: usize, tile: usize, values: &[f32; TILE]) {
        let column = tile * TILE;
        let count = TILE.min(self.columns.saturating_sub(column));
        let at = row * self.columns + column;
        assert!(at + count <= self.length, "row and tile lie in the output");
        // SAFETY: the range was checked, and no other thread writes this tile's columns.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.pointer.add(at), count) }
    }
}
