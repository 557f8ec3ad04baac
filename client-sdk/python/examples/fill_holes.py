"""Fills a hole in a text with what the memory knows, and shows the canvas while it crystallises."""

# prints: Dear Ada, your tea is at

from __future__ import annotations

import mneme

NAMESPACE = "example/letters"


def main() -> None:
    with mneme.Client(client="example-letter") as memory:
        memory.remember("Ada drinks her tea at four", namespace=NAMESPACE, kind="fact")
        prompt = "Dear Ada, your tea is at {{hole:6}}. Yours, M."
        for event in memory.generate_stream(prompt, namespace=NAMESPACE, seed=7, timeout=60):
            if isinstance(event, mneme.TaskEvent):
                print("...", event.event.get("canvas", event.event["type"]))
            else:
                print(event.text)
                print("guided by", len(event.memories), "memories; confidence", round(event.uncertainty.confidence, 2))


if __name__ == "__main__":
    main()
