"""Weight files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mneme_native import ArrowQuant, NativeError, WeightFile, convert_weights

from test_quant import address, noise

TENSORS = {"model.embed_tokens.weight": (96, 64), "layer.weight": (64, 130), "layer.norm": (64,)}


def tensor(name: str) -> "np.typing.NDArray[np.float32]":
    """No two tensors hold the same bytes."""
    return noise(*TENSORS[name]) * np.float32(1 + list(TENSORS).index(name))


@pytest.fixture()
def source(tmp_path: Path) -> Path:
    """A safetensors file: the length of a JSON header, the header, the bytes."""
    header, data = {}, b""
    for name, shape in TENSORS.items():
        values = tensor(name).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def mapped(array: "np.typing.NDArray[np.generic]", path: Path) -> bool:
    """Whether an array lies inside of a mapping of the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address(array) and address(array) + array.nbytes <= end:
                return True
    return False


def test_tensors_are_views_of_the_mapped_file(source: Path) -> None:
    file = WeightFile.open(source)
    assert file.format == "safetensors" and sorted(file.names) == sorted(TENSORS) and len(file) == 3
    for name, shape in TENSORS.items():
        array = file.array(name)
        assert array.shape == shape and mapped(array, source) and not array.flags.writeable
        np.testing.assert_array_equal(array, tensor(name))
        np.testing.assert_array_equal(file.decode(name), tensor(name))
        assert mapped(file.raw(name), source)
    array = file.array("layer.weight")
    del file
    assert mapped(array, source)
    np.testing.assert_array_equal(array, tensor("layer.weight"))


def test_a_converted_file_gives_views_to_numpy_and_arrow_and_the_weights_back(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    report = convert_weights(source, path, quantize=ArrowQuant("int4", group=64))
    assert report["tensors"] == 3 and report["quantized"] == 2 and report["file_bytes"] == path.stat().st_size
    file = WeightFile.open(path)
    assert file.format == "parquet_v2" and "quantize" in file.metadata
    assert file.dtype("layer.weight") == "int4" and file.dtype("model.embed_tokens.weight") == "int8"
    expected = ArrowQuant("int4", group=64).quantize(tensor("layer.weight"))
    np.testing.assert_array_equal(file.codes("layer.weight").reshape(64, 65), expected.codes)
    np.testing.assert_array_equal(file.scales("layer.weight"), expected.scales)
    for part in (file.codes("layer.weight"), file.scales("layer.weight"), file.minimums("layer.weight"), file.array("layer.norm")):
        assert mapped(part, path)
    np.testing.assert_array_equal(file.quantized("layer.weight").dequantize(), file.decode("layer.weight"))
    batch = file.to_arrow()
    assert batch.schema.names == ["name", "dtype", "shape", "elements", "codes", "scales", "minimums"]
    row = file.names.index("layer.weight")
    shared = [buffer.address for buffer in batch.column("codes").buffers()[2:]]
    assert shared == [address(file.codes(name) if file.dtype(name).startswith("int") else file.raw(name)) for name in file.names]
    assert batch.column("shape")[row].as_py() == [64, 130]
    batch.validate(full=True)
    del file
    assert batch.column("codes")[row].as_buffer().to_pybytes() == expected.codes.tobytes()
    assert isinstance(batch, pa.RecordBatch)


def test_a_flipped_bit_is_found_by_the_hash(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    convert_weights(source, path)
    data = bytearray(path.read_bytes())
    at = bytes(data).find(tensor("layer.norm").tobytes())
    data[at + 5] ^= 1
    path.unlink()
    path.write_bytes(data)
    file = WeightFile.open(path)
    file.verify("layer.weight")
    with pytest.raises(NativeError, match="hash"):
        file.verify("layer.norm")


def test_files_and_names_that_are_wrong_raise_what_python_expects(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        WeightFile.open(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no weights at all, only text")
    with pytest.raises(NativeError):
        WeightFile.open(tmp_path / "text")
    with pytest.raises(NativeError):
        WeightFile.open(tmp_path)
    (tmp_path / "short").write_bytes(source.read_bytes()[:-1])
    with pytest.raises(NativeError):
        WeightFile.open(tmp_path / "short")
    file = WeightFile.open(source)
    for call in (file.raw, file.array, file.decode, file.shape, file.codes):
        with pytest.raises(KeyError, match="nothing"):
            call("nothing")
    with pytest.raises(NativeError, match="not quantised"):
        file.codes("layer.norm")
    with pytest.raises(NativeError, match="hashes"):
        file.verify("layer.norm")
    with pytest.raises(NativeError):
        convert_weights(source, tmp_path / "no" / "folder")
