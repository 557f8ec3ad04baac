"""A stand-in for mem0's `Memory`: the same calls and shapes, kept by the Mneme daemon.

    from mneme.compat.mem0 import Memory

What differs, on purpose:

- Messages are kept word for word. `infer`, `prompt` and `memory_type` are taken and have no effect: no model rewrites
  what was said.
- A deleted memory is gone with its history: Mneme forgets, it does not mark.
- Scopes (`user_id`, `agent_id`, `run_id`) are namespaces of the daemon, so a recall never crosses them.
- Metadata that is not text is kept as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .. import _types as types
from .. import errors
from ..client import Client
from ._shared import recall_in

Message = Union[str, Mapping[str, Any]]

ROOT = "mem0"
"""The namespace above all scopes."""
SCOPE_PARTS = (("user_id", "u"), ("agent_id", "a"), ("run_id", "r"))
SCOPE_BYTES_MAX = 32
"""A longer name of a user, agent or run is hashed: a namespace has at most 128 bytes."""
FIRST_ID = "mem0.id"
"""Metadata: the id that `add` gave, which survives updates."""
CREATED = "mem0.created_at"
"""Metadata: when the first text of an updated memory was recorded."""
JSON_MARK = "json:"
"""Starts a metadata value that was not text."""


def _segment(letter: str, value: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda match: "".join(f"@{byte:02x}" for byte in match[0].encode()), value)
    if len(safe) > SCOPE_BYTES_MAX:
        safe = "@sha256:" + hashlib.sha256(value.encode()).hexdigest()[:24]
    return f"{letter}:{safe}"


def _namespace(scope: Mapping[str, str]) -> str:
    return "/".join([ROOT] + [_segment(letter, scope[name]) for name, letter in SCOPE_PARTS if name in scope])


def _to_text(value: Any) -> str:
    if isinstance(value, str) and not value.startswith(JSON_MARK):
        return value
    return JSON_MARK + json.dumps(value, ensure_ascii=False, sort_keys=True)


def _from_text(value: str) -> Any:
    if not value.startswith(JSON_MARK):
        return value
    text = value[len(JSON_MARK) :]
    try:
        return json.loads(text)
    except ValueError:
        # A secret that was taken out may have broken it: what is left is text.
        return text


def _scope(user_id: Optional[str], agent_id: Optional[str], run_id: Optional[str]) -> Dict[str, str]:
    given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    return {name: str(value) for name, value in given.items() if value is not None}


def _required(scope: Mapping[str, str]) -> None:
    if not scope:
        raise ValueError("at least one of 'user_id', 'agent_id' or 'run_id' must be given")


class Memory:
    """mem0's `Memory` over the Mneme daemon."""

    def __init__(self, config: Any = None, *, client: Optional[Client] = None) -> None:
        # The daemon has its own configuration: models and stores named here have no meaning.
        self.config = config
        self._client = Client(client="mem0") if client is None else client

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any], *, client: Optional[Client] = None) -> "Memory":
        """Takes any configuration; the daemon has its own."""
        return cls(dict(config_dict), client=client)

    def add(
        self,
        messages: Union[Message, Sequence[Message]],
        *,
        user_id: Optional[str] = None,
        agent_id: Optional[str] = None,
        run_id: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        infer: bool = True,
        memory_type: Optional[str] = None,
        prompt: Optional[str] = None,
    ) -> Dict[str, List[Dict[str, Any]]]:
        """Remembers a text, a message or several. System messages are passed over."""
        del infer, memory_type, prompt
        scope = _scope(user_id, agent_id, run_id)
        _required(scope)
        results = []
        for text, role, speaker in _texts(messages):
            notes = {name: _to_text(value) for name, value in {**(metadata or {}), **scope}.items()}
            if role is not None:
                notes["role"] = role
            answer = self._client.remember(
                text,
                namespace=_namespace(scope),
                kind="note" if role is None else "message",
                speaker=speaker or role,
                metadata=notes,
                source="mem0",
            )
            event = "NONE" if answer.duplicate else "ADD"
            result = {"id": self._public_id(answer) if answer.duplicate else answer.id, "memory": text, "event": event}
            if role is not None:
                result["role"] = role
            results.append(result)
        return {"results": results}

    def search(
        self,
        query: str,
        *,
        user_id: Optional[str] = None,
        agent_id: Optional[str] = None,
        run_id: Optional[str] = None,
        limit: int = 100,
        top_k: Optional[int] = None,
        filters: Optional[Mapping[str, Any]] = None,
        threshold: Optional[float] = None,
        rerank: bool = False,
    ) -> Dict[str, List[Dict[str, Any]]]:
        """The memories of a scope that answer best, with their `score`, best first.

        `filters` may name scopes and metadata, each by a plain value. `threshold` is compared with the daemon's score,
        which is comparable within one search only.
        """
        scope, notes = _filters(filters, _scope(user_id, agent_id, run_id))
        _required(scope)
        namespaces = self._namespaces(scope)
        if not namespaces:
            return {"results": []}
        found = recall_in(
            self._client,
            query,
            namespaces,
            limit=limit if top_k is None else top_k,
            filter={"metadata": {**notes, **{name: _to_text(value) for name, value in scope.items()}}},
            rerank=rerank,
        )
        hits = [hit for hit in found if threshold is None or hit.score >= threshold]
        return {"results": [{**_view(hit.memory), "score": hit.score} for hit in hits]}

    def get(self, memory_id: str) -> Optional[Dict[str, Any]]:
        """One memory, or None."""
        head = self._head(memory_id)
        return None if head is None else _view(head)

    def get_all(
        self,
        *,
        user_id: Optional[str] = None,
        agent_id: Optional[str] = None,
        run_id: Optional[str] = None,
        limit: int = 100,
        top_k: Optional[int] = None,
        filters: Optional[Mapping[str, Any]] = None,
    ) -> Dict[str, List[Dict[str, Any]]]:
        """Every memory of a scope, oldest first. Cost grows with the scope: it is read from end to end."""
        scope, notes = _filters(filters, _scope(user_id, agent_id, run_id))
        _required(scope)
        most = limit if top_k is None else top_k
        found = []
        for memory in self._all(scope):
            if memory.superseded_by is None and notes.items() <= memory.metadata.items():
                found.append(_view(memory))
                if len(found) >= most:
                    break
        return {"results": found}

    def update(self, memory_id: str, data: str, metadata: Optional[Mapping[str, Any]] = None) -> Dict[str, str]:
        """Puts another text in a memory's place; its id stays. The former text stays in `history`."""
        head = self._known(memory_id)
        notes = {**head.metadata, FIRST_ID: head.metadata.get(FIRST_ID, head.id)}
        notes.setdefault(CREATED, head.recorded_at)
        notes.update({name: _to_text(value) for name, value in (metadata or {}).items()})
        replacement: types.RememberParams = {
            "text": data,
            "namespace": head.namespace,
            "kind": head.kind,
            "metadata": notes,
            "source": head.origin.source,
            # The same words elsewhere in the scope, or the former ones with other metadata, would be taken for one memory.
            "thread": f"revision {uuid.uuid4().hex}",
        }
        if head.speaker is not None:
            replacement["speaker"] = head.speaker
        self._client.supersede(head.id, replacement)
        return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> Dict[str, str]:
        """Forgets a memory and what it replaced."""
        head = self._known(memory_id)
        self._client.forget([memory.id for memory in self._chain(head)])
        return {"message": "Memory deleted successfully!"}

    def delete_all(
        self, *, user_id: Optional[str] = None, agent_id: Optional[str] = None, run_id: Optional[str] = None
    ) -> Dict[str, str]:
        """Forgets every memory of a scope."""
        scope = _scope(user_id, agent_id, run_id)
        _required(scope)
        ids = [memory.id for memory in self._all(scope)]
        for start in range(0, len(ids), 1000):
            self._client.forget(ids[start : start + 1000])
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> List[Dict[str, Any]]:
        """How a memory came to say what it says, oldest first. Empty for a deleted one: it is forgotten."""
        head = self._head(memory_id)
        if head is None:
            return []
        entries: List[Dict[str, Any]] = []
        before: Optional[types.MemoryView] = None
        for memory in reversed(self._chain(head)):
            first = entries[0]["created_at"] if entries else memory.recorded_at
            entries.append(
                {
                    "id": memory.id,
                    "memory_id": memory_id,
                    "old_memory": None if before is None else before.text,
                    "new_memory": memory.text,
                    "event": "ADD" if before is None else "UPDATE",
                    "created_at": first,
                    "updated_at": None if before is None else memory.recorded_at,
                    "is_deleted": False,
                }
            )
            before = memory
        return entries

    def reset(self) -> None:
        """Forgets everything that was remembered through this class, by every user."""
        for namespace in self._namespaces({}):
            self._client.forget({"namespace": namespace})

    def close(self) -> None:
        """Closes the connections to the daemon."""
        self._client.close()

    def _public_id(self, answer: types.RememberResult) -> str:
        return self._client.get(answer.id).metadata.get(FIRST_ID, answer.id)

    def _namespaces(self, scope: Mapping[str, str]) -> List[str]:
        """The namespaces that hold memories of a scope: those of narrower scopes too."""
        wanted = {_segment(letter, scope[name]) for name, letter in SCOPE_PARTS if name in scope}
        found = []
        for namespace, _ in self._client.namespaces().namespaces:
            root, *segments = namespace.split("/")
            if root == ROOT and wanted <= set(segments):
                found.append(namespace)
        return found

    def _all(self, scope: Mapping[str, str]) -> Iterable[types.MemoryView]:
        for namespace in self._namespaces(scope):
            yield from self._client.export(namespace)

    def _head(self, memory_id: str) -> Optional[types.MemoryView]:
        """The newest text of a memory."""
        try:
            memory = self._client.get(memory_id)
            while memory.superseded_by is not None:
                memory = self._client.get(memory.superseded_by)
        except (errors.NotFound, errors.InvalidParams):
            return None
        return memory

    def _known(self, memory_id: str) -> types.MemoryView:
        head = self._head(memory_id)
        if head is None:
            raise ValueError(f"memory with id {memory_id} not found")
        return head

    def _chain(self, head: types.MemoryView) -> List[types.MemoryView]:
        """A memory and all that it replaced, newest first."""
        chain = [head]
        while chain[-1].supersedes is not None:
            try:
                chain.append(self._client.get(chain[-1].supersedes))
            except errors.NotFound:
                break
        return chain


def _filters(filters: Optional[Mapping[str, Any]], scope: Dict[str, str]) -> Tuple[Dict[str, str], Dict[str, str]]:
    """Scopes, and metadata as the daemon keeps it."""
    scope, notes = dict(scope), {}
    names = {name for name, _ in SCOPE_PARTS}
    for name, value in (filters or {}).items():
        if isinstance(value, (dict, list)) or name in ("AND", "OR", "NOT"):
            raise ValueError(f"filter {name!r} is not a plain value: operators are not supported")
        if name in names:
            scope[name] = str(value)
        else:
            notes[name] = _to_text(value)
    return scope, notes


def _texts(messages: Union[Message, Sequence[Message]]) -> Iterable[Tuple[str, Optional[str], Optional[str]]]:
    """Text, role and speaker of each message that is to be remembered."""
    several = [messages] if isinstance(messages, (str, Mapping)) else messages
    for message in several:
        if isinstance(message, str):
            yield message, None, None
            continue
        role = str(message.get("role", "user"))
        content = message.get("content")
        if role == "system" or not content:
            continue
        if not isinstance(content, str):
            parts = [part.get("text") for part in content if isinstance(part, Mapping)]
            content = "\n".join(part for part in parts if isinstance(part, str))
        if content:
            name = message.get("name")
            yield content, role, None if name is None else str(name)


def _view(memory: types.MemoryView) -> Dict[str, Any]:
    scopes = {name for name, _ in SCOPE_PARTS}
    hidden = scopes | {FIRST_ID, CREATED, "role"}
    metadata = {name: _from_text(value) for name, value in memory.metadata.items() if name not in hidden}
    view: Dict[str, Any] = {
        "id": memory.metadata.get(FIRST_ID, memory.id),
        "memory": memory.text,
        "hash": hashlib.md5(memory.text.encode(), usedforsecurity=False).hexdigest(),
        "metadata": metadata or None,
        "created_at": memory.metadata.get(CREATED, memory.recorded_at),
        "updated_at": memory.recorded_at if memory.supersedes is not None else None,
    }
    view.update({name: _from_text(memory.metadata[name]) for name in [*sorted(scopes), "role"] if name in memory.metadata})
    return view
