//! From codes back to weights, in tiles that stay in the first-level cache; large results then go past the caches.

use rayon::prelude::*;

use super::{Granularity, Params, Quantized, Scheme, Spec, pack};
use crate::dispatch::Path;
use crate::parallel::part_rows;

/// Weights decoded at once before they are streamed out (8 KiB of floats): a multiple of every group size.
const TILE: usize = 2048;
/// Results this large would only evict what the caches hold (bytes).
const STREAM_BYTES_MIN: usize = 4 << 20;

/// Decodes whole rows from row `first` on; `out` holds a multiple of the columns.
pub(super) fn dequantize(path: Path, quantized: &Quantized, first: usize, out: &mut [f32], threads: usize) {
    let columns = quantized.columns;
    if out.is_empty() {
        return;
    }
    let stream = size_of_val(out) >= STREAM_BYTES_MIN;
    let by_column = ByColumn::of(quantized);
    let part = part_rows(out.len() / columns, columns, threads);
    let work = |(index, out): (usize, &mut [f32])| {
        let mut tile = Tile([0.0; TILE]);
        for (offset, out) in out.chunks_mut(columns).enumerate() {
            let row = first + index * part + offset;
            if !stream {
                decode_columns(path, quantized, by_column.as_ref(), row, 0, out);
                continue;
            }
            for (number, out) in out.chunks_mut(TILE).enumerate() {
                let tile = &mut tile.0[..out.len()];
                decode_columns(path, quantized, by_column.as_ref(), row, number * TILE, tile);
                stream_out(path, tile, out);
            }
        }
        if stream {
            fence(path);
        }
    };
    if threads == 1 {
        work((0, out));
    } else {
        out.par_chunks_mut(part * columns).enumerate().for_each(work);
    }
}

#[repr(align(64))]
struct Tile([f32; TILE]);

/// Parameters of all columns as plain floats, when they belong to columns.
struct ByColumn {
    scales: Vec<f32>,
    minimums: Vec<f32>,
}

impl ByColumn {
    fn of(quantized: &Quantized) -> Option<Self> {
        (quantized.spec.granularity == Granularity::InChannel).then(|| Self {
            scales: quantized.scales.iter().map(|scale| scale.to_f32()).collect(),
            minimums: quantized.minimums.iter().map(|minimum| minimum.to_f32()).collect(),
        })
    }
}

/// Decodes columns `start..start + out.len()` of a row; `start` is a multiple of [`TILE`].
fn decode_columns(
    path: Path,
    quantized: &Quantized,
    by_column: Option<&ByColumn>,
    row: usize,
    start: usize,
    out: &mut [f32],
) {
    let spec = quantized.spec;
    let bits = spec.width.bits();
    let row_bytes = spec.row_bytes(quantized.columns);
    let codes = &quantized.codes[row * row_bytes..(row + 1) * row_bytes][start * bits / 8..];
    if let Some(by_column) = by_column {
        let mut unpacked = vec![0_u8; out.len()];
        pack::unpack(codes, bits, &mut unpacked);
        for (offset, (out, code)) in out.iter_mut().zip(&unpacked).enumerate() {
            let minimum = by_column.minimums.get(start + offset).copied().unwrap_or(0.0);
            *out = decode_one(*code, Params { scale: by_column.scales[start + offset], minimum }, spec);
        }
        return;
    }
    let group = match spec.granularity {
        Granularity::Group(size) => size as usize,
        _ => out.len(),
    };
    let first_scale = quantized.scale_index(row, start);
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        let scales = &quantized.scales[first_scale..];
        let minimums = quantized.minimums.get(first_scale..).unwrap_or(&[]);
        return super::x86::decode_groups(codes, group, spec, scales, minimums, out);
    }
    let _ = path;
    for (index, out) in out.chunks_mut(group).enumerate() {
        decode_scalar(&codes[index * group * bits / 8..], quantized.params(first_scale + index), spec, out);
    }
}

/// The definition of decoding.
pub(super) fn decode_scalar(codes: &[u8], params: Params, spec: Spec, out: &mut [f32]) {
    /// Codes unpacked at once, whole bytes of every width.
    const BLOCK: usize = 64;
    let bits = spec.width.bits();
    let mut block = [0_u8; BLOCK];
    for (out, codes) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK * bits / 8)) {
        pack::unpack(codes, bits, &mut block[..out.len()]);
        for (out, code) in out.iter_mut().zip(&block) {
            *out = decode_one(*code, params, spec);
        }
    }
}

#[inline]
pub(crate) fn decode_one(code: u8, params: Params, spec: Spec) -> f32 {
    match spec.scheme {
        Scheme::Symmetric => (i32::from(code) - i32::from(spec.width.offset())) as f32 * params.scale,
        Scheme::ScaleMin => f32::from(code) * params.scale + params.minimum,
    }
}

fn stream_out(path: Path, tile: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        return super::x86::stream_out(tile, out);
    }
    let _ = path;
    out.copy_from_slice(tile);
}

fn fence(path: Path) {
    #[cfg(target_arch = "x86_64")]
    if path >= Path::Avx512 {
        super::x86::fence();
    }
    let _ = path;
}
