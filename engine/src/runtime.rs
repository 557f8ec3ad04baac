//! How libtorch is set up in this process: threads, device and number format.

use std::num::NonZero;

use tch::{Device, Kind};

pub use mneme_engine_api::process::ENVIRONMENT;

/// How the generator's weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// In the compute kind; the only form that can be trained.
    #[default]
    Dense,
    /// 8-bit codes, a scale for each output.
    Int8,
    /// 4-bit codes in groups of 32, as in the file that they come from; the head in 8 bits.
    Int4,
}

/// What the networks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runtime {
    /// The device of all tensors.
    pub device: Device,
    /// The kind of weights and of matrix products; sums, norms and softmax stay in f32.
    pub compute: Kind,
    /// How the generator's weights are kept.
    pub precision: Precision,
    /// Threads of one operation.
    pub threads: usize,
}

impl Runtime {
    /// Sets libtorch's threads and picks device and number format for this machine. Call once, before any tensor.
    ///
    /// `threads`: 0 takes one for each processor. `precision`: `None` takes the fastest for this machine, which on a processor is
    /// `packed`, the smallest form that loses nothing: decoding is bound by the bytes of the weights, short windows by the cost
    /// of libtorch's operations, which packed networks do without.
    pub fn start(threads: usize, precision: Option<Precision>, packed: Precision) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { processors } else { threads.min(processors) };
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let device = Device::cuda_if_available();
        let fast = device.is_cuda() || fast_bf16();
        let precision = precision.unwrap_or(if device.is_cuda() { Precision::Dense } else { packed });
        let compute = if fast && precision == Precision::Dense { Kind::BFloat16 } else { Kind::Float };
        Self { device, compute, precision, threads }
    }

    /// The same with dense weights, as training needs them.
    #[must_use]
    pub fn trainable(self) -> Self {
        let compute = if self.device.is_cuda() || fast_bf16() { Kind::BFloat16 } else { Kind::Float };
        Self { precision: Precision::Dense, compute, ..self }
    }
}

/// Whether bf16 matrix products run on matrix units here: oneDNN emulates them elsewhere, slower than f32.
fn fast_bf16() -> bool {
    let flags = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    first.split_ascii_whitespace().any(|flag| flag == "amx_bf16" || flag == "avx512_bf16")
}
