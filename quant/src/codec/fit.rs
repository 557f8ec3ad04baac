//! Scales and minimums of one group of weights.
//!
//! Sums run over sixteen fixed lanes without fused multiplication, so that the compiler may vectorise them for any
//! instruction set and the result is the same on all.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the same source compiled for wider vectors"))]
#![expect(clippy::inline_always, reason = "inlining is what compiles the one source for each instruction set")]

use half::f16;

use super::{Fit, Grid, Params, Scheme, Spec, Width};
use crate::dispatch::Path;

/// Lanes of every sum.
const LANES: usize = 16;
/// Values summed in 32 bits before the lanes go into a 64-bit sum.
const SUM_BLOCK: usize = 4096;
/// Scales tried by the least-squares search.
const CANDIDATES: usize = 20;
/// Rounds of alternating codes and parameters after the search.
const REFINEMENTS: usize = 3;
/// The norm that HQQ lowers, and the start and growth of its penalty (HQQ, section "solver": p < 1, beta annealed).
const HQQ_NORM: f32 = 0.7;
const HQQ_BETA: f32 = 10.0;
const HQQ_BETA_GROWTH: f32 = 1.01;

/// The parameters of a group, rounded to 16 bits. None when a value is not finite; an infinite scale when out of range.
/// `values` is not empty.
pub(crate) fn fit_group(path: Path, values: &[f32], spec: Spec) -> Option<Params> {
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is one that this processor runs.
        Path::Avx512 | Path::Amx => unsafe { fit_avx512(values, spec) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx2 => unsafe { fit_avx2(values, spec) },
        _ => fit(values, spec),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn fit_avx512(values: &[f32], spec: Spec) -> Option<Params> {
    fit(values, spec)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fit_avx2(values: &[f32], spec: Spec) -> Option<Params> {
    fit(values, spec)
}

#[inline(always)]
fn fit(values: &[f32], spec: Spec) -> Option<Params> {
    let (low, high) = range(values)?;
    Some(fit_in_range(values, spec, low, high))
}

/// As [`fit_group`], when the range is known.
#[inline(always)]
fn fit_in_range(values: &[f32], spec: Spec, low: f32, high: f32) -> Params {
    let grid = spec.grid();
    match (spec.scheme, spec.fit) {
        (Scheme::Symmetric, Fit::LeastSquares) => least_squares_symmetric(values, grid, low, high, spec.width),
        (Scheme::Symmetric, _) if spec.width == Width::Ternary => round_params(mean_magnitude(values), 0.0),
        (_, Fit::Range | Fit::Hqq { .. }) => {
            let params = range_params(grid, spec.scheme, low, high);
            if let Fit::Hqq { iterations } = spec.fit { hqq(values, grid, params, iterations) } else { params }
        }
        (Scheme::ScaleMin, Fit::LeastSquares) => least_squares_minimum(values, grid, low, high),
    }
}

/// The parameters that put the largest and smallest value on the grid.
#[inline(always)]
pub(super) fn range_params(grid: Grid, scheme: Scheme, low: f32, high: f32) -> Params {
    match scheme {
        Scheme::Symmetric => round_params(high.max(-low) / grid.high, 0.0),
        // Halves before the difference: the range of the largest floats is infinite.
        Scheme::ScaleMin => round_params((high * 0.5 - low * 0.5) / grid.high * 2.0, low),
    }
}

#[inline(always)]
fn round_params(scale: f32, minimum: f32) -> Params {
    Params { scale: f16::from_f32(scale).to_f32(), minimum: f16::from_f32(minimum).to_f32() }
}

/// Smallest and largest value; None when one is not finite.
#[inline(always)]
pub(super) fn range(values: &[f32]) -> Option<(f32, f32)> {
    let mut low = [f32::INFINITY; LANES];
    let mut high = [f32::NEG_INFINITY; LANES];
    let mut strange = [0_u32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
            strange[lane] |= u32::from(!chunk[lane].is_finite());
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        low[lane] = low[lane].min(*value);
        high[lane] = high[lane].max(*value);
        strange[lane] |= u32::from(!value.is_finite());
    }
    if strange.iter().any(|lane| *lane != 0) {
        return None;
    }
    Some((low.iter().copied().fold(f32::INFINITY, f32::min), high.iter().copied().fold(f32::NEG_INFINITY, f32::max)))
}

/// Sums of `f(value)` in fixed lanes.
#[inline(always)]
fn sums<const N: usize>(values: &[f32], f: impl Fn(f32) -> [f32; N]) -> [f64; N] {
    let mut total = [0.0_f64; N];
    for block in values.chunks(SUM_BLOCK) {
        let mut lanes = [[0.0_f32; LANES]; N];
        let chunks = block.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                let terms = f(chunk[lane]);
                for term in 0..N {
                    lanes[term][lane] += terms[term];
                }
            }
        }
        for (lane, value) in rest.iter().enumerate() {
            let terms = f(*value);
            for term in 0..N {
                lanes[term][lane] += terms[term];
            }
        }
        for term in 0..N {
            total[term] += lanes[term].iter().map(|lane| f64::from(*lane)).sum::<f64>();
        }
    }
    total
}

#[inline(always)]
fn mean_magnitude(values: &[f32]) -> f32 {
    (sums(values, |x| [x.abs()])[0] / values.len() as f64) as f32
}

#[inline(always)]
fn level(x: f32, params: Params, inverse: f32, grid: Grid) -> f32 {
    // The order of the compares makes `maxps`/`minps` of them.
    let scaled = (x - params.minimum) * inverse;
    let scaled = if scaled > grid.low { scaled } else { grid.low };
    (if scaled < grid.high { scaled } else { grid.high }).round_ties_even()
}

/// The squared error of a group under these parameters.
#[inline(always)]
fn squared_error(values: &[f32], grid: Grid, params: Params) -> f64 {
    let inverse = params.inverse();
    sums(values, |x| {
        let error = level(x, params, inverse, grid) * params.scale + params.minimum - x;
        [error * error]
    })[0]
}

/// The smallest share of the full range that the search tries: few levels gain by cutting the tails, many do not.
fn smallest_share(width: Width) -> f32 {
    match width {
        Width::Ternary | Width::Two => 0.25,
        Width::Four => 0.6,
        Width::Eight => 0.9,
    }
}

/// Tries shares of the range as scale, both signs (the grid is longer on one side), each with the best scale for its codes:
/// `sum(x * level) / sum(level^2)`.
#[inline(always)]
fn least_squares_symmetric(values: &[f32], grid: Grid, low: f32, high: f32, width: Width) -> Params {
    let full = high.max(-low) / grid.high;
    let start = range_params(grid, Scheme::Symmetric, low, high);
    if full == 0.0 || !start.scale.is_finite() || start.scale == 0.0 {
        return start;
    }
    let mut best = (squared_error(values, grid, start), start);
    let share = smallest_share(width);
    for candidate in 0..CANDIDATES {
        let size = full * (share + (1.05 - share) * candidate as f32 / (CANDIDATES - 1) as f32);
        for scale in [size, -size] {
            let mut params = Params { scale, minimum: 0.0 };
            for _ in 0..2 {
                let inverse = params.inverse();
                let [product, square] = sums(values, |x| {
                    let level = level(x, params, inverse, grid);
                    [x * level, level * level]
                });
                if square > 0.0 {
                    params = round_params((product / square) as f32, 0.0);
                }
                let error = squared_error(values, grid, params);
                if params.scale != 0.0 && error < best.0 {
                    best = (error, params);
                }
            }
        }
    }
    best.1
}

/// Tries shares of the range around its middle, then alternates codes and the regression of the values on them.
#[inline(always)]
fn least_squares_minimum(values: &[f32], grid: Grid, low: f32, high: f32) -> Params {
    let start = range_params(grid, Scheme::ScaleMin, low, high);
    if start.scale == 0.0 || !start.scale.is_finite() || !start.minimum.is_finite() {
        return start;
    }
    let mut best = (squared_error(values, grid, start), start);
    let share = if grid.high <= 3.0 { 0.35 } else { 0.7 };
    let middle = (low + high) * 0.5;
    for candidate in 0..CANDIDATES {
        let part = share + (1.05 - share) * candidate as f32 / (CANDIDATES - 1) as f32;
        let scale = (high - low) * part / grid.high;
        let mut params = Params { scale, minimum: middle - scale * grid.high * 0.5 };
        for _ in 0..REFINEMENTS {
            let Some(next) = regress(values, grid, params) else { break };
            params = next;
            let error = squared_error(values, grid, params);
            if error < best.0 {
                best = (error, params);
            }
        }
    }
    best.1
}

/// The scale and minimum with the least squared error for the codes that these parameters give.
#[inline(always)]
fn regress(values: &[f32], grid: Grid, params: Params) -> Option<Params> {
    let inverse = params.inverse();
    // Deviations from the minimum keep the sums small against cancellation.
    let [level_sum, level_square, value_sum, product] = sums(values, |x| {
        let level = level(x, params, inverse, grid);
        let deviation = x - params.minimum;
        [level, level * level, deviation, level * deviation]
    });
    let count = values.len() as f64;
    let determinant = count * level_square - level_sum * level_sum;
    if determinant <= 0.0 {
        return None;
    }
    let scale = (count * product - level_sum * value_sum) / determinant;
    let minimum = (value_sum - scale * level_sum) / count + f64::from(params.minimum);
    let next = round_params(scale as f32, minimum as f32);
    (next.scale != 0.0 && next.scale.is_finite() && next.minimum.is_finite()).then_some(next)
}

/// Half-quadratic quantisation: the error is split off by the shrinkage of the p-norm, then the minimum is the mean of what
/// is left (HQQ, equations 3 to 6). Errors are taken in steps of the scale, so that the weights' unit does not matter.
/// Stops when the error no longer falls.
#[inline(always)]
fn hqq(values: &[f32], grid: Grid, start: Params, iterations: u32) -> Params {
    if start.scale == 0.0 || !start.scale.is_finite() || !start.minimum.is_finite() {
        return start;
    }
    let mut params = start;
    let mut best = (f64::INFINITY, start);
    let mut beta = HQQ_BETA;
    for _ in 0..iterations {
        let inverse = params.inverse();
        let mut error_sum = 0.0_f64;
        let mut minimum_sum = 0.0_f64;
        for x in values {
            let level = level(*x, params, inverse, grid);
            let error = (x - (level * params.scale + params.minimum)) * inverse;
            let magnitude = error.abs();
            error_sum += f64::from(magnitude);
            let shrunk = if magnitude > 0.0 {
                (magnitude - magnitude.powf(HQQ_NORM - 1.0) / beta).max(0.0).copysign(error)
            } else {
                0.0
            };
            minimum_sum += f64::from(x - (shrunk + level) * params.scale);
        }
        if error_sum >= best.0 {
            break;
        }
        best = (error_sum, params);
        params = round_params(params.scale, (minimum_sum / values.len() as f64) as f32);
        beta *= HQQ_BETA_GROWTH;
    }
    best.1
}
