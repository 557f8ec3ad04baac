"""Vector search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mneme_native import NativeError, VectorIndex

from test_quant import address, noise


def exact(vectors: "np.typing.NDArray[np.float32]", queries: "np.typing.NDArray[np.float32]") -> "np.typing.NDArray[np.float32]":
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ vectors.T


def test_search_finds_what_a_full_sort_of_cosines_finds() -> None:
    vectors, queries = noise(3000, 96), noise(3020, 96)[3000:]
    truth = exact(vectors, queries)
    rows, scores = VectorIndex.build(vectors).search(queries, 10)
    expected = np.argsort(-truth, axis=1)[:, :10]
    hits = sum(len(set(found) & set(best)) for found, best in zip(rows, expected))
    assert hits >= 198 and rows.shape == (20, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(truth, rows.astype(np.int64), axis=1), atol=2e-3)
    assert (np.diff(scores, axis=1) <= 0).all()
    one, _ = VectorIndex.build(vectors).search(queries[0])
    np.testing.assert_array_equal(one, rows[0])


@pytest.mark.parametrize("kind", ["bool", "arrow", "uint32", "int64"])
def test_a_filter_of_any_kind_allows_only_its_rows(kind: str) -> None:
    vectors = noise(1000, 32)
    allowed = np.zeros(1000, bool)
    allowed[5::13] = True
    numbers = np.flatnonzero(allowed)
    forms = {"bool": allowed, "arrow": pa.array(allowed), "uint32": numbers.astype(np.uint32), "int64": numbers}
    rows, _ = VectorIndex.build(vectors).search(vectors[5], 20, filter=forms[kind])
    truth = exact(vectors, vectors[5:6])[0]
    truth[~allowed] = -2
    assert rows[0] == 5 and allowed[rows].all()
    assert len(set(rows) & set(np.argsort(-truth)[:20])) >= 19


def test_places_without_a_row_are_marked() -> None:
    vectors = noise(10, 8)
    index = VectorIndex.build(vectors)
    rows, scores = index.search(vectors[:2], 5, filter=np.array([3], np.uint32))
    assert rows.tolist() == [[3], [3]]
    assert index.search(vectors[:2], 0)[0].shape == (2, 0)
    assert index.search(vectors[0], 50)[0].shape == (10,)
    none, _ = index.search(vectors[0], 5, filter=np.zeros(10, bool))
    assert none.shape == (0,)


def test_the_index_is_shared_with_arrow_both_ways_without_copies() -> None:
    index = VectorIndex.build(noise(100, 24))
    batch = index.to_arrow()
    assert batch.column("codes").values.buffers()[1].address == address(index.codes)
    assert batch.column("scale").buffers()[1].address == address(index.scales)
    assert index.halves is not None
    assert batch.column("halves").values.buffers()[1].address == address(index.halves)
    again = VectorIndex.from_arrow(batch)
    assert address(again.codes) == address(index.codes) and address(again.scales) == address(index.scales)
    query = noise(24)
    expected = index.search(query)
    del index, batch
    for found, wanted in zip(again.search(query), expected):
        np.testing.assert_array_equal(found, wanted)
    part = VectorIndex.from_arrow(again.to_arrow().slice(10, 30))
    np.testing.assert_array_equal(part.codes, again.codes[10:40])


def test_vectors_come_from_arrow_too_and_codes_alone_suffice() -> None:
    vectors = noise(50, 16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16)
    index = VectorIndex.build(lists, exact=False)
    assert index.halves is None and index.nbytes == 50 * 16 + 50 * 4
    assert index.search(vectors[7], 1)[0].tolist() == [7]
    assert VectorIndex.from_arrow(index.to_arrow()).halves is None


def test_bad_vectors_queries_and_filters_are_refused() -> None:
    with pytest.raises(NativeError, match="vector 1"):
        VectorIndex.build(np.array([[1, 2], [np.nan, 1]], np.float32))
    with pytest.raises(NativeError, match="dimensions"):
        VectorIndex.build(np.zeros((3, 0), np.float32))
    index = VectorIndex.build(noise(10, 8))
    with pytest.raises(NativeError, match="9 dimensions"):
        index.search(noise(9))
    with pytest.raises(NativeError, match="finite"):
        index.search(np.full(8, np.inf, np.float32))
    wrongs: "list[Any]" = [np.zeros(9, bool), pa.array([True]), np.array([10], np.uint32), np.array([-1]), np.array([0.5]), pa.array([1])]
    for wrong in wrongs:
        with pytest.raises(NativeError, match="filter"):
            index.search(noise(8), filter=wrong)
    with pytest.raises(NativeError, match="codes"):
        VectorIndex.from_arrow(pa.record_batch({"scale": pa.array([1.0], pa.float32())}))
    with pytest.raises(TypeError):
        VectorIndex.from_arrow(42)
    with pytest.raises(OverflowError):
        index.search(noise(8), -1)
