"""Writes the golden files of the parity tests: what `transformers` computes with the same weights.

Usage (with torch, transformers, tokenizers, safetensors, gguf and numpy installed):
    python make_golden.py ASSETS_FOLDER
Writes embedder.bin and generator.bin beside this script.

embedder.bin: for each text u32 length, UTF-8 bytes, 384 x f16 (little-endian); mean-pooled, unit length, window 256.
generator.bin: u32 windows; for each u32 length, then length x u32 token ids; then for each position
    u32 argmax, f32 largest logit, f32 log-sum-exp, 8 x f32 logits at the ids of PROBES.
"""

import random
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

PROBES = [0, 1, 28, 253, 1024, 9906, 30000, 49151]
HERE = Path(__file__).parent

SUBJECTS = ["My sister", "The old baker", "A passing train", "Our build server", "The cat", "Professor Lindqvist",
            "Nobody", "The committee", "Юлия", "田中さん", "The API gateway", "Grandmother"]
VERBS = ["remembers", "moved to", "wrote about", "prefers", "deleted", "painted", "measured", "forgot", "repaired",
         "is allergic to", "argued with", "shipped"]
OBJECTS = ["the lighthouse at Skagen", "a 3.5 mm cable", "peanuts", "version 2.4.1", "the Tuesday meeting", "café au lait",
           "her first telescope", "O(n log n) sorting", "an email from 2019-03-14", "a very long river", "https://example.org/a?b=c",
           "forty-two sheep", "naïve Bayes", "the budget (€1,250)", "🙂 emoji"]
TAILS = ["", " because it rained", ", although nobody asked", " — twice", " and then went home", "; see the notes", "!", "?"]


def texts(count):
    draw = random.Random(7)
    made = ["", "a", "Hello, world!", "I " * 400, "ﬁ ligature, ½ and ǅ", "\t tabs\nand\nlines  ", "don't can't won't"]
    while len(made) < count:
        sentences = draw.choice([1, 1, 1, 2, 3, 8, 20])
        made.append(" ".join(
            f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}{draw.choice(TAILS)}."
            for _ in range(sentences)))
    return made


def embedder(assets):
    folder = assets / "models/all-MiniLM-L6-v2"
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config).eval()
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not [name for name in missing if "position_ids" not in name], missing
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    with open(HERE / "embedder.bin", "wb") as out, torch.no_grad():
        for text in texts(200):
            encoded = tokenizer.encode(text)
            hidden = model(torch.tensor([encoded.ids])).last_hidden_state[0]
            vector = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            data = text.encode()
            out.write(struct.pack("<I", len(data)) + data + vector.numpy().astype("<f2").tobytes())


def generator(assets):
    reader = GGUFReader(assets / "models/smollm2-135m-instruct/smollm2.gguf")
    tensors = {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=1e5,
                         rope_parameters={"rope_type": "default", "rope_theta": 1e5},
                         max_position_embeddings=8192, tie_word_embeddings=True, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()

    def unpermute(weight, heads):
        return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)

    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"],
             "lm_head.weight": tensors["token_embd.weight"]}
    names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
             "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}
    for layer in range(30):
        for ours, theirs in names.items():
            state[f"model.layers.{layer}.{theirs}.weight"] = tensors[f"blk.{layer}.{ours}.weight"]
        for ours, theirs, heads in (("attn_q", "q_proj", 9), ("attn_k", "k_proj", 3)):
            state[f"model.layers.{layer}.self_attn.{theirs}.weight"] = unpermute(tensors[f"blk.{layer}.{ours}.weight"], heads)
    model.load_state_dict(state, strict=True)

    field = lambda key: reader.fields[key].contents()
    vocabulary = {token: index for index, token in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode("\n".join(texts(200)[4:])).ids
    windows = [ids[start:start + 250] for start in range(0, 1000, 250)]
    with open(HERE / "generator.bin", "wb") as out, torch.no_grad():
        out.write(struct.pack("<I", len(windows)))
        for window in windows:
            logits = model(torch.tensor([window])).logits[0].double()
            out.write(struct.pack(f"<I{len(window)}I", len(window), *window))
            for row in logits:
                best = int(row.argmax())
                out.write(struct.pack("<I", best))
                values = [float(row[best]), float(row.logsumexp(0))] + [float(row[p]) for p in PROBES]
                out.write(np.array(values, dtype="<f4").tobytes())
            second = logits.topk(2).values
            print("smallest gap between first and second logit:", float((second[:, 0] - second[:, 1]).min()))


if __name__ == "__main__":
    embedder(Path(sys.argv[1]))
    generator(Path(sys.argv[1]))
