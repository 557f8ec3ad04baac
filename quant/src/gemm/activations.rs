//! Activations in 8 bits: `round(x / scale)` in -127..=127, with the sums that minimums and offsets need.

use std::sync::{Mutex, PoisonError};

use super::lines::Lines;
use super::packed::{INPUTS_MAX, INPUTS_PAD, PackedWeights};
use super::{GemmError, PANEL_ROWS_MIN};
use crate::dispatch::Path;
use crate::parallel::{for_each_item, part_rows};

/// Rows of a tile: their cache lines lie side by side, which is just a tile register of AMX.
const TILE_ROWS: usize = 16;
/// Codes in a cache line.
const LINE: usize = INPUTS_PAD;
/// One product has at most this many rows.
pub const ROWS_MAX: usize = 1 << 20;

/// Where the scales of activations come from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ActivationScaling {
    /// `max|x| / 127` of each row (token), found at each call.
    PerToken,
    /// `max|x| / 127` of each row's part in each group of the weights: finer, for outliers.
    PerTokenGroup,
    /// One scale that calibration found; larger values are cut.
    Static(f32),
}

/// Activations `[rows, inputs]` as int8 codes, made for weights of one group length; may be used for several layers.
#[derive(Clone)]
pub struct QuantizedActivations {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) group: usize,
    /// Inputs, padded to whole cache lines.
    pub(crate) padded_inputs: usize,
    /// Rows whose lines lie side by side: sixteen, or all when they are too few for the kernels of many rows.
    pub(crate) tile_rows: usize,
    pub(crate) groups: usize,
    /// `[row tile, line, tile_rows, 64]`; zero past the inputs and past the rows.
    pub(super) codes: Lines,
    /// `[rows, groups]`: the scale.
    pub(crate) scales: Vec<f32>,
    /// `[rows, groups]`: the sum of the codes.
    pub(crate) sums: Vec<i32>,
    /// `[rows, groups]`: scale times sum.
    pub(crate) weighted_sums: Vec<f32>,
}

impl std::fmt::Debug for QuantizedActivations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizedActivations")
            .field("rows", &self.rows)
            .field("inputs", &self.inputs)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl QuantizedActivations {
    /// Quantises activations `[rows, inputs]` for these weights (and all others of the same inputs and group length).
    /// Values that are not finite are refused.
    pub fn quantize(
        values: &[f32],
        rows: usize,
        weights: &PackedWeights,
        scaling: ActivationScaling,
        threads: usize,
    ) -> Result<Self, GemmError> {
        Self::quantize_on(Path::best(), values, rows, weights.inputs(), weights.group(), scaling, threads)
    }

    pub(crate) fn quantize_on(
        path: Path,
        values: &[f32],
        rows: usize,
        inputs: usize,
        group: usize,
        scaling: ActivationScaling,
        threads: usize,
    ) -> Result<Self, GemmError> {
        if rows.checked_mul(inputs) != Some(values.len()) || rows > ROWS_MAX || inputs > INPUTS_MAX {
            return Err(GemmError::Activations { rows, inputs, values: values.len() });
        }
        if let ActivationScaling::Static(scale) = scaling
            && !(scale.is_normal() && scale > 0.0)
        {
            return Err(GemmError::StaticScale { scale });
        }
        let padded_inputs = inputs.next_multiple_of(LINE);
        let tile_rows = if rows >= PANEL_ROWS_MIN { TILE_ROWS } else { rows.max(1) };
        let groups = inputs.div_ceil(group);
        let mut result = Self {
            rows,
            inputs,
            group,
            padded_inputs,
            tile_rows,
            groups,
            codes: Lines::zeroed(rows.next_multiple_of(tile_rows) * padded_inputs),
            scales: vec![0.0; rows * groups],
            sums: vec![0; rows * groups],
            weighted_sums: vec![0.0; rows * groups],
        };
        if values.is_empty() {
            return Ok(result);
        }
        // Whole tiles of rows for each thread.
        let part = part_rows(rows, inputs, threads.max(1)).next_multiple_of(tile_rows);
        let work = |index: usize, values: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]| {
            let mut line = vec![0_i8; padded_inputs];
            let each = values.chunks(inputs).zip(scales.chunks_mut(groups)).zip(sums.chunks_mut(groups));
            for (row, ((values, scales), sums)) in each.enumerate() {
                quantize_row(path, values, group, scaling, &mut line, scales, sums)
                    .map_err(|column| GemmError::NotFinite { row: index * part + row, column })?;
                let tile = &mut codes[row / tile_rows * tile_rows * padded_inputs..];
                let places = tile.chunks_exact_mut(LINE).skip(row % tile_rows).step_by(tile_rows);
                places.zip(line.chunks_exact(LINE)).for_each(|(to, from)| to.copy_from_slice(from));
            }
            Ok::<(), GemmError>(())
        };
        if threads <= 1 || part >= rows {
            work(0, values, result.codes.signed_mut(), &mut result.scales, &mut result.sums)?;
        } else {
            let failure = Mutex::new(None);
            let parts = values
                .chunks(part * inputs)
                .zip(result.codes.signed_mut().chunks_mut(part * padded_inputs))
                .zip(result.scales.chunks_mut(part * groups))
                .zip(result.sums.chunks_mut(part * groups));
            for_each_item(parts, threads, |index, (((values, codes), scales), sums)| {
                if let Err(error) = work(index, values, codes, scales, sums) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
            if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
        }
        for ((weighted, scale), sum) in result.weighted_sums.iter_mut().zip(&result.scales).zip(&result.sums) {
            *weighted = *sum as f32 * *scale;
        }
        Ok(result)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where the codes of a row start.
    #[inline]
    pub(crate) fn row_offset(&self, row: usize) -> usize {
        row / self.tile_rows * self.tile_rows * self.padded_inputs + row % self.tile_rows * LINE
    }

    /// Where the code of an input lies, from the start of its row.
    #[inline]
    pub(crate) fn input_offset(&self, input: usize) -> usize {
        input / LINE * LINE * self.tile_rows + input % LINE
    }

    /// What the codes stand for, `[rows, inputs]`; to measure the error of a scaling.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.inputs);
        for row in 0..self.rows {
            for input in 0..self.inputs {
                let scale = self.scales[row * self.groups + input / self.group];
                out.push(f32::from(self.codes.signed()[self.row_offset(row) + self.input_offset(input)]) * scale);
            }
        }
        out
    }
}

/// Quantises one row; gives the column of a value that is not finite.
fn quantize_row(
    path: Path,
    values: &[f32],
    group: usize,
    scaling: ActivationScaling,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) -> Result<(), usize> {
    let largest = |values: &[f32]| largest_magnitude(path, values);
    let bad = |()| values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    let row_largest = largest(values).ok_or(()).map_err(bad)?;
    let parts = values.chunks(group).zip(codes.chunks_mut(group));
    for (((values, codes), scale), sum) in parts.zip(scales).zip(sums) {
        *scale = match scaling {
            ActivationScaling::PerToken => row_largest / 127.0,
            ActivationScaling::PerTokenGroup => largest(values).unwrap_or(0.0) / 127.0,
            ActivationScaling::Static(scale) => scale,
        };
        if !scale.is_normal() {
            // Smaller than any normal float: nothing to resolve, and no inverse.
            *scale = 0.0;
        }
        let inverse = if *scale == 0.0 { 0.0 } else { 1.0 / *scale };
        *sum = encode(path, values, inverse, codes);
    }
    Ok(())
}

/// Four neighbouring codes as the word that kernels broadcast.
///
/// # Safety
/// `codes` points to four readable codes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[expect(unsafe_code, reason = "an unaligned read inside of kernels")]
#[inline]
pub(super) unsafe fn read_four(codes: *const i8) -> i32 {
    // SAFETY: promised by the caller; an array of bytes needs no alignment.
    i32::from_ne_bytes(unsafe { codes.cast::<[u8; 4]>().read() })
}

/// The largest magnitude; None when a value is not finite.
fn largest_magnitude(path: Path, values: &[f32]) -> Option<f32> {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        return super::avx512::largest_magnitude(values);
    }
    let _ = path;
    let mut largest = 0.0_f32;
    let mut strange = false;
    for value in values {
        largest = largest.max(value.abs());
        strange |= !value.is_finite();
    }
    (!strange).then_some(largest)
}

/// Rounds to codes and gives their sum.
fn encode(path: Path, values: &[f32], inverse: f32, codes: &mut [i8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        return super::avx512::encode_activations(values, inverse, codes);
    }
    let _ = path;
    encode_scalar(values, inverse, codes)
}

/// The definition of the codes.
pub(super) fn encode_scalar(values: &[f32], inverse: f32, codes: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).clamp(-127.0, 127.0).round_ties_even() as i8;
        sum += i32::from(*code);
    }
    sum
}
