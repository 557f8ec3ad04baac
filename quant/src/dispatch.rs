//! Which instruction set a kernel runs on: detected once, and forced in tests.

use std::sync::OnceLock;

/// A form of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Path {
    /// Plain Rust; the definition of every result.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// As [`Path::Avx512`], with AMX int8 tiles where a matrix product has enough rows for them.
    Amx,
    /// AArch64 with the dot-product extension.
    Neon,
    /// As [`Path::Neon`], with the int8 matrix-product extension for products of two rows and more.
    NeonI8mm,
}

impl Path {
    /// The fastest form that this processor runs. Detected at the first call, then free.
    pub fn best() -> Self {
        *available().last().expect("the scalar form is always there")
    }

    /// Whether this processor runs this form.
    pub fn is_available(self) -> bool {
        available().contains(&self)
    }

    /// Every form that this processor runs, the scalar one first, the fastest last.
    pub fn available() -> &'static [Self] {
        available()
    }

    /// This form when the processor runs it, the best one otherwise: an asked-for path is a wish, never a crash.
    pub(crate) fn or_best(self) -> Self {
        if self.is_available() { self } else { Self::best() }
    }
}

fn available() -> &'static [Path] {
    static AVAILABLE: OnceLock<Vec<Path>> = OnceLock::new();
    AVAILABLE.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Path> {
    let mut paths = vec![Path::Scalar];
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    if avx2 {
        paths.push(Path::Avx2);
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    if avx2 && avx512 {
        paths.push(Path::Avx512);
        if crate::gemm::amx::enable() {
            paths.push(Path::Amx);
        }
    }
    paths
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Path> {
    let mut paths = vec![Path::Scalar];
    if std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod") {
        paths.push(Path::Neon);
        if std::arch::is_aarch64_feature_detected!("i8mm") {
            paths.push(Path::NeonI8mm);
        }
    }
    paths
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Path> {
    vec![Path::Scalar]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_available_and_a_missing_path_falls_back_to_the_best() {
        assert!(Path::Scalar.is_available());
        assert_eq!(Path::available()[0], Path::Scalar);
        assert!(Path::Neon.or_best().is_available());
        assert!(Path::Amx.or_best().is_available());
    }
    #[test]
    fn the_path_that_a_run_for_another_processor_is_about_is_among_those_that_are_tested() {
        // Set by `cargo xtask cross`: without the extension, the tests would compare the scalar form with itself.
        let Ok(expected) = std::env::var("MNEME_EXPECT_PATH") else { return };
        assert!(Path::available().iter().any(|path| format!("{path:?}").eq_ignore_ascii_case(&expected)), "{expected}");
    }
}
