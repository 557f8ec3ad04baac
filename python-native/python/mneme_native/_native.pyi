"""Types of the Rust module. Arrays are C-contiguous; what would need a silent copy is refused."""

from os import PathLike
from typing import Any, Callable, Optional, Protocol, Sequence, Union

import numpy as np
from numpy.typing import NDArray

class _ArrowArray(Protocol):
    """Anything with the Arrow C data interface, such as a pyarrow array."""

    def __arrow_c_array__(self, requested_schema: Optional[object] = None, /) -> tuple[object, object]: ...

_Floats = Union[NDArray[np.float32], _ArrowArray]
_Texts = Union[Sequence[str], _ArrowArray]
_Path = Union[str, "PathLike[str]"]
_Ids = Union[NDArray[np.uint32], Sequence[int]]

class NativeError(ValueError):
    """Input that was refused."""

def kernel_path() -> str:
    """The instruction set that the kernels run on: scalar, avx2, avx512, amx, neon or neoni8mm."""

class ArrowQuant:
    """A format for few-bit weights. `format` is int8, int4, int2 or ternary."""

    def __init__(
        self,
        format: str = "int4",
        *,
        group: Union[int, str, None] = None,
        scheme: Optional[str] = None,
        fit: Optional[str] = None,
    ) -> None:
        """`group`: 32, 64, 128 or 256 weights of a row, or tensor, row, column. `scheme`: symmetric or scale_min. `fit`: range,
        least_squares or hqq. Defaults: int8 by row, symmetric, by range; ternary symmetric; the others groups of 64 with
        minimums; all but int8 by least squares."""
    @property
    def format(self) -> str: ...
    @property
    def group(self) -> Union[int, str]: ...
    @property
    def scheme(self) -> str: ...
    @property
    def fit(self) -> str: ...
    def bits_per_weight(self, rows: int, columns: int) -> float:
        """Scales, minimums and padding counted."""
    def quantize(self, weights: _Floats, *, threads: Optional[int] = None) -> Quantized:
        """Quantises a matrix [rows, columns]. The input is read in place."""
    def gptq(self, weights: _Floats, hessian: Hessian, *, damping: float = 0.01) -> Quantized:
        """Quantises [outputs, inputs] so that the layer's outputs change least on the data that the Hessian saw."""
    def pack(self, weights: _Floats, *, threads: Optional[int] = None) -> PackedWeights:
        """Quantises, and orders the codes for products."""

class Quantized:
    """A matrix as packed codes, 16-bit scales and minimums. The three arrays are views: nothing is copied."""

    @staticmethod
    def from_parts(
        quant: ArrowQuant,
        rows: int,
        columns: int,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float16],
        minimums: Optional[NDArray[np.float16]] = None,
    ) -> Quantized:
        """Checks and copies stored parts."""
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def format(self) -> str: ...
    @property
    def group(self) -> Union[int, str]: ...
    @property
    def scheme(self) -> str: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def codes(self) -> NDArray[np.uint8]:
        """Packed, lowest bits first, [rows, bytes of a row]."""
    @property
    def scales(self) -> NDArray[np.float16]: ...
    @property
    def minimums(self) -> NDArray[np.float16]:
        """Empty when symmetric."""
    def dequantize(self, *, out: Optional[NDArray[np.float32]] = None, threads: Optional[int] = None) -> NDArray[np.float32]:
        """All weights, into `out` when given."""
    def dequantize_rows(self, first: int, end: int, *, out: Optional[NDArray[np.float32]] = None) -> NDArray[np.float32]:
        """Rows first..end."""
    def unpacked_codes(self) -> NDArray[np.uint8]:
        """One byte for each code."""
    def pack(self) -> PackedWeights:
        """The same codes in the order of the kernels (a copy)."""

class PackedWeights:
    """A matrix [outputs, inputs] in kernel order."""

    @staticmethod
    def from_bytes(data: NDArray[np.uint8]) -> PackedWeights:
        """Checks and copies what `data` gave."""
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def data(self) -> NDArray[np.uint8]:
        """The packed bytes: a view."""
    def matmul(
        self,
        x: _Floats,
        *,
        out: Optional[NDArray[np.float32]] = None,
        activations: Union[str, float, None] = None,
        threads: Optional[int] = None,
    ) -> NDArray[np.float32]:
        """`x [m, inputs]` times the weights: [m, outputs], in integer arithmetic. `activations`: token (a scale for each row),
        token_group (for each row and group) or a scale that calibration found."""
    def round_activations(self, x: _Floats, *, activations: Union[str, float, None] = None) -> NDArray[np.float32]:
        """What the 8-bit codes of `x` stand for: to measure a scaling's error."""
    def dequantize(self) -> NDArray[np.float32]: ...

class Hessian:
    """The curvature of a layer's squared error: the mean of 2 x x^T."""

    def __init__(self, inputs: int) -> None: ...
    def add(self, activations: _Floats, *, weight: float = 1.0) -> None:
        """Adds inputs [tokens, inputs] of the layer."""
    @property
    def inputs(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    def output_error(self, difference: _Floats) -> float:
        """The layer's mean squared output error when its weights change by this, summed over outputs."""
    def to_numpy(self) -> NDArray[np.float64]: ...

def search_groups(
    fitness: Callable[[list[int]], Optional[float]],
    places: int,
    *,
    choices: list[int] = ...,
    start: int = 64,
    mean_min: float = 64.0,
    population: int = 50,
    kept: int = 10,
    generations: int = 10,
    crossovers: int = 25,
    mutation: float = 0.1,
    seed: int = 0,
    progress: Optional[Callable[[int, int, Optional[float]], Any]] = None,
) -> tuple[list[int], float]:
    """Searches a choice (a group length) for each place by evolution (Q-DiT); the same seed gives the same search. `fitness` is the
    loss of a choice for each place, None rules it out; `progress` hears generation, evaluations and the best loss."""

class FastTokenizer:
    """BPE, WordPiece and Unigram tokenizers. Text from outside cannot spell control tokens unless `control` is recognize."""

    @staticmethod
    def from_json(json: bytes) -> FastTokenizer:
        """From the bytes of a tokenizer.json."""
    @staticmethod
    def from_file(path: _Path) -> FastTokenizer:
        """From a tokenizer.json, or the vocabulary inside a GGUF file."""
    def encode(
        self, text: str, *, control: str = "text", template: bool = False, tokens_max: Optional[int] = None
    ) -> NDArray[np.uint32]: ...
    def encode_with_offsets(
        self, text: str, *, control: str = "text", template: bool = False, tokens_max: Optional[int] = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """Ids, and for each the bytes of the UTF-8 text that it covers, [tokens, 2]."""
    def encode_batch(
        self, texts: _Texts, *, control: str = "text", template: bool = False, tokens_max: Optional[int] = None
    ) -> list[NDArray[np.uint32]]:
        """Many texts over all cores. Strings are read in place."""
    def encode_batch_arrow(
        self, texts: _Texts, *, control: str = "text", template: bool = False, tokens_max: Optional[int] = None
    ) -> Any:
        """As `encode_batch`, as a pyarrow LargeListArray of uint32."""
    def decode(self, ids: _Ids, *, show_control: bool = False) -> str: ...
    def decode_batch(self, batch: Union[Sequence[_Ids], _ArrowArray], *, show_control: bool = False) -> list[str]: ...
    def token_bytes(self, id: int) -> Optional[bytes]: ...
    def token_id(self, text: str) -> Optional[int]: ...
    def token_text(self, id: int) -> Optional[str]: ...
    def is_control(self, id: int) -> bool: ...
    @property
    def control_ids(self) -> list[int]: ...
    @property
    def vocabulary_size(self) -> int: ...

class WeightFile:
    """Tensors of a mapped Parquet V2, GGUF or safetensors file. Views alias the mapping: nothing is read before it is used."""

    @staticmethod
    def open(path: _Path) -> WeightFile: ...
    @property
    def format(self) -> str: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def attachments(self) -> dict[str, NDArray[np.uint8]]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: str) -> bool: ...
    def shape(self, name: str) -> list[int]: ...
    def dtype(self, name: str) -> str: ...
    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes: a view."""
    def array(self, name: str) -> NDArray[Any]:
        """A tensor of a type that numpy has: a view, perhaps unaligned."""
    def decode(self, name: str, *, out: Optional[NDArray[np.float32]] = None) -> NDArray[np.float32]:
        """A tensor of any type as float32."""
    def quantized(self, name: str) -> Quantized:
        """A quantised tensor, copied out of the file."""
    def codes(self, name: str) -> NDArray[np.uint8]:
        """Packed codes of a quantised tensor: a view."""
    def scales(self, name: str) -> NDArray[np.float16]: ...
    def minimums(self, name: str) -> NDArray[np.float16]: ...
    def verify(self, name: str) -> None:
        """Reads a tensor and compares it with its stored hash (Parquet V2)."""
    def to_arrow(self) -> Any:
        """All tensors as a pyarrow RecordBatch whose binary columns alias the mapping."""

def convert_weights(
    source: _Path,
    destination: _Path,
    *,
    quantize: Optional[ArrowQuant] = None,
    embedding: Optional[ArrowQuant] = None,
    huggingface: bool = False,
    threads: Optional[int] = None,
) -> dict[str, Any]:
    """Writes a file of any known format as Parquet V2, one tensor at a time. `embedding` is the format of embedding and output
    layer (int8 unless given); `huggingface` gives llama-type GGUF tensors their Hugging Face names and row order."""

class VectorIndex:
    """Exact search by int8 dot products; the best are ranked again by half-precision copies."""

    @staticmethod
    def build(vectors: _Floats, *, normalize: bool = True, exact: bool = True) -> VectorIndex:
        """From [rows, dimensions] (numpy float32, or Arrow fixed_size_list<float>). `normalize` makes scores cosines; `exact` keeps the
        half-precision copies (2 bytes a component)."""
    @staticmethod
    def from_arrow(batch: Any) -> VectorIndex:
        """Aliases what `to_arrow` gave: nothing is copied."""
    def to_arrow(self) -> Any:
        """A pyarrow RecordBatch (codes, scale, halves) that aliases the index."""
    def __len__(self) -> int: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def codes(self) -> NDArray[np.int8]: ...
    @property
    def scales(self) -> NDArray[np.float32]: ...
    @property
    def halves(self) -> Optional[NDArray[np.float16]]: ...
    def search(
        self,
        query: _Floats,
        k: int = 10,
        *,
        filter: Union[NDArray[np.bool_], NDArray[np.uint32], NDArray[np.int64], _ArrowArray, None] = None,
        normalize: bool = True,
        threads: Optional[int] = None,
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Rows and scores of the best `k`, best first. `query` is one vector (results [found]) or [queries, dimensions] (results
        [queries, found], places without a row are 2**32 - 1 with a score of -inf). `filter` allows rows: booleans for each row, or
        row numbers."""
