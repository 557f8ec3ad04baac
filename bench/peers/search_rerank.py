"""Scores recall's first hits by query likelihood with SmolLM2, for measuring the `rerank` hook without the engine.

    python search_rerank.py CANDIDATES.json OUT.json --gguf FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf [--questions N]

CANDIDATES.json is what `mneme-recall-eval --write-candidates` wrote. OUT.json holds, per question, `[own, context]` per hit: the mean
log-probability of the question's tokens after the hit's text alone, and after its text with date and previous turn; it is what
`mneme-recall-eval --rerank-scores` reads. Questions that were left out have an empty list. Needs torch, transformers and gguf.
"""

import argparse
import json
import os
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PASSAGE_TOKENS_MAX = 160


def likelihoods(model, tokenizer, passages: list[str], question: str) -> list[float]:
    """Mean log P(question token | passage, question so far), one per passage."""
    asked = tokenizer(f"\nQuestion: {question}", add_special_tokens=False)["input_ids"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][-PASSAGE_TOKENS_MAX:] + asked for text in passages]
    longest = max(map(len, rows))
    # Left padding puts every question at the same place.
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=places).last_hidden_state
        logits = model.lm_head(hidden[:, -len(asked) - 1 : -1]).float()
        chosen = torch.log_softmax(logits, -1).gather(2, torch.tensor(asked).expand(len(rows), -1).unsqueeze(2))
    # The first tokens are the fixed lead-in; they say nothing of the question.
    return chosen.squeeze(2)[:, 2:].mean(1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("out")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=0, help="score only about this many, evenly spread")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, file = os.path.split(arguments.gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).to(torch.bfloat16).eval()
    with open(arguments.candidates, encoding="utf-8") as file:
        questions = json.load(file)
    step = max(1, len(questions) // arguments.questions) if arguments.questions else 1
    scores, started = [], time.time()
    for number, entry in enumerate(questions):
        if number % step or not entry["own"]:
            scores.append([])
            continue
        own = likelihoods(model, tokenizer, entry["own"], entry["question"])
        context = likelihoods(model, tokenizer, entry["context"], entry["question"])
        scores.append(list(zip(own, context)))
        if number % 20 == 0:
            print(f"{number} of {len(questions)}, {time.time() - started:.0f} s", flush=True)
            with open(arguments.out, "w", encoding="utf-8") as out:
                json.dump(scores + [[]] * (len(questions) - len(scores)), out)
    with open(arguments.out, "w", encoding="utf-8") as out:
        json.dump(scores, out)


if __name__ == "__main__":
    main()
