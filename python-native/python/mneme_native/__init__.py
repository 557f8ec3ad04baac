"""Few-bit weights, fast tokenizers, weight files and int8 vector search, in Rust, on numpy and Arrow data.

    import numpy as np
    from mneme_native import ArrowQuant

    weights = np.random.default_rng(0).standard_normal((1536, 576), dtype=np.float32)
    packed = ArrowQuant("int4", group=64).quantize(weights).pack()
    product = packed.matmul(np.ones((4, 576), dtype=np.float32))

Input that is refused raises `NativeError`, a `ValueError` that says what was attempted, the value and the bound. Long work
releases the interpreter, so that other threads run.
"""

from ._native import (
    ArrowQuant,
    FastTokenizer,
    Hessian,
    NativeError,
    PackedWeights,
    Quantized,
    VectorIndex,
    WeightFile,
    convert_weights,
    kernel_path,
    search_groups,
)

__all__ = [
    "ArrowQuant",
    "FastTokenizer",
    "Hessian",
    "NativeError",
    "PackedWeights",
    "Quantized",
    "VectorIndex",
    "WeightFile",
    "convert_weights",
    "kernel_path",
    "search_groups",
]
