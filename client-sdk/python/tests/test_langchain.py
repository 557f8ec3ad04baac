"""The LangGraph store against LangGraph's own, and LangChain's retriever and history, with the real packages."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Tuple

import pytest

import mneme
from conftest import Daemon

pytest.importorskip("langgraph.store.base", reason="the package langgraph is not installed")

from langgraph.store.base import BaseStore  # noqa: E402
from langgraph.store.memory import InMemoryStore  # noqa: E402

from mneme.compat.langgraph import MnemeStore  # noqa: E402

LONG = "a very long name of a user that no namespace can carry as it stands, " * 3


@pytest.fixture()
def store(own_daemon: Daemon) -> MnemeStore:
    return MnemeStore(mneme.Client(own_daemon.socket, client="pytest"))


def told(store: BaseStore, prefix: Tuple[str, ...], **more: Any) -> List[Tuple[Tuple[str, ...], str, Dict[str, Any]]]:
    found = store.search(prefix, limit=100, **more)
    return sorted(((item.namespace, item.key, item.value) for item in found), key=lambda entry: (entry[0], entry[1]))


def test_it_does_what_the_store_of_langgraph_does(store: MnemeStore) -> None:
    oracle = InMemoryStore()
    steps: List[Tuple[str, Tuple[Any, ...]]] = [
        ("put", (("users", "ada"), "tea", {"text": "Ada drinks tea at four", "stars": 5, "tags": ["a", "b"]})),
        ("put", (("users", "ada"), "coffee", {"text": "Ada drinks tea at four", "stars": 2})),
        ("put", (("users", "bob"), "tea", {"text": "Bob drinks no tea", "nested": {"deep": [1, None, True]}})),
        ("put", (("users", "ada"), "tea", {"text": "Ada drinks tea at five", "stars": 4})),
        ("put", (("users", "ada"), "tea", {"text": "Ada drinks tea at five", "stars": 3})),
        ("put", (("users", LONG), "key with spaces / and ümlauts", {"n": 1})),
        ("put", (("a b", "c/d", "@e"), "k", {"x": "y" * 9_000})),
        ("delete", (("users", "ada"), "coffee")),
        ("delete", (("users", "ada"), "never there")),
        ("put", (("users", "ada"), "coffee", {"text": "back again"})),
    ]
    for name, arguments in steps:
        for one in (store, oracle):
            getattr(one, name)(*arguments)
    for prefix in [(), ("users",), ("users", "ada"), ("users", LONG), ("nobody",), ("a b", "c/d")]:
        assert told(store, prefix) == told(oracle, prefix), prefix
    for wanted in [{"stars": 3}, {"stars": {"$gte": 3}}, {"stars": {"$ne": 3}}, {"nested": {"deep": [1, None, True]}}]:
        if "$gte" not in str(wanted):
            assert told(store, (), filter=wanted) == told(oracle, (), filter=wanted), wanted
    assert [key for _, key, _ in told(store, (), filter={"stars": {"$gte": 3}})] == ["tea"]
    for path, key in [(("users", "ada"), "tea"), (("users", LONG), "key with spaces / and ümlauts"), (("users", "ada"), "no")]:
        ours, theirs = store.get(path, key), oracle.get(path, key)
        assert (ours and (ours.namespace, ours.key, ours.value)) == (theirs and (theirs.namespace, theirs.key, theirs.value))
    tea = store.get(("users", "ada"), "tea")
    assert tea is not None and tea.created_at < tea.updated_at, "an update keeps the time of the first"
    for arguments in [{}, {"prefix": ("users",)}, {"suffix": ("ada",)}, {"prefix": ("*", "c/d")}, {"max_depth": 1}, {"limit": 1, "offset": 1}]:
        assert store.list_namespaces(**arguments) == oracle.list_namespaces(**arguments), arguments  # type: ignore[arg-type]


def test_a_search_with_a_query_is_a_recall(store: MnemeStore) -> None:
    store.put(("notes",), "tea", {"text": "Ada drinks her tea at four", "room": "garden"})
    store.put(("notes",), "gate", {"text": "the gate is locked at nine", "room": "garden"})
    store.put(("notes",), "secret", {"text": "tea tea tea"}, index=False)
    store.put(("notes",), "chosen", {"title": "harbour master", "body": "tea"}, index=["title"])
    (first,) = store.search(("notes",), query="when does Ada drink tea?", limit=1)
    assert (first.key, first.value["room"]) == ("tea", "garden")
    assert first.score is not None
    keys = [item.key for item in store.search(("notes",), query="tea", limit=10)]
    assert "secret" not in keys
    keys = [item.key for item in store.search(("notes",), query="harbour master", limit=2)]
    assert "chosen" in keys
    body = [item.key for item in store.search(("notes",), query="body tea", limit=10, filter={"title": "harbour master"})]
    assert body in ([], ["chosen"]), "a filter drops what does not fit"
    assert store.search(("nothing",), query="tea") == []


def test_another_process_sees_it_and_async_works(store: MnemeStore, own_daemon: Daemon) -> None:
    other = MnemeStore(mneme.Client(own_daemon.socket, client="other"))
    store.put(("shared",), "a", {"n": 1})
    assert other.get(("shared",), "a").value == {"n": 1}  # type: ignore[union-attr]
    other.put(("shared",), "b", {"n": 2})
    other.put(("shared",), "a", {"n": 3})
    assert store.get(("shared",), "a").value == {"n": 3}  # type: ignore[union-attr]
    assert store.get(("shared",), "b").value == {"n": 2}  # type: ignore[union-attr]
    other.delete(("shared",), "a")
    assert store.get(("shared",), "a") is None
    store.put(("shared",), "a", {"n": 4})
    assert other.get(("shared",), "a").value == {"n": 4}  # type: ignore[union-attr]

    async def work() -> None:
        await store.aput(("async",), "k", {"text": "asynchronous tea"})
        item = await store.aget(("async",), "k")
        assert item is not None and item.value == {"text": "asynchronous tea"}
        assert [found.key for found in await store.asearch(("async",), query="tea")] == ["k"]

    asyncio.run(work())


def test_what_cannot_be_kept_is_refused_in_words(store: MnemeStore) -> None:
    with pytest.raises(ValueError, match="at most"):
        store.put(("big",), "k", {"x": "y" * 300_000})
    with pytest.raises(NotImplementedError):
        store.put(("ttl",), "k", {"x": 1}, ttl=1)


def test_a_graph_remembers_across_threads(store: MnemeStore) -> None:
    from langgraph.graph import END, START, StateGraph
    from langgraph.runtime import Runtime
    from typing_extensions import TypedDict

    class State(TypedDict, total=False):
        said: str
        answer: str

    def node(state: State, runtime: Runtime[None]) -> State:
        assert runtime.store is not None
        found = runtime.store.search(("facts",), query=state["said"], limit=1)
        runtime.store.put(("facts",), state["said"], {"text": state["said"]})
        return {"answer": found[0].value["text"] if found else "nothing yet"}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    graph = builder.compile(store=store)
    assert graph.invoke({"said": "the gate code is 1660"})["answer"] == "nothing yet"
    assert graph.invoke({"said": "what is the gate code?"})["answer"] == "the gate code is 1660"


def test_the_retriever_gives_documents_with_source_and_trust(client: mneme.Client, namespace: str) -> None:
    from mneme.compat.langchain import MnemeRetriever

    kept = client.remember("the ferry leaves at eight", namespace=namespace, metadata={"page": "7"})
    # The stand-in's vectors say little, so that its recall is seldom confident.
    retriever = MnemeRetriever(client=client, namespaces=[namespace], k=3, abstain=False)
    (document,) = retriever.invoke("the ferry leaves at eight")
    assert (document.id, document.page_content) == (kept.id, "the ferry leaves at eight")
    assert document.metadata["page"] == "7" and document.metadata["trust"] == "reported"
    assert MnemeRetriever(client=client, namespaces=[namespace], filter={"kinds": ["event"]}).invoke("ferry") == []


def test_a_chat_history_keeps_every_message_in_order(client: mneme.Client) -> None:
    from langchain_core.messages import AIMessage, HumanMessage

    from mneme.compat.langchain import MnemeChatMessageHistory

    history = MnemeChatMessageHistory("session/1 ä", client=client)
    history.add_messages([HumanMessage("is it open?"), AIMessage("yes"), HumanMessage("and now?"), AIMessage("yes")])
    history.add_messages([AIMessage("", tool_calls=[{"name": "look", "args": {"at": "gate"}, "id": "1"}])])
    again = MnemeChatMessageHistory("session/1 ä", client=client)
    assert [message.content for message in again.messages] == ["is it open?", "yes", "and now?", "yes", ""]
    assert [message.type for message in again.messages] == ["human", "ai", "human", "ai", "ai"]
    assert again.messages[-1].tool_calls[0]["args"] == {"at": "gate"}  # type: ignore[attr-defined]
    assert MnemeChatMessageHistory("session/2", client=client).messages == []
    history.clear()
    assert again.messages == []


def test_a_search_reaches_more_namespaces_than_one_recall_takes(store: MnemeStore) -> None:
    for number in range(65):
        store.put(("users", f"user {number:02}"), "tea", {"text": f"drinks tea at {number}"})
    found = store.search(("users",), query="tea", limit=100)
    assert {item.namespace[1] for item in found} == {f"user {number:02}" for number in range(65)}
    scores = [item.score or 0.0 for item in found]
    assert scores == sorted(scores, reverse=True)
    assert len(store.search(("users",), query="tea", limit=3)) == 3


def test_a_message_whose_note_is_broken_keeps_its_place_and_its_words(client: mneme.Client) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    from mneme.compat.langchain import MnemeChatMessageHistory

    call = {"name": "look", "args": {}, "id": "1"}
    said = [
        HumanMessage("is it open?"),
        AIMessage("I look", tool_calls=[call]),
        ToolMessage("it is", tool_call_id="1"),
        AIMessage("yes"),
    ]

    def told(broken: int) -> List[Tuple[str, str]]:
        history = MnemeChatMessageHistory(f"broken {broken}", client=client)
        history.add_messages(said)
        memory = history._kept()[broken]
        notes = {**memory.metadata, "lc.message.0": '{"type": "[gone'}
        by: Any = {"text": memory.text, "namespace": memory.namespace, "kind": memory.kind, "metadata": notes}
        by.update(speaker=memory.speaker, position=memory.position, thread="mended")
        client.supersede(memory.id, by)
        return [(message.type, message.text) for message in history.messages]

    whole = [("human", "is it open?"), ("ai", "I look"), ("tool", "it is"), ("ai", "yes")]
    assert told(0) == whole
    assert told(1) == [("human", "is it open?"), ("ai", "I look"), ("ai", "it is"), ("ai", "yes")]
    assert told(2) == whole
    assert told(3) == whole
