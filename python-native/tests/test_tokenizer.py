"""FastTokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mneme_native import FastTokenizer, NativeError

TEXTS = ["the cat sat", "", "a cat", "sat the <s> mat ünïcode", "the the the"]


def word_level() -> bytes:
    """A byte-level BPE with a few merges, small enough to check by hand."""
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ã", "¼", "¯"]
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    tokens = ["<s>", *alphabet, *("".join(pair) for pair in merges)]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            ],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": [list(pair) for pair in merges],
                "unk_token": None,
                "byte_fallback": False,
                "fuse_unk": False,
            },
        }
    ).encode()


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return FastTokenizer.from_json(word_level())


def test_merges_are_applied_and_undone(tokenizer: FastTokenizer) -> None:
    ids = tokenizer.encode("the cat")
    assert ids.dtype == np.uint32 and [tokenizer.token_text(int(id)) for id in ids] == ["the", "Ġcat"]
    assert tokenizer.decode(ids) == "the cat" == tokenizer.decode([int(id) for id in ids])
    assert tokenizer.token_bytes(int(ids[1])) == b" cat" and tokenizer.token_id("the") == ids[0]


def test_a_batch_gives_what_single_calls_give_from_lists_and_from_arrow(tokenizer: FastTokenizer) -> None:
    expected = [tokenizer.encode(text).tolist() for text in TEXTS]
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == expected
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        texts = pa.array(TEXTS, kind)
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
        lists = tokenizer.encode_batch_arrow(texts[1:])
        assert lists.type == pa.large_list(pa.field("item", pa.uint32(), nullable=False)) and lists.to_pylist() == expected[1:]
        assert tokenizer.decode_batch(lists) == tokenizer.decode_batch(tokenizer.encode_batch(TEXTS[1:]))
    assert tokenizer.encode_batch([]) == [] and len(tokenizer.encode_batch_arrow([])) == 0


def test_offsets_name_the_bytes_of_the_text(tokenizer: FastTokenizer) -> None:
    text = "the cat"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert [text.encode()[start:end] for start, end in offsets] == [b"the", b" cat"]
    assert len(ids) == len(offsets)


def test_text_cannot_spell_a_control_token_unless_asked(tokenizer: FastTokenizer) -> None:
    assert 0 not in tokenizer.encode("<s>") and tokenizer.is_control(0) and tokenizer.control_ids == [0]
    assert tokenizer.encode("<s>", control="recognize").tolist() == [0]
    assert tokenizer.decode([0]) == "" and tokenizer.decode([0], show_control=True) == "<s>"
    assert len(tokenizer.encode("the cat sat", tokens_max=2)) == 2


def test_bad_input_is_an_exception(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    for json_text in (b"", b"{}", b'{"model": 1}', b"\xff"):
        with pytest.raises(NativeError):
            FastTokenizer.from_json(json_text)
    with pytest.raises(NativeError, match="vocabulary"):
        tokenizer.decode([10_000])
    with pytest.raises(OverflowError):
        tokenizer.decode([-1])
    with pytest.raises(NativeError, match="control"):
        tokenizer.encode("a", control="yes")
    with pytest.raises(NativeError, match="accepts"):
        tokenizer.encode("a" * (5 << 20))
    with pytest.raises(NativeError, match="nulls"):
        tokenizer.encode_batch(pa.array(["a", None]))
    with pytest.raises(NativeError, match="strings"):
        tokenizer.encode_batch(pa.array([1]))
    with pytest.raises(TypeError):
        tokenizer.encode_batch(["a", 3])  # type: ignore[list-item]
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")
    with pytest.raises(OSError, match="nowhere"):
        FastTokenizer.from_file(tmp_path / "nowhere")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(NativeError):
        FastTokenizer.from_file(tmp_path / "cut.gguf")


@pytest.mark.skipif(not os.environ.get("MNEME_GGUF"), reason="MNEME_GGUF names no model")
def test_the_vocabulary_of_a_real_model_gives_texts_back() -> None:
    tokenizer = FastTokenizer.from_file(os.environ["MNEME_GGUF"])
    text = "Tea is at four in the garden.\n\n    def f(x): return 2 * x  # naïve 東京"
    assert tokenizer.decode(tokenizer.encode(text)) == text
