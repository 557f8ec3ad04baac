"""LangChain with Mneme: a conversation that lasts, and a retriever over everything that is remembered."""

# needs: langchain_core
# prints: said before: 2 messages
# prints: found: The spare key lies under the third flower pot (trust: reported)

from __future__ import annotations

from langchain_core.messages import AIMessage, HumanMessage

import mneme
from mneme.compat.langchain import MnemeChatMessageHistory, MnemeRetriever


def main() -> None:
    with mneme.Client(client="example-langchain") as memory:
        MnemeChatMessageHistory("shed", client=memory).add_messages(
            [HumanMessage("Where is the spare key?"), AIMessage("The spare key lies under the third flower pot")]
        )
        # Another program, another day.
        history = MnemeChatMessageHistory("shed", client=memory)
        print("said before:", len(history.messages), "messages")
        retriever = MnemeRetriever(client=memory, namespaces=[history.namespace], k=2, abstain=False)
        for document in retriever.invoke("the spare key lies under what?"):
            if document.page_content.startswith("The spare key"):
                print(f"found: {document.page_content} (trust: {document.metadata['trust']})")


if __name__ == "__main__":
    main()
