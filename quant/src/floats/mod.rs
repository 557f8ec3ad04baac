//! f32 work between the integer products of a network: norms, rotary positions, gates, attention, low-rank updates.
//!
//! Every function has one body, compiled once for each instruction set and chosen by [`crate::dispatch`]: sums run in a fixed number of
//! lanes and products are fused everywhere, so that all paths give the same bits. Rows are independent of each other: neither
//! the number of rows nor of threads changes a result.
//!
//! Reading order: lanes (exponential, sums), rows, attention, low-rank updates.
#![expect(clippy::inline_always, reason = "a body must be compiled with the features of the form that calls it")]

mod attention;
mod lanes;
mod low_rank;
mod rows;

pub use attention::{Attention, KeyValues, Seen};
pub use low_rank::LowRankFactors;
pub use rows::{Rotary, add, gelu_erf, gelu_tanh, layer_norm, rms_norm, swiglu};

/// Numbers below which a second thread costs more than it saves.
const PART_NUMBERS_MIN: usize = 16 << 10;

/// How many rows each of at most `threads` parts gets.
fn part_rows(rows: usize, numbers_per_row: usize, threads: usize) -> usize {
    let parts = threads.clamp(1, (rows * numbers_per_row / PART_NUMBERS_MIN).max(1));
    rows.div_ceil(parts).max(1)
}

/// Compiles a body for each instruction set and calls the best.
macro_rules! on_best_path {
    ($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls forms whose features were detected"))]
        fn $name($($argument: $type),*) {
            #[inline(always)]
            fn portable_form($($argument: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512_form($($argument: $type),*) {
                    portable_form($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2_form($($argument: $type),*) {
                    portable_form($($argument),*);
                }
                match crate::dispatch::Path::best() {
                    // SAFETY: these paths are only there when the features were detected.
                    crate::dispatch::Path::Avx512 | crate::dispatch::Path::Amx => return unsafe { avx512_form($($argument),*) },
                    // SAFETY: as above.
                    crate::dispatch::Path::Avx2 => return unsafe { avx2_form($($argument),*) },
                    _ => {}
                }
            }
            portable_form($($argument),*);
        }
    };
}
use on_best_path;
