"""LangChain's retriever and chat history, kept by the Mneme daemon.

    from mneme.compat.langchain import MnemeChatMessageHistory, MnemeRetriever

Needs the package `langchain-core`. Texts of memories are data: `document.metadata["trust"]` says how far each is trusted.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Set

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.documents import Document
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
        HumanMessage,
        SystemMessage,
        ToolMessage,
        message_to_dict,
        messages_from_dict,
    )
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:  # pragma: no cover - the test suite has it
    raise ImportError("mneme.compat.langchain needs langchain-core: pip install 'mneme[langchain]'") from error

from .. import _types as types
from ..client import Client
from ._shared import from_notes, segment, to_notes

ROOT = "langchain"
CALL = "lc.call"
"""Note: which call a tool's message answers, beside the message itself."""


class MnemeRetriever(BaseRetriever):
    """Finds documents by Mneme's recall: by words and by meaning, with source and trust."""

    client: Any = None
    """A `mneme.Client`; this user's daemon when missing."""
    namespaces: Sequence[str] = ()
    """The drawers to look in; `default` when empty."""
    k: int = 5
    """How many documents at most."""
    filter: Optional[Dict[str, Any]] = None
    """Which memories may be returned, as `mneme.Filter`."""
    abstain: bool = True
    """Return nothing when probably nothing answers the question."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: Optional[CallbackManagerForRetrieverRun] = None
    ) -> List[Document]:
        del run_manager
        if self.client is None:
            self.client = Client(client="langchain")
        wanted: Optional[types.Filter] = types.Filter(**self.filter) if self.filter else None  # type: ignore[typeddict-item]
        answer = self.client.recall(query, namespaces=list(self.namespaces), limit=self.k, filter=wanted)
        if self.abstain and answer.abstain:
            return []
        return [_document(hit) for hit in answer.hits]


def _document(hit: types.HitView) -> Document:
    memory = hit.memory
    notes: Dict[str, Any] = {
        **memory.metadata,
        "namespace": memory.namespace,
        "kind": memory.kind,
        "score": hit.score,
        "source": memory.origin.source,
        "trust": memory.origin.trust,
        "valid_from": memory.valid_from,
    }
    return Document(id=memory.id, page_content=memory.text, metadata=notes)


class MnemeChatMessageHistory(BaseChatMessageHistory):
    """A conversation that lasts: each message is a memory of the thread, so that recall finds it later."""

    def __init__(self, session_id: str, *, client: Optional[Client] = None, root: str = ROOT) -> None:
        self.session_id = session_id
        self._client = Client(client="langchain") if client is None else client
        self.namespace = f"{root}/{segment(session_id)}"

    def _kept(self) -> List[types.MemoryView]:
        kept = [memory for memory in self._client.export(self.namespace) if memory.superseded_by is None]
        return sorted(kept, key=lambda memory: (memory.position or 0, memory.id))

    @property
    def messages(self) -> List[BaseMessage]:  # type: ignore[override]
        """Every message, in the order in which they were said."""
        messages: List[BaseMessage] = []
        calls: Set[Optional[str]] = set()
        broken = False
        for memory in self._kept():
            told = from_notes("lc.message", memory.metadata)
            message = _from_text(memory) if told is None else messages_from_dict([told])[0]
            broken = broken or told is None
            if broken and isinstance(message, ToolMessage) and message.tool_call_id not in calls:
                # The call could not be read any more, and providers refuse an answer without one.
                message = AIMessage(message.text)
            if isinstance(message, AIMessage):
                calls.update(call["id"] for call in message.tool_calls)
            messages.append(message)
        return messages

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Remembers messages at the end of the conversation."""
        place = max((memory.position or 0 for memory in self._kept()), default=0)
        for message in messages:
            place += 1
            text = message.text if isinstance(message.text, str) else str(message.content)
            notes = to_notes("lc.message", message_to_dict(message))
            if isinstance(message, ToolMessage):
                notes[CALL] = message.tool_call_id
            given: Dict[str, Any] = {
                "namespace": self.namespace,
                "kind": "message",
                "speaker": message.type,
                "position": place,
                "source": "langchain",
                "metadata": notes,
            }
            kept = self._client.remember(text.strip() or f"({message.type})", thread=self.session_id, **given)
            if kept.duplicate:
                # The same words said again are the same memory to the daemon, but another message to a conversation.
                self._client.remember(text.strip() or f"({message.type})", thread=f"{self.session_id}#{place}", **given)

    def clear(self) -> None:
        """Forgets the conversation."""
        self._client.forget({"namespace": self.namespace})


def _from_text(memory: types.MemoryView) -> BaseMessage:
    """A message whose note cannot be read (a secret that was taken out may have broken it): its words are left."""
    call = memory.metadata.get(CALL)
    if call is not None:
        return ToolMessage(memory.text, tool_call_id=call)
    if memory.speaker == "human":
        return HumanMessage(memory.text)
    return SystemMessage(memory.text) if memory.speaker == "system" else AIMessage(memory.text)
