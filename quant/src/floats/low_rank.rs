//! Low-rank updates of a layer's output: `y += scale * (x A^T) B^T`, in f32.

use super::lanes::LANES;
use super::{on_best_path, part_rows};
use crate::parallel::for_each_item;

/// Factors in the order that their loops read: ranks and outputs are neighbouring numbers.
#[derive(Debug, Clone)]
pub struct LowRankFactors {
    /// `[inputs, padded ranks]`: `A` of all parts, transposed.
    down: Vec<f32>,
    /// For each part `[rank, outputs]`: `B`, transposed.
    up: Vec<(usize, Vec<f32>)>,
    inputs: usize,
    padded: usize,
    outputs: usize,
}

impl LowRankFactors {
    /// Arranges factors: `a: [parts * rank, inputs]`, and for each part `b: [outputs, rank]`. `None` when lengths do not fit.
    pub fn new(a: &[f32], inputs: usize, rank: usize, b: &[Vec<f32>]) -> Option<Self> {
        let ranks = rank.checked_mul(b.len())?;
        if rank == 0 || inputs == 0 || a.len() != ranks.checked_mul(inputs)? || b.iter().any(|b| b.len() % rank != 0) {
            return None;
        }
        let padded = ranks.next_multiple_of(LANES);
        let mut down = vec![0.0; inputs * padded];
        for (index, value) in a.iter().enumerate() {
            down[index % inputs * padded + index / inputs] = *value;
        }
        let transposed = |b: &Vec<f32>| {
            let outputs = b.len() / rank;
            let up = (0..rank * outputs).map(|index| b[index % outputs * rank + index / outputs]).collect();
            (outputs, up)
        };
        let up: Vec<(usize, Vec<f32>)> = b.iter().map(transposed).collect();
        let outputs = up.iter().map(|(outputs, _)| outputs).sum();
        Some(Self { down, up, inputs, padded, outputs })
    }

    /// Adds the update to `y`.
    ///
    /// # Shapes
    /// `x: [rows, inputs]`, `y: [rows, outputs]`.
    pub fn add_to(&self, x: &[f32], scale: f32, y: &mut [f32], threads: usize) {
        let rows = x.len() / self.inputs;
        assert!(x.len() == rows * self.inputs && y.len() == rows * self.outputs, "rows fit the factors");
        if self.outputs == 0 {
            return;
        }
        let part = part_rows(rows, self.padded * (self.inputs + self.outputs) / LANES, threads);
        if part >= rows {
            add_rows(self, x, scale, y);
        } else {
            let parts = x.chunks(part * self.inputs).zip(y.chunks_mut(part * self.outputs));
            for_each_item(parts, threads, |_, (x, y)| add_rows(self, x, scale, y));
        }
    }
}

on_best_path! {
    fn add_rows(factors: &LowRankFactors, x: &[f32], scale: f32, y: &mut [f32]) {
        let mut ranks = vec![0.0_f32; factors.padded];
        for (x, y) in x.chunks_exact(factors.inputs).zip(y.chunks_exact_mut(factors.outputs)) {
            for (start, ranks) in (0..factors.padded).step_by(LANES).zip(ranks.chunks_exact_mut(LANES)) {
                // Four sums at a time hide the latency of the additions.
                let mut sums = [[0.0_f32; LANES]; 4];
                for (x, down) in x.chunks(4).zip(factors.down.chunks(4 * factors.padded)) {
                    for ((sum, x), down) in sums.iter_mut().zip(x).zip(down.chunks_exact(factors.padded)) {
                        let down: &[f32; LANES] = down[start..].first_chunk().expect("ranks are padded");
                        for (sum, down) in sum.iter_mut().zip(down) {
                            *sum = x.mul_add(*down, *sum);
                        }
                    }
                }
                for (lane, rank) in ranks.iter_mut().enumerate() {
                    *rank = ((sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane])) * scale;
                }
            }
            let (mut ranks, mut y) = (ranks.as_slice(), y);
            for (outputs, up) in &factors.up {
                let rank = up.len() / outputs.max(&1);
                let (own, later) = ranks.split_at(rank);
                let (part, rest) = y.split_at_mut(*outputs);
                for (value, up) in own.iter().zip(up.chunks_exact((*outputs).max(1))) {
                    for (y, up) in part.iter_mut().zip(up) {
                        *y = value.mul_add(*up, *y);
                    }
                }
                (ranks, y) = (later, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_the_product_of_its_factors() {
        for (inputs, rank, outputs) in [(7, 1, vec![5]), (20, 3, vec![6, 2, 9]), (64, 8, vec![33, 33])] {
            let number = |i: usize| ((i * 29 % 53) as f32 - 26.0) / 30.0;
            let a: Vec<f32> = (0..rank * outputs.len() * inputs).map(number).collect();
            let b: Vec<Vec<f32>> = outputs.iter().map(|out| (0..out * rank).map(|i| number(i + 7)).collect()).collect();
            let factors = LowRankFactors::new(&a, inputs, rank, &b).unwrap();
            let rows = 3;
            let x: Vec<f32> = (0..rows * inputs).map(|i| number(i + 3)).collect();
            let mut y = vec![1.0; rows * outputs.iter().sum::<usize>()];
            factors.add_to(&x, 0.5, &mut y, 2);
            let mut made = y.iter();
            for row in 0..rows {
                for (part, out) in outputs.iter().enumerate() {
                    for o in 0..*out {
                        let inner = |r: usize| -> f64 {
                            let a = &a[(part * rank + r) * inputs..][..inputs];
                            x[row * inputs..].iter().zip(a).map(|(x, a)| f64::from(x * a)).sum()
                        };
                        let right =
                            1.0 + 0.5 * (0..rank).map(|r| inner(r) * f64::from(b[part][o * rank + r])).sum::<f64>();
                        let made = f64::from(*made.next().unwrap());
                        assert!((made - right).abs() < 1e-4, "{made} {right}");
                    }
                }
            }
        }
        assert!(LowRankFactors::new(&[0.0; 6], 3, 1, &[vec![0.0], vec![0.0]]).is_some());
        assert!(LowRankFactors::new(&[0.0; 5], 3, 1, &[vec![0.0], vec![0.0]]).is_none());
    }
}
