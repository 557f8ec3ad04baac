"""What few bits cost SmolLM2-135M: perplexity on text that was not calibrated on, weight and layer errors, against hqq and gguf.

    sh python-native/build.sh release              # the wheel of mneme-native, into the venv below
    python bench/peers/quality.py MODEL.gguf VALID.jsonl.zst CALIBRATION.jsonl.zst [--tokens 8192] [--only WORDS] [--state FILE]

The reference is the model as its GGUF file holds it, decoded to float32 and run in float32 by a small Llama written here with torch.
That file stores its linear layers as Q4_1 (4 bits, groups of 32 with minimums): formats on the same grid (ours and gguf's of groups
of 32 with minimums) find it again and lose nothing, which says nothing of a model in 16 bits; all other rows are honest losses on top.

A row: bits per weight of the linear layers (scales and minimums counted), perplexity and its change with a 95 % interval of the paired
per-window differences, relative RMSE of the weights, relative RMSE of the layers' outputs on the calibration text. Embedding and output
layer are INT8 in all rows. `--sections` picks of: weights, activations, groups, adapter.
"""

import argparse
import json
import math
import pathlib
import random
import sys
import tempfile
import time

import numpy as np
import torch
import zstandard

from mneme_native import ArrowQuant, FastTokenizer, Hessian, WeightFile, convert_weights, search_groups

WINDOW = 512
MASK_RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9]
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
# What the inputs of a linear layer are shared with.
INPUT_OF = {
    "self_attn.q_proj": "attention", "self_attn.k_proj": "attention", "self_attn.v_proj": "attention", "self_attn.o_proj": "attended",
    "mlp.gate_proj": "mlp", "mlp.up_proj": "mlp", "mlp.down_proj": "gated",
}


class Model:
    """SmolLM2 (Llama) in float32; `weights[(layer, name)]` may be replaced."""

    def __init__(self, path):
        with tempfile.TemporaryDirectory() as folder:
            converted = pathlib.Path(folder) / "model.parquet"
            convert_weights(path, converted, huggingface=True)
            file = WeightFile.open(converted)
            tensors = {name: torch.from_numpy(file.decode(name)) for name in file.names}
            meta = file.metadata
        self.embedding = tensors["model.embed_tokens.weight"]
        self.layers = int(meta["llama.block_count"])
        self.heads = int(meta["llama.attention.head_count"])
        self.kv_heads = int(meta["llama.attention.head_count_kv"])
        self.eps = float(meta["llama.attention.layer_norm_rms_epsilon"])
        self.base = float(meta["llama.rope.freq_base"])
        self.final = tensors["model.norm.weight"]
        self.norms = [
            (tensors[f"model.layers.{i}.input_layernorm.weight"], tensors[f"model.layers.{i}.post_attention_layernorm.weight"])
            for i in range(self.layers)
        ]
        self.weights = {(i, name): tensors[f"model.layers.{i}.{name}.weight"] for i in range(self.layers) for name in LINEARS}
        self.listener = None
        self.round = None

    def norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

    def linear(self, layer, name, x, weights):
        if self.round is not None:
            x = self.round(layer, name, x)
        return x @ weights[(layer, name)].T

    def hear(self, layer, what, x):
        if self.listener is not None:
            self.listener(layer, what, x)

    @torch.inference_mode()
    def hidden(self, tokens, weights=None, causal=True):
        """tokens: [batch, length] -> [batch, length, hidden]."""
        weights = weights or self.weights
        x = torch.nn.functional.embedding(tokens, self.embedding)
        batch, length, width = x.shape
        size = width // self.heads
        angle = torch.arange(length).float()[:, None] * self.base ** (-torch.arange(0, size, 2).float() / size)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

        def rotate(v):
            half = v.shape[-1] // 2
            return v * cos + torch.cat([-v[..., half:], v[..., :half]], -1) * sin

        for i in range(self.layers):
            y = self.norm(x, self.norms[i][0])
            self.hear(i, "attention", y)
            q, k, v = (
                self.linear(i, f"self_attn.{n}_proj", y, weights).view(batch, length, -1, size).transpose(1, 2) for n in "qkv"
            )
            share = self.heads // self.kv_heads
            k, v = rotate(k).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
            y = torch.nn.functional.scaled_dot_product_attention(rotate(q), k, v, is_causal=causal)
            y = y.transpose(1, 2).reshape(batch, length, width)
            self.hear(i, "attended", y)
            x = x + self.linear(i, "self_attn.o_proj", y, weights)
            y = self.norm(x, self.norms[i][1])
            self.hear(i, "mlp", y)
            y = torch.nn.functional.silu(self.linear(i, "mlp.gate_proj", y, weights)) * self.linear(i, "mlp.up_proj", y, weights)
            self.hear(i, "gated", y)
            x = x + self.linear(i, "mlp.down_proj", y, weights)
        return self.norm(x, self.final)

    @torch.inference_mode()
    def losses(self, windows, weights=None, head=None):
        """Mean negative log-likelihood (nats a token) of each window."""
        head = self.embedding if head is None else head
        found = []
        for window in windows.split(4):
            logits = self.hidden(window, weights)[:, :-1] @ head.T
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), window[:, 1:], reduction="none")
            found.extend(loss.mean(1).tolist())
        return np.array(found)


def windows_of(path, tokenizer, tokens, seed):
    """Windows of WINDOW tokens of documents in random order, each window within the stream of documents."""
    with open(path, "rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read(24 << 20).decode("utf-8", "ignore").split("\n")[:-1]
    texts = [json.loads(line)["text"] for line in lines]
    random.Random(seed).shuffle(texts)
    stream = []
    for text in texts:
        if len(stream) >= tokens:
            break
        # At most two windows of a document, so that no source rules.
        stream.extend([0, *tokenizer.encode(text[:4000])[: 2 * WINDOW].tolist()])
    count = tokens // WINDOW
    return torch.tensor(stream[: count * WINDOW], dtype=torch.long).view(count, WINDOW)


def spread_tokens(windows, ratio, mask, generator):
    """A quarter visible as a prefix, of the rest this share masked (mask-aware calibration)."""
    masked = windows.clone()
    draw = torch.rand(windows.shape, generator=generator) < ratio
    draw[:, : windows.shape[1] // 4] = False
    masked[draw] = mask
    return masked


def hessians(model, batches):
    """One for each input of linear layers; `batches` are (tokens, causal)."""
    found = {}

    def listen(layer, what, x):
        x = x.reshape(-1, x.shape[-1]).contiguous().numpy()
        found.setdefault((layer, what), Hessian(x.shape[1])).add(x)

    model.listener = listen
    for tokens, causal in batches:
        for part in tokens.split(4):
            model.hidden(part, causal=causal)
    model.listener = None
    return found


def ours(quant, hessian=None):
    def make(key, weight):
        weight = np.ascontiguousarray(weight.numpy())
        quantized = quant.quantize(weight) if hessian is None else quant.gptq(weight, hessian[(key[0], INPUT_OF[key[1]])])
        return quantized.dequantize(), quantized.bits_per_weight

    return make


def with_gguf(name, bits):
    import gguf

    kind = getattr(gguf.GGMLQuantizationType, name)

    def make(_, weight):
        return gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind), bits

    return make


def with_hqq(bits, group):
    from hqq.core.quantize import Quantizer

    def make(_, weight):
        packed, meta = Quantizer.quantize(
            weight.clone(), nbits=bits, channel_wise=True, group_size=group, optimize=True, round_zero=False, axis=1,
            device="cpu", compute_dtype=torch.float32, view_as_float=False,
        )
        # Scale and zero in 16 bits, as hqq stores them for 16-bit models.
        meta["scale"], meta["zero"] = meta["scale"].half().float(), meta["zero"].half().float()
        return Quantizer.dequantize(packed, meta).view(weight.shape).numpy(), bits + 32 / group

    return make


def rows_of(curvature, masked):
    """Name, maker; in the order of the table."""
    quant = ArrowQuant
    return [
        ("INT8 by row", ours(quant("int8"))),
        ("gguf Q8_0 (g32)", with_gguf("Q8_0", 8.5)),
        ("INT4 g64 range", ours(quant("int4", group=64, fit="range"))),
        ("INT4 g64 least_squares", ours(quant("int4", group=64))),
        ("INT4 g64 GPTQ", ours(quant("int4", group=64), curvature)),
        ("hqq 4 bits g64", with_hqq(4, 64)),
        ("gguf Q4_0 (g32)", with_gguf("Q4_0", 4.5)),
        ("INT4 g32 symmetric least_squares", ours(quant("int4", group=32, scheme="symmetric"))),
        ("INT2 g64 range", ours(quant("int2", group=64, fit="range"))),
        ("INT2 g64 least_squares", ours(quant("int2", group=64))),
        ("INT2 g64 GPTQ", ours(quant("int2", group=64), curvature)),
        ("hqq 2 bits g64", with_hqq(2, 64)),
        ("ternary g64 range", ours(quant("ternary", group=64, fit="range"))),
        ("ternary g64 GPTQ", ours(quant("ternary", group=64), curvature)),
        ("INT4 g64 GPTQ, masked Hessian", ours(quant("int4", group=64), masked)),
        ("INT4 g64 hqq", ours(quant("int4", group=64, fit="hqq"))),
        ("INT4 g128 least_squares", ours(quant("int4", group=128))),
        ("INT4 g128 GPTQ", ours(quant("int4", group=128), curvature)),
        ("INT4 by row range", ours(quant("int4", group="row", fit="range"))),
        ("gguf Q4_1 (the file's grid)", with_gguf("Q4_1", 5.0)),
        ("INT4 g32 range (the file's grid)", ours(quant("int4", group=32, fit="range"))),
        ("INT2 g64 hqq", ours(quant("int2", group=64, fit="hqq"))),
        ("INT2 g32 GPTQ", ours(quant("int2", group=32), curvature)),
        ("ternary g64 least_squares", ours(quant("ternary", group=64))),
    ]


def interval(differences):
    """95 % of the mean, by Student's t (2.0 from thirty windows on; 2.13 for sixteen)."""
    t = 2.13 if len(differences) <= 16 else 2.04
    return t * differences.std(ddof=1) / math.sqrt(len(differences))


def weights_section(model, valid, calibration, state, only, mask):
    embedding = torch.from_numpy(ArrowQuant("int8").quantize(model.embedding.numpy()).dequantize())
    keep = model.embedding
    if "reference" not in state:
        state["reference"] = model.losses(valid).tolist()
    base = np.array(state["reference"])
    print(f"reference: perplexity {math.exp(base.mean()):.3f} on {valid.numel()} tokens in {len(valid)} windows", flush=True)
    curvature = masked = None
    matrices, energies = {}, {}
    print(f"{'format':<42} {'bits':>6} {'ppl':>10} {'change %':>9} {'95 %':>7} {'w rmse %':>9} {'out rmse %':>10} {'s':>6}")
    for name, make in rows_of(Lazy(lambda: curvature), Lazy(lambda: masked)):
        if only and only not in name:
            continue
        if name not in state:
            if curvature is None:
                generator = torch.Generator().manual_seed(1)
                curvature = hessians(model, [(calibration, True)])
                parts = calibration.split(max(1, len(calibration) // len(MASK_RATIOS)))
                grid = zip(parts, MASK_RATIOS)
                masked = hessians(model, [(spread_tokens(part, ratio, mask, generator), False) for part, ratio in grid])
                matrices = {key: torch.from_numpy(hessian.to_numpy()).float() for key, hessian in curvature.items()}
            changed, bits, count, square, energy, out, out_energy, start = {}, 0.0, 0, 0.0, 0.0, 0.0, 0.0, time.time()
            for key, weight in model.weights.items():
                values, found = make(key, weight)
                difference = np.ascontiguousarray(values - weight.numpy(), dtype=np.float32)
                changed[key] = torch.from_numpy(np.array(values, dtype=np.float32))
                bits += found * weight.numel()
                count += weight.numel()
                square += float((difference**2).sum())
                energy += float((weight.numpy() ** 2).sum())
                matrix = matrices[(key[0], INPUT_OF[key[1]])]
                moved = torch.from_numpy(difference)
                out += float(((moved @ matrix) * moved).sum())
                if key not in energies:
                    energies[key] = float(((weight @ matrix) * weight).sum())
                out_energy += energies[key]
            took = time.time() - start
            model.embedding = embedding
            losses = model.losses(valid, changed)
            model.embedding = keep
            state[name] = [bits / count, losses.tolist(), math.sqrt(square / energy), math.sqrt(out / out_energy), took]
            state.save()
        bits, losses, weight_error, output_error, took = state[name]
        difference = np.array(losses) - base
        change, wide = math.expm1(difference.mean()) * 100, interval(difference) * 100 * math.exp(difference.mean())
        print(
            f"{name:<42} {bits:>6.3f} {math.exp(np.mean(losses)):>10.3f} {change:>9.2f} {wide:>7.2f} {100 * weight_error:>9.2f}"
            f" {100 * output_error:>10.2f} {took:>6.0f}",
            flush=True,
        )


class Lazy:
    """A mapping that is made when first asked."""

    def __init__(self, get):
        self.get = get

    def __getitem__(self, key):
        return self.get()[key]


def activations_section(model, valid, calibration, mask):
    """W8A8's three arms: one static scale, one for each tenth of mask ratios, one for each token."""
    generator = torch.Generator().manual_seed(2)
    ratios = [(index + 0.5) / 10 for index in range(10)]
    ranges = {}

    def listen(layer, what, x):
        key = (layer, what)
        ranges.setdefault(key, {})[current] = max(ranges.get(key, {}).get(current, 0.0), float(x.abs().max()))

    start = time.time()
    model.listener = listen
    for current, ratio in enumerate(ratios):
        model.hidden(spread_tokens(calibration[:4], ratio, mask, generator), causal=False)
    model.listener = None
    took = time.time() - start
    packed = {
        (layer, what): ArrowQuant("int8").pack(np.ascontiguousarray(model.weights[(layer, name)].numpy()))
        for layer in range(model.layers)
        for name, what in INPUT_OF.items()
    }
    sums = {arm: [0.0, 0.0] for arm in ("static", "grouped", "token", "token_group")}

    def measure(layer, what, x):
        x = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).numpy())
        key = (layer, what)
        arms = {
            "static": max(ranges[key].values()) / 127, "grouped": ranges[key][current] / 127,
            "token": "token", "token_group": "token_group",
        }
        for arm, scaling in arms.items():
            rounded = packed[key].round_activations(x, activations=scaling)
            sums[arm][0] += float(((rounded - x) ** 2).sum() / (x**2).sum())
            sums[arm][1] += 1

    model.listener = measure
    for current, ratio in enumerate(ratios):
        model.hidden(spread_tokens(valid[:2], ratio, mask, generator), causal=False)
    model.listener = None
    print(f"activations in 8 bits, ten mask ratios, calibrated on {4 * WINDOW * 10} tokens in {took:.1f} s")
    static = math.sqrt(sums["static"][0] / sums["static"][1])
    for arm, (square, count) in sums.items():
        error = math.sqrt(square / count)
        print(f"  {arm:<12} relative RMSE {100 * error:7.3f} %   {100 * (1 - error / static):6.1f} % below static")


def groups_section(model, valid, calibration, population, generations):
    """The search for group lengths against uniform groups at the same or fewer bits; fitness is the loss on calibration text."""
    few = calibration[:3]
    choices = [32, 64, 128, 256]
    keys = list(model.weights)
    made, cost = {}, {}
    for choice in choices:
        quant = ArrowQuant("int4", group=choice, scheme="symmetric")
        for key in keys:
            quantized = quant.quantize(np.ascontiguousarray(model.weights[key].numpy()))
            made[key, choice] = torch.from_numpy(quantized.dequantize()).to(torch.bfloat16)
            cost[key, choice] = quantized.bits_per_weight * model.weights[key].numel()
    count = sum(weight.numel() for weight in model.weights.values())
    # A place for each matrix kind in each pair of layers.
    places = [(layer, name) for layer in range(0, model.layers, 2) for name in LINEARS]

    def spread(genes):
        return {key: genes[places.index((key[0] - key[0] % 2, key[1]))] for key in keys}

    def bits(genes):
        return sum(cost[key, choice] for key, choice in spread(genes).items()) / count

    def weights(genes):
        return {key: made[key, choice].float() for key, choice in spread(genes).items()}

    uniform = [64] * len(places)
    limit = bits(uniform)

    def fitness(genes):
        return None if bits(genes) > limit + 1e-9 else float(model.losses(few, weights(genes)).mean())

    start = time.time()
    told = lambda generation, evaluations, best: print(f"  generation {generation}, {evaluations} losses, best {best}", file=sys.stderr)
    genes, loss = search_groups(
        fitness, len(places), choices=choices, start=64, mean_min=64.0, population=population, kept=max(2, population // 5),
        generations=generations, crossovers=population // 2, seed=4, progress=told,
    )
    took = time.time() - start
    print(f"group search: {len(places)} places, {population} x {generations}, {took:.0f} s, fitness on {few.numel()} tokens")
    base = model.losses(valid)
    plain, found = model.losses(valid, weights(uniform)), model.losses(valid, weights(genes))
    difference = found - plain
    print(f"  uniform g64: {bits(uniform):.4f} bits, perplexity {math.exp(plain.mean()):.3f} (reference {math.exp(base.mean()):.3f}), calibration loss {float(model.losses(few, weights(uniform)).mean()):.4f}")
    print(f"  found:       {bits(genes):.4f} bits, perplexity {math.exp(found.mean()):.3f}, calibration loss {loss:.4f}")
    print(f"  change of the held-out loss {difference.mean():+.4f} +- {interval(difference):.4f} nats; genes {genes}")


def adapter_section():
    """Online quantisation of a rank-16 adapter on all linear layers."""
    generator = np.random.default_rng(0)
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    pairs = [(generator.standard_normal((16, inputs), dtype=np.float32), generator.standard_normal((outputs, 16), dtype=np.float32))
             for _ in range(30) for outputs, inputs in shapes]
    # The second factor by columns: its rows are shorter than a group.
    pairs = [(a, np.ascontiguousarray(b.T)) for a, b in pairs]
    total = sum(a.size + b.size for a, b in pairs)
    for fit in ("range", "least_squares", "hqq"):
        quant, times = ArrowQuant("int4", group=64, fit=fit), []
        for _ in range(5):
            start = time.perf_counter()
            for a, b in pairs:
                quant.quantize(a, threads=2)
                quant.quantize(b, threads=2)
            times.append(1e3 * (time.perf_counter() - start))
        print(f"adapter of rank 16, {total} weights, INT4 g64 {fit:<14} {sorted(times)[2]:7.1f} ms ({min(times):.1f}-{max(times):.1f})")


class State(dict):
    def __init__(self, path):
        super().__init__(json.loads(path.read_text()) if path and path.exists() else {})
        self.path = path

    def save(self):
        if self.path:
            self.path.write_text(json.dumps(self))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("valid", type=pathlib.Path)
    parser.add_argument("calibration", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=16 * WINDOW, help="of held-out text")
    parser.add_argument("--calibration-tokens", type=int, default=16 * WINDOW)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--state", type=pathlib.Path, help="a file from which a run goes on")
    parser.add_argument("--sections", default="weights,activations,adapter", help="of weights, activations, groups, adapter")
    parser.add_argument("--mask", type=int, default=0, help="id of the token that masks")
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    sections = options.sections.split(",")
    if "adapter" in sections:
        adapter_section()
    if sections == ["adapter"]:
        return
    tokenizer = FastTokenizer.from_file(options.model)
    model = Model(options.model)
    valid = windows_of(options.valid, tokenizer, options.tokens, 11)
    calibration = windows_of(options.calibration, tokenizer, options.calibration_tokens, 12)
    if "activations" in sections:
        activations_section(model, valid, calibration, options.mask)
    if "groups" in sections:
        groups_section(model, valid, calibration, options.population, options.generations)
    if "weights" in sections:
        weights_section(model, valid, calibration, State(options.state), options.only, options.mask)


if __name__ == "__main__":
    main()
