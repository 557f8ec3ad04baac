"""What the stand-ins share: names that a namespace can carry, and values of any length in notes."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .. import _types as types
from ..client import Client

NOTE_BYTES_MAX = 4000
"""A note of a memory has at most 4,096 bytes, its name included."""
NOTES_MAX = 56
"""Notes that one value may take: a memory has 64."""
SEGMENT_BYTES_MAX = 48
"""A longer part of a name is hashed: a namespace has at most 128 bytes."""
HASHED = "@sha256:"
RECALL_NAMESPACES_MAX = 64
"""Namespaces that one recall takes."""


def segment(value: str) -> str:
    """A part of a namespace, readable where it can be; `unsegment` reverses it unless it was hashed."""
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda match: "".join(f"@{byte:02x}" for byte in match[0].encode()), value)
    if not safe or len(safe) > SEGMENT_BYTES_MAX:
        return hashed(value)
    return safe


def hashed(value: str) -> str:
    return HASHED + hashlib.sha256(value.encode()).hexdigest()[:32]


def unsegment(text: str) -> Optional[str]:
    """The value behind a part; `None` when it was hashed."""
    if text.startswith(HASHED):
        return None
    raw = re.sub(rb"@([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return raw.decode("utf-8", "replace")


def to_notes(name: str, value: Any) -> Dict[str, str]:
    """A JSON value as notes `name.0`, `name.1`, ...; ValueError when it is too long."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    pieces = [text[start : start + NOTE_BYTES_MAX] for start in range(0, len(text), NOTE_BYTES_MAX)]
    if len(pieces) > NOTES_MAX:
        raise ValueError(f"value has {len(text)} bytes of JSON, at most {NOTES_MAX * NOTE_BYTES_MAX} can be kept")
    return {f"{name}.{place}": piece for place, piece in enumerate(pieces)}


def from_notes(name: str, notes: Mapping[str, str]) -> Any:
    """The value of `to_notes`; `None` when there is none or it cannot be read (any more)."""
    pieces: List[str] = []
    while (piece := notes.get(f"{name}.{len(pieces)}")) is not None:
        pieces.append(piece)
    if not pieces:
        return None
    try:
        return json.loads("".join(pieces))
    except ValueError:
        return None


def recall_in(
    client: Client, query: str, namespaces: Sequence[str], *, limit: int, rerank: bool = False, filter: Optional[types.Filter] = None
) -> List[types.HitView]:
    """The best hits of any number of namespaces, best first.

    More than one recall takes are asked for in several, merged by score. Scores are made for comparison within one recall:
    between several the order is a fair one, not an exact one.
    """
    hits: List[types.HitView] = []
    for start in range(0, len(namespaces), RECALL_NAMESPACES_MAX):
        some = list(namespaces[start : start + RECALL_NAMESPACES_MAX])
        hits += client.recall(query, namespaces=some, limit=limit, rerank=rerank, filter=filter).hits
    if len(namespaces) > RECALL_NAMESPACES_MAX:
        hits.sort(key=lambda hit: -hit.score)
    return hits[:limit]
