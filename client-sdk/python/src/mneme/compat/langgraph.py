"""LangGraph's long-term store, kept by the Mneme daemon: pass it as `store=` when a graph is compiled.

    from mneme.compat.langgraph import MnemeStore

    store = MnemeStore()
    store.put(("users", "ada"), "tea", {"text": "Ada drinks her tea at four"})
    store.search(("users",), query="when does Ada drink tea?")

Needs the package `langgraph`. What differs from LangGraph's own stores, on purpose:

- A search with a `query` is Mneme's recall: by words and by meaning, without an embedding function of yours. `index=[...]` says
  which fields are searched, `index=False` leaves an item out of searches with a query.
- An item that is put again supersedes the former one, which stays readable for `as_of`; `delete` forgets all of it.
- Items have no time to live: what is remembered is forgotten when somebody says so.
- Namespaces lie below `langgraph/` in the daemon, so that they can be exported and forgotten as a whole.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import datetime
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        get_text_at_path,
        tokenize_path,
    )
except ImportError as error:  # pragma: no cover - the test suite has it
    raise ImportError("mneme.compat.langgraph needs the package langgraph: pip install 'mneme[langgraph]'") from error

from .. import _types as types
from .. import errors
from ..client import Client
from ._shared import from_notes, hashed, recall_in, segment, to_notes, unsegment

ROOT = "langgraph"
NAMESPACE_BYTES_MAX = 128
TEXT_BYTES_MAX = 65_536
RECALL_MAX = 100
"""Hits that are asked for at once when filters may drop some."""
OVERLAP_MS = 2_000
"""New items are looked for from this long before the last one seen: ids of the same moment are not ordered."""

Path = Tuple[str, ...]


class MnemeStore(BaseStore):
    """LangGraph's `BaseStore` over the Mneme daemon. Safe to use from several threads."""

    supports_ttl = False

    def __init__(self, client: Optional[Client] = None, *, root: str = ROOT) -> None:
        self._client = Client(client="langgraph") if client is None else client
        self._root = root
        self._lock = threading.RLock()
        self._ids: Dict[str, Dict[str, str]] = {}
        self._seen: Dict[str, str] = {}
        self._paths: Dict[str, Path] = {}

    def batch(self, ops: Iterable[Op]) -> List[Result]:
        """Carries the operations out in order."""
        with self._lock:
            return [self._one(op) for op in ops]

    async def abatch(self, ops: Iterable[Op]) -> List[Result]:
        """The same, on a thread beside the event loop."""
        return await asyncio.to_thread(self.batch, list(ops))

    def _one(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            memory = self._find(self._name(op.namespace), op.key)
            return None if memory is None else _item(op.namespace, op.key, memory)
        if isinstance(op, PutOp):
            self._put(op)
            return None
        if isinstance(op, SearchOp):
            return self._search(op)
        if isinstance(op, ListNamespacesOp):
            return self._list(op)
        raise ValueError(f"unknown operation {type(op).__name__}")

    # Names.

    def _name(self, path: Path) -> str:
        name = "/".join([self._root, *(segment(part) for part in path)])
        if len(name.encode()) > NAMESPACE_BYTES_MAX:
            name = f"{self._root}/{hashed('/'.join(segment(part) for part in path))}"
        self._paths[name] = tuple(path)
        return name

    def _all_paths(self) -> Iterator[Tuple[str, Path]]:
        """Every namespace below the root that holds something, with LangGraph's name for it."""
        for name, _ in self._client.namespaces().namespaces:
            if not name.startswith(self._root + "/"):
                continue
            path = self._paths.get(name)
            if path is None:
                parts = [unsegment(part) for part in name[len(self._root) + 1 :].split("/")]
                if None in parts:
                    # A hashed name is told by what lies in it.
                    page = self._client.export_page(namespace=name, limit=1).memories
                    kept = from_notes("lg.namespace", page[0].metadata) if page else None
                    if kept is None:
                        continue
                    parts = list(kept)
                path = tuple(str(part) for part in parts)
                self._paths[name] = path
            yield name, path

    # Items.

    def _find(self, name: str, key: str) -> Optional[types.MemoryView]:
        for attempt in range(2):
            if attempt == 1 or key not in self._ids.get(name, {}):
                self._look_for_new(name)
            identifier: Optional[str] = self._ids.get(name, {}).get(key)
            while identifier is not None:
                try:
                    memory = self._client.get(identifier)
                except errors.NotFound:
                    self._ids[name].pop(key, None)
                    break
                if memory.superseded_by is None:
                    self._ids[name][key] = memory.id
                    return memory
                identifier = memory.superseded_by
            if attempt == 0 and identifier is None and key not in self._ids.get(name, {}):
                return None
        return None

    def _look_for_new(self, name: str) -> None:
        """Reads what was added since the last look: ids are in the order of their time."""
        known = self._ids.setdefault(name, {})
        after = self._seen.get(name)
        while True:
            page = self._client.export_page(namespace=name, after=after, limit=1_000)
            for memory in page.memories:
                key = memory.metadata.get("lg.key")
                if key is not None and memory.superseded_by is None:
                    known[key] = memory.id
                self._seen[name] = max(_earlier(memory.id), self._seen.get(name, ""))
            if page.next is None:
                return
            after = page.next

    def _put(self, op: PutOp) -> None:
        name = self._name(op.namespace)
        former = self._find(name, op.key)
        if op.value is None:
            if former is not None:
                self._client.forget({"thread": {"namespace": name, "thread": _thread(op.key)}})
                self._ids[name].pop(op.key, None)
            return
        notes = {"lg.key": op.key, **to_notes("lg.value", op.value), **to_notes("lg.namespace", list(op.namespace))}
        if op.index is False:
            notes["lg.index"] = "no"
        if former is not None:
            if from_notes("lg.value", former.metadata) == op.value and ("lg.index" in former.metadata) == ("lg.index" in notes):
                return
            notes["lg.created"] = former.metadata.get("lg.created", former.recorded_at)
        by: types.RememberParams = {
            "text": _text(op),
            "namespace": name,
            "kind": "fact",
            "thread": _thread(op.key),
            "source": "langgraph",
            "metadata": notes,
        }
        if former is None:
            kept = self._client.remember(**by)
        else:
            # The same words with another value would be taken for the same memory.
            if former.text == by["text"]:
                notes["lg.revision"] = uuid.uuid4().hex
                by["speaker"] = f"revision {notes['lg.revision']}"
            kept = self._client.supersede(former.id, by)
        self._ids.setdefault(name, {})[op.key] = kept.id

    # Searches.

    def _search(self, op: SearchOp) -> List[SearchItem]:
        depth = len(op.namespace_prefix)
        within = [(name, path) for name, path in self._all_paths() if path[:depth] == tuple(op.namespace_prefix)]
        if not within:
            return []
        paths = dict(within)
        found = self._recalled(op, paths) if op.query else self._listed(paths)
        fitting = [item for item in found if _fits(item.value, op.filter)]
        return fitting[op.offset : op.offset + op.limit]

    def _recalled(self, op: SearchOp, paths: Mapping[str, Path]) -> List[SearchItem]:
        wanted = RECALL_MAX if op.filter else min(RECALL_MAX, op.offset + op.limit)
        items = []
        for hit in recall_in(self._client, op.query or "", list(paths), limit=max(1, wanted)):
            key = hit.memory.metadata.get("lg.key")
            if key is not None and "lg.index" not in hit.memory.metadata:
                items.append(_found(paths[hit.memory.namespace], key, hit.memory, hit.score))
        return items

    def _listed(self, paths: Mapping[str, Path]) -> List[SearchItem]:
        items = []
        for name, path in paths.items():
            for memory in self._client.export(name):
                key = memory.metadata.get("lg.key")
                if key is not None and memory.superseded_by is None:
                    items.append(_found(path, key, memory, None))
        return items

    def _list(self, op: ListNamespacesOp) -> List[Path]:
        conditions = op.match_conditions or ()
        paths = {path for _, path in self._all_paths() if all(_matches(path, condition) for condition in conditions)}
        if op.max_depth is not None:
            paths = {path[: op.max_depth] for path in paths}
        return sorted(paths)[op.offset : op.offset + op.limit]


def _thread(key: str) -> str:
    return segment(key)


def _earlier(identifier: str) -> str:
    """An id that lies before all that were made shortly before this one: UUIDs of version 7 start with their milliseconds."""
    number = uuid.UUID(identifier).int
    moment = max(0, (number >> 80) - OVERLAP_MS)
    return str(uuid.UUID(int=moment << 80 | 7 << 76 | 2 << 62))


def _text(op: PutOp) -> str:
    if op.index is False:
        text = op.key
    elif op.index is None:
        text = _render(op.value)
    else:
        pieces = [piece for path in op.index for piece in get_text_at_path(op.value, tokenize_path(path))]
        text = "\n".join(pieces)
    text = text.strip() or op.key
    return text.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")


def _render(value: Any) -> str:
    """A value as words: what a person would read of it."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(next(iter(value.values())), str):
            return str(next(iter(value.values())))
        return "\n".join(f"{name}: {_render(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_render(entry) for entry in value)
    return str(value)


def _times(memory: types.MemoryView) -> Dict[str, datetime]:
    created = memory.metadata.get("lg.created", memory.recorded_at)
    return {"created_at": _moment(created), "updated_at": _moment(memory.recorded_at)}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _value(memory: types.MemoryView) -> Dict[str, Any]:
    value = from_notes("lg.value", memory.metadata)
    # A secret that was taken out may have broken the value: its words are left.
    return value if isinstance(value, dict) else {"text": memory.text}


def _item(path: Path, key: str, memory: types.MemoryView) -> Item:
    return Item(value=_value(memory), key=key, namespace=tuple(path), **_times(memory))


def _found(path: Path, key: str, memory: types.MemoryView, score: Optional[float]) -> SearchItem:
    return SearchItem(value=_value(memory), key=key, namespace=tuple(path), score=score, **_times(memory))


def _matches(path: Path, condition: MatchCondition) -> bool:
    pattern = tuple(condition.path)
    if len(path) < len(pattern):
        return False
    part = path[: len(pattern)] if condition.match_type == "prefix" else path[len(path) - len(pattern) :]
    return all(wanted in ("*", given) for wanted, given in zip(pattern, part))


def _fits(value: Mapping[str, Any], wanted: Optional[Mapping[str, Any]]) -> bool:
    return all(_compare(value.get(name), entry) for name, entry in (wanted or {}).items())


def _compare(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_operate(value, name, entry) for name, entry in wanted.items())
        return isinstance(value, dict) and all(_compare(value.get(name), entry) for name, entry in wanted.items())
    if isinstance(wanted, (list, tuple)):
        return isinstance(value, (list, tuple)) and len(value) == len(wanted) and all(map(_compare, value, wanted))
    return bool(value == wanted)


def _operate(value: Any, name: str, wanted: Any) -> bool:
    if name == "$eq":
        return bool(value == wanted)
    if name == "$ne":
        return bool(value != wanted)
    comparisons = {
        "$gt": lambda a, b: a > b,
        "$gte": lambda a, b: a >= b,
        "$lt": lambda a, b: a < b,
        "$lte": lambda a, b: a <= b,
    }
    if name not in comparisons:
        raise ValueError(f"unknown operator {name}")
    try:
        return bool(comparisons[name](float(value), float(wanted)))
    except (TypeError, ValueError):
        # An item without the field does not fit; it is no fault of the search.
        return False
