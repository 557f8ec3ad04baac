"""ArrowQuant, its matrices and products."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mneme_native import ArrowQuant, Hessian, NativeError, PackedWeights, Quantized, kernel_path, search_groups

FORMATS = [("int8", "row"), ("int4", 32), ("int4", 128), ("int2", 64), ("ternary", 64), ("int8", "tensor"), ("int4", "column")]


def noise(*shape: int) -> "np.typing.NDArray[np.float32]":
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def address(array: "np.typing.NDArray[np.generic]") -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("format, group", FORMATS)
def test_the_parts_in_numpy_arithmetic_are_the_dequantised_weights(format: str, group: "int | str") -> None:
    weights = noise(37, 200)
    quantized = ArrowQuant(format, group=group).quantize(weights)
    codes = quantized.unpacked_codes().astype(np.float32)
    row, column = np.indices(weights.shape)
    places = {"row": row, "tensor": 0 * row, "column": column}
    at = places[group] if isinstance(group, str) else row * -(-200 // group) + column // group
    scales = quantized.scales.astype(np.float32)
    if quantized.scheme == "symmetric":
        expected = (codes - {"int8": 128, "ternary": 1}[format]) * scales[at]
    else:
        expected = codes * scales[at] + quantized.minimums.astype(np.float32)[at]
    np.testing.assert_allclose(quantized.dequantize(), expected, rtol=1e-5, atol=1e-6)
    assert quantized.bits_per_weight == pytest.approx(8 * quantized.nbytes / weights.size)


def test_parts_are_views_of_the_same_memory_for_numpy_and_arrow() -> None:
    quantized = ArrowQuant("int4").quantize(noise(64, 128))
    first, second = quantized.codes, quantized.codes
    assert address(first) == address(second) and not first.flags.owndata and not first.flags.writeable
    assert pa.py_buffer(first).address == address(first)
    assert pa.array(first.ravel()).buffers()[1].address == address(first)
    copied = first.copy()
    del quantized, second
    np.testing.assert_array_equal(first, copied)
    with pytest.raises(ValueError):
        first[0, 0] = 1


def test_stored_parts_make_the_same_matrix_and_damaged_ones_are_refused() -> None:
    quant = ArrowQuant("int2", group=32)
    made = quant.quantize(noise(5, 70))
    again = Quantized.from_parts(quant, 5, 70, made.codes, made.scales, made.minimums)
    np.testing.assert_array_equal(made.dequantize(), again.dequantize())
    with pytest.raises(NativeError, match="codes"):
        Quantized.from_parts(quant, 6, 70, made.codes, made.scales, made.minimums)
    with pytest.raises(NativeError):
        Quantized.from_parts(quant, 1 << 40, 1 << 40, made.codes, made.scales, made.minimums)


def test_results_go_into_the_callers_array() -> None:
    quantized = ArrowQuant("int4").quantize(noise(16, 64))
    out = np.full((16, 64), np.nan, dtype=np.float32)
    assert quantized.dequantize(out=out) is out
    np.testing.assert_array_equal(out, quantized.dequantize(threads=1))
    np.testing.assert_array_equal(quantized.dequantize_rows(3, 5), out[3:5])
    wrongs: "list[np.typing.NDArray[Any]]" = [np.zeros((16, 63), np.float32), np.zeros((16, 64)), np.zeros((64, 16), np.float32).T]
    for wrong in wrongs:
        with pytest.raises(NativeError, match="out"):
            quantized.dequantize(out=wrong)
    out.flags.writeable = False
    with pytest.raises(NativeError, match="read-only"):
        quantized.dequantize(out=out)
    with pytest.raises(NativeError, match="rows"):
        quantized.dequantize_rows(3, 1 << 60)


@pytest.mark.parametrize("format", ["int8", "int4", "int2", "ternary"])
@pytest.mark.parametrize("activations", [None, "token_group", 0.05])
def test_a_product_is_that_of_the_rounded_parts(format: str, activations: "str | float | None") -> None:
    weights, x = noise(50, 320), noise(9, 320)
    packed = ArrowQuant(format).pack(weights)
    rounded = packed.round_activations(x, activations=activations)
    expected = rounded.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    np.testing.assert_allclose(packed.matmul(x, activations=activations), expected, rtol=1e-3, atol=1e-3)


def test_packed_bytes_are_a_view_and_make_the_same_product() -> None:
    packed = ArrowQuant("int4").pack(noise(32, 64))
    assert address(packed.data) == address(packed.data)
    again = PackedWeights.from_bytes(packed.data)
    x = noise(3, 64)
    np.testing.assert_array_equal(again.matmul(x), packed.matmul(x))
    with pytest.raises(NativeError):
        PackedWeights.from_bytes(packed.data[:-1].copy())


def test_arrow_lists_are_read_in_place_of_numpy_arrays() -> None:
    weights = noise(8, 64)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(weights.ravel()), 64)
    quant = ArrowQuant("int4", group=32)
    np.testing.assert_array_equal(quant.quantize(lists).codes, quant.quantize(weights).codes)
    np.testing.assert_array_equal(quant.quantize(lists[2:5]).dequantize(), quant.quantize(weights[2:5]).dequantize())
    with pytest.raises(NativeError, match="nulls"):
        quant.quantize(pa.array([None, [1.0, 2.0]], pa.list_(pa.float32(), 2)))
    with pytest.raises(NativeError, match="fixed_size_list"):
        quant.quantize(pa.array([1.0, 2.0]))


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.array([[1.0, np.nan]], np.float32), "finite"),
        (np.array([[1.0, -np.inf]], np.float32), "finite"),
        (np.zeros((4, 4)), "float32"),
        (np.zeros(4, np.float32), "two axes"),
        (np.zeros((8, 8), np.float32)[:, ::2], "row by row"),
        (np.zeros((8, 4), np.float32).T, "row by row"),
        ([[1.0]], "numpy array"),
    ],
)
def test_weights_that_cannot_be_read_in_place_or_are_not_finite_are_refused(weights: object, message: str) -> None:
    with pytest.raises(NativeError, match=message):
        ArrowQuant("int8").quantize(weights)  # type: ignore[arg-type]


def test_formats_that_mean_nothing_are_refused() -> None:
    wrongs: "list[dict[str, Any]]" = [{"format": "int3"}, {"group": 48}, {"group": "rows"}, {"fit": "best"}, {"scheme": "x"}]
    for arguments in wrongs:
        with pytest.raises(NativeError):
            ArrowQuant(**arguments)
    with pytest.raises(NativeError, match="ternary"):
        ArrowQuant("ternary", scheme="scale_min")
    with pytest.raises(TypeError):
        ArrowQuant(group=[1])  # type: ignore[arg-type]
    assert repr(ArrowQuant("int4", group=32)) == "ArrowQuant('int4', group=32, scheme='scale_min', fit='least_squares')"
    assert ArrowQuant("int8") == ArrowQuant("int8", group="row", scheme="symmetric", fit="range")


def test_wrong_shapes_of_activations_and_an_output_that_is_the_input_are_refused() -> None:
    packed = ArrowQuant("int8").pack(noise(64, 64))
    with pytest.raises(NativeError, match="63 columns"):
        packed.matmul(noise(2, 63))
    x = noise(64, 64)
    with pytest.raises(NativeError, match="input"):
        packed.matmul(x, out=x)
    with pytest.raises(NativeError, match="finite"):
        packed.matmul(np.full((1, 64), np.nan, np.float32))
    with pytest.raises(NativeError, match="scale"):
        packed.matmul(x, activations=0.0)


def test_empty_matrices_are_fine() -> None:
    for shape in ((0, 64), (3, 0), (0, 0)):
        quantized = ArrowQuant("int4").quantize(np.zeros(shape, np.float32))
        assert quantized.dequantize().shape == shape
        assert quantized.codes.size == 0 and quantized.minimums.size == 0
    assert ArrowQuant("int4").pack(np.zeros((3, 0), np.float32)).matmul(np.zeros((2, 0), np.float32)).tolist() == [[0.0] * 3] * 2


def test_gptq_changes_the_layers_outputs_less_than_rounding_does() -> None:
    weights, x = noise(48, 96), noise(400, 12) @ noise(12, 96)
    hessian = Hessian(96)
    hessian.add(x[:200])
    hessian.add(x[200:])
    assert hessian.tokens == 400
    np.testing.assert_allclose(hessian.to_numpy(), 2 * x.T @ x / 400, rtol=1e-3, atol=1e-2)
    quant = ArrowQuant("int4", group=32)
    plain, chosen = quant.quantize(weights).dequantize(), quant.gptq(weights, hessian).dequantize()
    assert hessian.output_error(chosen - weights) < 0.7 * hessian.output_error(plain - weights)
    with pytest.raises(NativeError, match="inputs"):
        quant.gptq(noise(4, 95), hessian)
    with pytest.raises(NativeError, match="damping"):
        quant.gptq(weights, hessian, damping=float("nan"))
    with pytest.raises(NativeError):
        Hessian(0)


def test_the_group_search_is_the_same_for_a_seed_and_raises_what_the_fitness_raises() -> None:
    def fitness(genes: "list[int]") -> float:
        return sum(abs(gene - (32 if place % 2 else 128)) for place, gene in enumerate(genes))

    heard: "list[int]" = []
    first = search_groups(fitness, 6, generations=6, seed=3, progress=lambda generation, count, best: heard.append(count))
    assert first == search_groups(fitness, 6, generations=6, seed=3)
    assert first[1] == fitness(first[0]) < fitness([64] * 6) and heard[-1] >= 50

    def broken(genes: "list[int]") -> float:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        search_groups(broken, 6)
    with pytest.raises(NativeError, match="setting"):
        search_groups(fitness, 0)


def test_the_interpreter_is_released_during_long_work() -> None:
    weights, ticks, stop = noise(4096, 4096), [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    other = threading.Thread(target=tick)
    other.start()
    quant = ArrowQuant("int4", fit="least_squares")
    before = ticks[0]
    quant.quantize(weights, threads=1)
    during = ticks[0] - before
    stop.set()
    other.join()
    # With the interpreter held not one tick would pass within the call.
    assert during >= 3


def test_the_kernels_say_what_they_run_on() -> None:
    assert kernel_path() in {"scalar", "avx2", "avx512", "amx", "neon", "neoni8mm"}
