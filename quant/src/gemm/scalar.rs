//! The definition of the product, in plain Rust.

use super::Job;
use super::packed::TILE;

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    let (layout, activations) = (job.layout, job.activations);
    let mut codes = vec![0_i32; layout.padded_inputs()];
    for tile in first..end {
        let mut results = vec![[0.0_f32; TILE]; activations.rows];
        for lane in 0..TILE {
            for (input, code) in codes.iter_mut().enumerate() {
                *code = i32::from(job.weights.code(layout, tile, lane, input)) - layout.offset;
            }
            for (row, result) in results.iter_mut().enumerate() {
                let inputs = &activations.codes.signed()[activations.row_offset(row)..];
                for group in 0..layout.groups() {
                    let (start, end) = job.group_bounds(group);
                    let product = |input| codes[input] * i32::from(inputs[activations.input_offset(input)]);
                    let dot: i32 = (start..end).map(product).sum();
                    let (scale, minimum) = job.weights.params(layout, tile, lane, group);
                    let at = row * layout.groups() + group;
                    result[lane] = (dot as f32 * activations.scales[at]).mul_add(scale, result[lane]);
                    if layout.has_minimums {
                        result[lane] = activations.weighted_sums[at].mul_add(minimum, result[lane]);
                    }
                }
            }
        }
        for (row, result) in results.iter().enumerate() {
            job.out.write(row, tile, result);
        }
    }
}
