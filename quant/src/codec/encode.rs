//! From weights to codes: fits each group, then rounds its values to the grid.

use half::f16;
use rayon::prelude::*;

use super::fit::{fit_group, range, range_params};
use super::{CodecError, Fit, Granularity, Grid, Params, Quantized, Scheme, Spec, Width, pack};
use crate::dispatch::Path;
use crate::parallel::part_rows;

/// Columns gathered at once when a scale belongs to a column: their strided reads then share cache lines.
const COLUMNS_AT_ONCE: usize = 16;

/// Quantises a matrix whose shape and format were checked.
pub(super) fn quantize(
    path: Path,
    values: &[f32],
    rows: usize,
    columns: usize,
    spec: Spec,
    threads: usize,
) -> Result<Quantized, CodecError> {
    let scale_count = spec.scales(rows, columns);
    let minimum_count = if spec.scheme == Scheme::ScaleMin { scale_count } else { 0 };
    let row_bytes = spec.row_bytes(columns);
    let mut quantized = Quantized {
        spec,
        rows,
        columns,
        codes: vec![0; if columns == 0 { 0 } else { rows * row_bytes }],
        scales: vec![f16::ZERO; scale_count],
        minimums: vec![f16::ZERO; minimum_count],
    };
    if values.is_empty() {
        return Ok(quantized);
    }
    match spec.granularity {
        Granularity::Group(_) | Granularity::OutChannel => rows_alone(path, values, &mut quantized, threads)?,
        Granularity::Tensor => {
            let params = fit_tensor(path, values, spec, threads)?;
            store(&mut quantized.scales, &mut quantized.minimums, 0, params);
            let grid = spec.grid();
            let part = part_rows(rows, columns, threads);
            let work = |(codes, values): (&mut [u8], &[f32])| {
                for (codes, values) in codes.chunks_mut(row_bytes).zip(values.chunks(columns)) {
                    encode_run(path, values, params, grid, spec.width, codes);
                }
            };
            if threads == 1 {
                work((&mut quantized.codes, values));
            } else {
                quantized.codes.par_chunks_mut(part * row_bytes).zip(values.par_chunks(part * columns)).for_each(work);
            }
        }
        Granularity::InChannel => by_column(path, values, &mut quantized, threads)?,
    }
    Ok(quantized)
}

fn store(scales: &mut [f16], minimums: &mut [f16], index: usize, params: Params) {
    scales[index] = f16::from_f32(params.scale);
    if let Some(minimum) = minimums.get_mut(index) {
        *minimum = f16::from_f32(params.minimum);
    }
}

fn checked(params: Params, index: usize) -> Result<Params, CodecError> {
    if params.scale.is_finite() && params.minimum.is_finite() {
        Ok(params)
    } else {
        Err(CodecError::ScaleRange { index })
    }
}

fn not_finite(values: &[f32], first: usize) -> CodecError {
    let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    CodecError::NotFinite { index: first + index }
}

/// One scale for the whole matrix. The range is found in parallel; the searches run over all values on one thread.
fn fit_tensor(path: Path, values: &[f32], spec: Spec, threads: usize) -> Result<Params, CodecError> {
    if spec.fit == Fit::Range && spec.width != Width::Ternary {
        let part = values.len().div_ceil(threads);
        let found = values.par_chunks(part).map(range).reduce(
            || Some((f32::INFINITY, f32::NEG_INFINITY)),
            |left, right| left.zip(right).map(|(left, right)| (left.0.min(right.0), left.1.max(right.1))),
        );
        let (low, high) = found.ok_or_else(|| not_finite(values, 0))?;
        return checked(range_params(spec.grid(), spec.scheme, low, high), 0);
    }
    checked(fit_group(path, values, spec).ok_or_else(|| not_finite(values, 0))?, 0)
}

/// Formats whose scales belong to one row: rows are independent.
fn rows_alone(path: Path, values: &[f32], quantized: &mut Quantized, threads: usize) -> Result<(), CodecError> {
    let (spec, rows, columns) = (quantized.spec, quantized.rows, quantized.columns);
    let row_bytes = spec.row_bytes(columns);
    let row_scales = spec.scales(1, columns);
    let row_minimums = if spec.scheme == Scheme::ScaleMin { row_scales } else { 0 };
    let part = part_rows(rows, columns, threads);
    let work = |index: usize, values: &[f32], codes: &mut [u8], scales: &mut [f16], minimums: &mut [f16]| {
        for (row, values) in values.chunks(columns).enumerate() {
            let minimums: &mut [f16] =
                if row_minimums == 0 { &mut [] } else { &mut minimums[row * row_minimums..(row + 1) * row_minimums] };
            let scales = &mut scales[row * row_scales..(row + 1) * row_scales];
            let codes = &mut codes[row * row_bytes..(row + 1) * row_bytes];
            one_row(path, values, spec, codes, scales, minimums).map_err(|error| match error {
                RowError::NotFinite(column) => CodecError::NotFinite { index: (index * part + row) * columns + column },
                RowError::ScaleRange(scale) => {
                    CodecError::ScaleRange { index: (index * part + row) * row_scales + scale }
                }
            })?;
        }
        Ok(())
    };
    if threads == 1 {
        return work(0, values, &mut quantized.codes, &mut quantized.scales, &mut quantized.minimums);
    }
    let codes = quantized.codes.par_chunks_mut(part * row_bytes);
    let scales = quantized.scales.par_chunks_mut(part * row_scales);
    let values = values.par_chunks(part * columns);
    if row_minimums == 0 {
        values
            .zip(codes)
            .zip(scales)
            .enumerate()
            .try_for_each(|(index, ((values, codes), scales))| work(index, values, codes, scales, &mut []))
    } else {
        let minimums = quantized.minimums.par_chunks_mut(part * row_minimums);
        values
            .zip(codes)
            .zip(scales)
            .zip(minimums)
            .enumerate()
            .try_for_each(|(index, (((values, codes), scales), minimums))| work(index, values, codes, scales, minimums))
    }
}

/// What is wrong with a row: a column, or a scale, of that row.
#[derive(Debug, Clone, Copy)]
pub(super) enum RowError {
    NotFinite(usize),
    ScaleRange(usize),
}

fn one_row(
    path: Path,
    values: &[f32],
    spec: Spec,
    codes: &mut [u8],
    scales: &mut [f16],
    minimums: &mut [f16],
) -> Result<(), RowError> {
    let group = match spec.granularity {
        Granularity::Group(size) => size as usize,
        _ => values.len(),
    };
    let grid = spec.grid();
    let simple = spec.fit == Fit::Range && spec.width != Width::Ternary;
    #[cfg(target_arch = "x86_64")]
    if simple && path >= Path::Avx512 {
        return super::x86::quantize_row(values, group, spec, codes, scales, minimums);
    }
    let group_bytes = group * spec.width.bits() / 8;
    for (index, values) in values.chunks(group).enumerate() {
        let params = if simple {
            range(values).map(|(low, high)| range_params(grid, spec.scheme, low, high))
        } else {
            fit_group(path, values, spec)
        };
        let Some(params) = params else {
            let column = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Err(RowError::NotFinite(index * group + column));
        };
        let params = checked(params, index).map_err(|_| RowError::ScaleRange(index))?;
        store(scales, minimums, index, params);
        encode_run(path, values, params, grid, spec.width, &mut codes[index * group_bytes..]);
    }
    Ok(())
}

/// Rounds values that share their parameters, into bytes that start with the first code.
pub(super) fn encode_run(path: Path, values: &[f32], params: Params, grid: Grid, width: Width, codes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        return super::x86::encode_run(values, params, grid, width, codes);
    }
    let _ = path;
    encode_scalar(values, params, grid, width, codes);
}

/// The definition of encoding.
pub(super) fn encode_scalar(values: &[f32], params: Params, grid: Grid, width: Width, codes: &mut [u8]) {
    /// Values rounded at once, whole bytes of every width.
    const BLOCK: usize = 64;
    let inverse = params.inverse();
    let block_bytes = BLOCK * width.bits() / 8;
    let mut block = [0_u8; BLOCK];
    for (values, bytes) in values.chunks(BLOCK).zip(codes.chunks_mut(block_bytes)) {
        for (code, value) in block.iter_mut().zip(values) {
            *code = encode_one(*value, params.minimum, inverse, grid);
        }
        let bytes_len = (values.len() * width.bits()).div_ceil(8);
        pack::pack(&block[..values.len()], width.bits(), &mut bytes[..bytes_len]);
    }
}

#[inline]
pub(crate) fn encode_one(value: f32, minimum: f32, inverse: f32, grid: Grid) -> u8 {
    let level = ((value - minimum) * inverse).clamp(grid.low, grid.high).round_ties_even();
    (level as i32 + i32::from(grid.offset)) as u8
}

/// A scale for each column.
fn by_column(path: Path, values: &[f32], quantized: &mut Quantized, threads: usize) -> Result<(), CodecError> {
    let (spec, rows, columns) = (quantized.spec, quantized.rows, quantized.columns);
    let fit_columns = |first: usize| -> Result<Vec<Params>, CodecError> {
        let end = (first + COLUMNS_AT_ONCE).min(columns);
        let mut gathered = vec![0.0; rows * (end - first)];
        for (row, values) in values.chunks(columns).enumerate() {
            for (offset, value) in values[first..end].iter().enumerate() {
                gathered[offset * rows + row] = *value;
            }
        }
        let fit_one = |(offset, column): (usize, &[f32])| {
            let params = fit_group(path, column, spec).ok_or_else(|| {
                let row = column.iter().position(|value| !value.is_finite()).unwrap_or(0);
                CodecError::NotFinite { index: row * columns + first + offset }
            })?;
            checked(params, first + offset)
        };
        gathered.chunks(rows).enumerate().map(fit_one).collect()
    };
    let starts: Vec<usize> = (0..columns).step_by(COLUMNS_AT_ONCE).collect();
    let fitted: Result<Vec<Vec<Params>>, CodecError> = if threads == 1 {
        starts.into_iter().map(fit_columns).collect()
    } else {
        starts.into_par_iter().map(fit_columns).collect()
    };
    let params: Vec<Params> = fitted?.concat();
    let inverses: Vec<f32> = params.iter().map(|params| params.inverse()).collect();
    for (index, params) in params.iter().enumerate() {
        store(&mut quantized.scales, &mut quantized.minimums, index, *params);
    }
    let (grid, bits, row_bytes) = (spec.grid(), spec.width.bits(), spec.row_bytes(columns));
    let part = part_rows(rows, columns, threads);
    let work = |(codes, values): (&mut [u8], &[f32])| {
        let mut row = vec![0_u8; columns];
        for (codes, values) in codes.chunks_mut(row_bytes).zip(values.chunks(columns)) {
            for (((code, value), params), inverse) in row.iter_mut().zip(values).zip(&params).zip(&inverses) {
                *code = encode_one(*value, params.minimum, *inverse, grid);
            }
            pack::pack(&row, bits, codes);
        }
    };
    if threads == 1 {
        work((&mut quantized.codes, values));
    } else {
        quantized.codes.par_chunks_mut(part * row_bytes).zip(values.par_chunks(part * columns)).for_each(work);
    }
    Ok(())
}
