"""An agent that remembers: each turn is kept, and what matters is recalled before the next answer."""

# prints: recalled: My sister Mara lives in Oslo
# prints: forgotten: 2

from __future__ import annotations

import mneme

THREAD = "conversation-1"


def main() -> None:
    with mneme.Client(client="example-chat", session=THREAD) as memory:
        for place, said in enumerate(["My sister Mara lives in Oslo", "I would like to visit her in May"]):
            memory.remember(
                said, namespace="example/chat", kind="message", speaker="user", thread=THREAD, position=place
            )
        found = memory.recall("where does Mara live?", namespaces=["example/chat"], limit=3)
        print("recalled:", found.hits[0].memory.text)
        if found.abstain:
            print("probably nothing in the memory answers this")
        receipt = memory.forget({"thread": {"namespace": "example/chat", "thread": THREAD}})
        print("forgotten:", len(receipt.ids))


if __name__ == "__main__":
    main()
