"""A LangGraph graph with Mneme as its long-term store: what one run learns, another one knows."""

# needs: langgraph
# prints: first run: I do not know yet
# prints: second run: Mara's ferry leaves at eight

from __future__ import annotations

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from mneme.compat.langgraph import MnemeStore


class State(TypedDict, total=False):
    question: str
    learned: str
    answer: str


def answer(state: State, runtime: Runtime[None]) -> State:
    assert runtime.store is not None
    found = runtime.store.search(("facts",), query=state["question"], limit=1)
    if "learned" in state:
        runtime.store.put(("facts",), "ferry", {"text": state["learned"]})
    return {"answer": found[0].value["text"] if found else "I do not know yet"}


def main() -> None:
    builder = StateGraph(State)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(store=MnemeStore())
    question = "when does the ferry of Mara leave?"
    print("first run:", graph.invoke({"question": question, "learned": "Mara's ferry leaves at eight"})["answer"])
    print("second run:", graph.invoke({"question": question})["answer"])


if __name__ == "__main__":
    main()
