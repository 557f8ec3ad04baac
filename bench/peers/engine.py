"""The engine against its peers, call by call in one run.

Each round times one call of ours (in `mneme-engine bench --serve`) and one of every peer, in turn; the ratio peer / ours is taken
within the round, and the table gives its minimum, median and maximum. A ratio over 1 means that ours is faster. Times are of the
wall, with as many threads as processors for everybody.

    cargo build --release -p mneme-engine
    python bench/peers/engine.py --ours target/release/mneme-engine [--assets .assets] [--rounds 15] [--only embed]

Peers: onnxruntime and sentence-transformers with the same MiniLM weights in f32; llama.cpp (the sdist of llama-cpp-python, built
for this processor: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python) with the same GGUF
file, whose 4-bit codes ours takes over as they are. A peer that is not installed is listed with the reason.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("--ours", required=True)
PARSER.add_argument("--assets", default=".assets")
PARSER.add_argument("--rounds", type=int, default=15)
PARSER.add_argument("--only", default="")
PARSER.add_argument("--weights", default="int4")
ARGS = PARSER.parse_args()
THREADS = os.cpu_count() or 1
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"

MINILM = Path(ARGS.assets) / "models/all-MiniLM-L6-v2"
SMOLLM = Path(ARGS.assets) / "models/smollm2-135m-instruct/smollm2.gguf"
WINDOW = 1024
SKIPPED = {}


class Ours:
    """`mneme-engine bench --serve`, one JSON line a call."""

    def __init__(self):
        command = [ARGS.ours, "--assets", ARGS.assets, "--weights", ARGS.weights, "bench", "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.DEVNULL)

    def call(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def resident_mib(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024


def milliseconds(work):
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def sentence_transformers():
    import torch
    from sentence_transformers import SentenceTransformer, models
    torch.set_num_threads(THREADS)
    folder = tempfile.mkdtemp()
    for name in ["model.safetensors", "tokenizer.json"]:
        os.symlink((MINILM / name).resolve(), Path(folder) / name)
    config = dict(architectures=["BertModel"], model_type="bert", hidden_size=384, num_hidden_layers=6,
                  num_attention_heads=12, intermediate_size=1536, vocab_size=30522, max_position_embeddings=512)
    (Path(folder) / "config.json").write_text(json.dumps(config))
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]", model_max_length=256)))
    words = models.Transformer(folder, max_seq_length=256)
    model = SentenceTransformer(modules=[words, models.Pooling(384), models.Normalize()], device="cpu")
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def onnxruntime():
    import numpy as np
    import onnxruntime as ort
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
            config._attn_implementation = "eager"
            self.bert = BertModel(config).eval()
            self.bert.load_state_dict(load_file(MINILM / "model.safetensors"), strict=False)

        def forward(self, ids, mask):
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1)

    path = os.path.join(tempfile.mkdtemp(), "minilm.onnx")
    example = (torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long))
    axes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    torch.onnx.export(Pooled(), example, path, input_names=["ids", "mask"], output_names=["out"], dynamic_axes=axes,
                      opset_version=17, dynamo=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(256)

    def embed(texts):
        made = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), 32):
            batch = order[start:start + 32]
            tokenizer.enable_padding()
            encoded = tokenizer.encode_batch([texts[index] for index in batch])
            ids = np.array([one.ids for one in encoded], dtype=np.int64)
            mask = np.array([one.attention_mask for one in encoded], dtype=np.int64)
            for index, vector in zip(batch, session.run(None, {"ids": ids, "mask": mask})[0]):
                made[index] = vector
        return made

    return embed


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python."""

    def __init__(self):
        import ctypes
        import llama_cpp as c
        self.c = c
        silent = c.llama_log_callback(lambda level, text, data: None)
        self.silent = silent
        c.llama_log_set(silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        model = c.llama_model_load_from_file(str(SMOLLM).encode(), c.llama_model_default_params())
        settings = c.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = WINDOW
        settings.n_threads = settings.n_threads_batch = THREADS
        self.context = c.llama_init_from_model(model, settings)
        self.batch = c.llama_batch_init(WINDOW, 0, 1)

    def evaluate(self, tokens, first, logits):
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, first + i, 1, 0
            batch.logits[i] = logits == "all" or i + 1 == len(tokens)
        assert self.c.llama_decode(self.context, batch) == 0
        self.c.llama_get_logits(self.context)[0]

    def clear(self):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), False)

    def prefill(self, count):
        self.clear()
        tokens = [100 + i * 7 for i in range(count)]
        return milliseconds(lambda: self.evaluate(tokens, 0, "last"))

    def step(self, count):
        self.clear()
        self.c.llama_set_causal_attn(self.context, False)
        tokens = [100 + i * 7 for i in range(count)]
        spent = milliseconds(lambda: self.evaluate(tokens, 0, "all"))
        self.c.llama_set_causal_attn(self.context, True)
        return spent

    def decode(self, count):
        self.clear()
        self.evaluate([100 + i * 7 for i in range(16)], 0, "last")

        def write():
            for i in range(count):
                self.evaluate([100 + i * 7], 16 + i, "last")
        return milliseconds(write)


def texts(count, words, round_):
    return [f"note {round_} {i} " + "about the river and the bridge " * (words // 6) for i in range(count)]


def measure(name, ours, peers):
    """`ours` and each peer take the number of the round and give milliseconds."""
    if ARGS.only and ARGS.only not in name:
        return
    for peer in [ours, *peers.values()]:
        peer(-1)
        peer(-2)
    times, ratios = [], {peer: [] for peer in peers}
    theirs = {peer: [] for peer in peers}
    for round_ in range(ARGS.rounds):
        own = ours(round_)
        times.append(own)
        for peer, work in peers.items():
            spent = work(round_)
            theirs[peer].append(spent)
            ratios[peer].append(spent / own)
    median = statistics.median
    for peer in peers:
        low, middle, high = min(ratios[peer]), median(ratios[peer]), max(ratios[peer])
        print(f"| {name} | {median(times):.2f} | {peer} | {median(theirs[peer]):.2f} | "
              f"{low:.2f} | **{middle:.2f}** | {high:.2f} |", flush=True)
    if not peers:
        print(f"| {name} | {median(times):.2f} | | | | | |", flush=True)


def main():
    ours = Ours()
    embedders = {}
    for name, make in [("onnxruntime f32", onnxruntime), ("sentence-transformers", sentence_transformers)]:
        try:
            embedders[name] = make()
        except Exception as error:  # noqa: BLE001  (any failure of a peer is reported, none ends the run)
            SKIPPED[name] = f"{type(error).__name__}: {error}"[:200]
    llama = None
    try:
        llama = LlamaCpp()
    except Exception as error:  # noqa: BLE001
        SKIPPED["llama.cpp"] = f"{type(error).__name__}: {error}"[:200]
    print("| work | ours ms | peer | peer ms | ratio min | median | max |")
    print("|---|---:|---|---:|---:|---:|---:|")
    cases = [("embed a query of 8 tokens", 1, 0), ("embed a text of 130 tokens", 1, 120), ("embed 64 notes", 64, 24)]
    for name, count, words in cases:
        peers = {peer: (lambda r, embed=embed, c=count, w=words: milliseconds(lambda: embed(texts(c, w, r))))
                 for peer, embed in embedders.items()}
        measure(name, lambda r, c=count, w=words: ours.call(embed=texts(c, w, r))["ms"], peers)
    for name, call, count in [("prefill of 128 tokens", "prefill", 128), ("prefill of 512 tokens", "prefill", 512),
                              ("decode of 64 tokens", "decode", 64), ("diffusion step, 128 tokens", "step", 128)]:
        peers = {"llama.cpp": (lambda r, call=call, n=count: getattr(llama, call)(n))} if llama else {}
        measure(name, lambda r, call=call, n=count: ours.call(**{call: n})["ms"], peers)
    print(f"\nresident memory of ours after all of it: {ours.resident_mib():.0f} MiB; {THREADS} threads, "
          f"{ARGS.rounds} rounds, weights {ARGS.weights}")
    for peer, reason in SKIPPED.items():
        print(f"skipped {peer}: {reason}")


main()
