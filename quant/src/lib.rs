//! ArrowQuant: codecs and SIMD kernels for 2, 4 and 8 bit weights.
