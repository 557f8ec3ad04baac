"""ArrowQuant against its peers, call by call in one run.

Each round times one call of ours (in the bench process, through its `serve` mode) and one of every peer, in turn; the ratio
peer / ours is taken within the round, and the table gives its minimum, median and maximum. A ratio over 1 means that ours is
faster. With one thread the clocks are those of the calling threads, so that other work on the machine does not count; with
more it is the wall. A peer that is not installed, or fails, is listed with the reason.

    cargo bench -p mneme-bench --bench quant --no-run   # prints the path of the bench program
    python bench/peers/quant.py --ours PATH [--threads 1] [--rounds 15] [--ggml FOLDER] [--only gemm]

Peers: numpy; torch, torchao, bitsandbytes, onnx + onnxruntime (pip); llama.cpp as the shared libraries of the npm package
@node-llama-cpp/linux-x64 (folder bins/linux-x64).
"""

import argparse
import ctypes
import glob
import os
import statistics
import subprocess
import sys
import time

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("--ours", required=True)
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--rounds", type=int, default=15)
PARSER.add_argument("--ggml", default="")
PARSER.add_argument("--only", default="")
PARSER.add_argument("--serve-ggml", action="store_true", help=argparse.SUPPRESS)
PARSER.add_argument("--shapes", default="1536x576,576x1536,8192x2048,4096x4096", help="outputs x inputs")
PARSER.add_argument("--rows", default="1,16,64,128,512")
ARGS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGS.threads)
os.environ["OPENBLAS_NUM_THREADS"] = str(ARGS.threads)

import numpy as np  # noqa: E402  (after the thread settings)

SKIPPED = {}
RANDOM = np.random.default_rng(7)


class Ours:
    """The bench program, answering one line for each."""

    def __init__(self, path):
        self.process = subprocess.Popen([path, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def case(self, words):
        answer = self.ask(f"case {words} threads={ARGS.threads}")
        if answer != "ready":
            sys.exit(f"bench program does not know the case {words}: {answer}")

    def run(self):
        wall, own = self.ask("run").split()
        return int(own) if ARGS.threads == 1 else int(wall)


def clock():
    return time.thread_time_ns() if ARGS.threads == 1 else time.perf_counter_ns()


def timed(call):
    if getattr(call, "times_itself", False):
        return call()
    start = clock()
    call()
    return clock() - start


def compare(ours, title, words, peers):
    """Alternates ours and the peers, and prints a row for each peer."""
    ours.case(words)
    ready = {}
    for name, make in peers.items():
        try:
            call = make()
            call()
            ready[name] = call
        except Exception as error:  # a peer's failure is a row in the list, not an end
            SKIPPED.setdefault(name, f"{type(error).__name__}: {str(error).splitlines()[0][:140] if str(error) else ''}")
    ours.run()
    own, ratios = [], {name: [] for name in ready}
    for _ in range(ARGS.rounds):
        mine = max(ours.run(), 1)
        own.append(mine)
        for name, call in ready.items():
            ratios[name].append(timed(call) / mine)
    for call in ready.values():
        if getattr(call, "times_itself", False):
            call.process.process.kill()
    print(f"| {title} | ours | {statistics.median(own) / 1e3:.0f} µs | | | |", flush=True)
    for name, values in ratios.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        took = statistics.median(own) * middle / 1e3
        print(f"| {title} | {name} | {took:.0f} µs | {low:.2f} | **{middle:.2f}** | {high:.2f} |", flush=True)


# --- codecs -----------------------------------------------------------------------------------------------------------


def quantize_numpy(values, bits, group):
    """As one writes it: minimum and maximum of each group, divide, round, pack."""
    top = (1 << bits) - 1
    grouped = values.reshape(-1, group)
    low, high = grouped.min(axis=1, keepdims=True), grouped.max(axis=1, keepdims=True)
    scale = (high - low) / top
    codes = np.clip(np.round((grouped - low) / scale), 0, top).astype(np.uint8).reshape(-1)
    packed = np.zeros(codes.size * bits // 8, np.uint8)
    for index in range(8 // bits):
        packed |= codes[index :: 8 // bits] << (index * bits)
    return packed, scale.astype(np.float16), low.astype(np.float16)


def quantize_numpy_in_place(values, bits, group, scratch):
    """The same without temporaries: everything in one preallocated array."""
    top = (1 << bits) - 1
    grouped = values.reshape(-1, group)
    low, high = grouped.min(axis=1, keepdims=True), grouped.max(axis=1, keepdims=True)
    scale = (high - low) / top
    np.subtract(grouped, low, out=scratch)
    np.multiply(scratch, 1 / scale, out=scratch)
    np.rint(scratch, out=scratch)
    codes = scratch.astype(np.uint8).reshape(-1, 8 // bits)
    weights = np.array([1 << (bits * index) for index in range(8 // bits)], np.uint8)
    packed = codes[:, 0].copy()
    for index in range(1, 8 // bits):
        packed |= codes[:, index] * weights[index]
    return packed, scale.astype(np.float16), low.astype(np.float16)


def dequantize_numpy(packed, scale, low, bits, group):
    parts = [(packed >> (bits * index)) & ((1 << bits) - 1) for index in range(8 // bits)]
    codes = np.stack(parts, axis=-1).reshape(-1, group)
    return codes.astype(np.float32) * scale.astype(np.float32) + low.astype(np.float32)


def dequantize_numpy_table(packed, scale, low, bits, group, table, out):
    """A table of all codes of a byte, then scale and add in place."""
    np.take(table, packed, axis=0, out=out.reshape(packed.size, 8 // bits), mode="clip")
    out *= scale
    out += low
    return out


def codecs(ours):
    side = 4096
    values = RANDOM.standard_normal((side, side)).astype(np.float32)
    for bits, group in ((4, 32), (4, 128), (2, 64)):
        words = f"rows={side} columns={side} bits={bits} group={group} minimum=1"
        scratch = np.empty((side * side // group, group), np.float32)
        compare(
            ours,
            f"quantise INT{bits} g{group}, 4096 x 4096",
            "quantize " + words,
            {
                "numpy naive": lambda: lambda: quantize_numpy(values, bits, group),
                "numpy in place": lambda: lambda: quantize_numpy_in_place(values, bits, group, scratch),
            },
        )
        packed, scale, low = quantize_numpy(values, bits, group)
        every = np.arange(256, dtype=np.uint8)
        table = np.stack([(every >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)], -1).astype(np.float32)
        scale32, low32, out = scale.astype(np.float32), low.astype(np.float32), np.empty_like(scratch)
        compare(
            ours,
            f"dequantise INT{bits} g{group}, 4096 x 4096",
            "dequantize " + words,
            {
                "numpy naive": lambda: lambda: dequantize_numpy(packed, scale, low, bits, group),
                "numpy table, in place": lambda: lambda: dequantize_numpy_table(
                    packed, scale32, low32, bits, group, table, out
                ),
            },
        )


# --- products ---------------------------------------------------------------------------------------------------------


def torch_module():
    import torch

    torch.set_num_threads(ARGS.threads)
    return torch


def torch_bf16(rows, outputs, inputs):
    torch = torch_module()
    weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: torch.nn.functional.linear(x, weight)


def torch_int4pack(rows, outputs, inputs):
    torch = torch_module()
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    group = next(size for size in (128, 64, 32) if inputs % size == 0)
    scales = torch.randn(inputs // group, outputs, 2, dtype=torch.bfloat16)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales)


def torchao_int4(rows, outputs, inputs):
    torch = torch_module()
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False)).to(torch.float32)
    group = next(size for size in (128, 64, 32) if inputs % size == 0)
    quantize_(model, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(group)))
    x = torch.randn(rows, inputs)

    def call():
        with torch.inference_mode():
            model(x)

    return call


def bitsandbytes_4bit(rows, outputs, inputs):
    torch = torch_module()
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)

    def call():
        with torch.inference_mode():
            layer(x)

    return call


def onnx_int4(rows, outputs, inputs):
    import onnx
    import onnxruntime

    group = next(size for size in (128, 64, 32) if inputs % size == 0)
    blocks = inputs // group
    codes = RANDOM.integers(0, 256, (outputs, blocks, group // 2), dtype=np.uint8)
    scales = RANDOM.standard_normal(outputs * blocks).astype(np.float32)
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=inputs, N=outputs, bits=4, block_size=group, accuracy_level=4,
    )
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [rows, inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [rows, outputs])],
        [onnx.numpy_helper.from_array(codes, "w"), onnx.numpy_helper.from_array(scales, "s")],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = ARGS.threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = {"x": RANDOM.standard_normal((rows, inputs)).astype(np.float32)}
    return lambda: session.run(None, x)


class Ggml:
    """A product through llama.cpp's own graph and CPU backend."""

    Q4_0, F32 = 2, 0

    def __init__(self):
        if not ARGS.ggml:
            raise RuntimeError("no --ggml folder given")
        load = lambda name: ctypes.CDLL(sorted(glob.glob(os.path.join(ARGS.ggml, name)))[0], ctypes.RTLD_GLOBAL)
        self.base = load("libggml-base*.so*")
        self.ggml = load("libggml.*so*")
        for library, names in (
            (self.base, ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_get_data")),
            (self.base, ("ggml_backend_alloc_ctx_tensors_from_buft", "ggml_backend_dev_buffer_type")),
            (self.ggml, ("ggml_backend_dev_by_type", "ggml_backend_reg_by_name", "ggml_backend_load")),
            (self.base, ("ggml_backend_dev_init", "ggml_backend_reg_get_proc_address")),
        ):
            for name in names:
                getattr(library, name).restype = ctypes.c_void_p
        flavour = "sapphirerapids" if "amx_int8" in open("/proc/cpuinfo").read() else "icelake"
        registry = self.ggml.ggml_backend_load(os.path.join(ARGS.ggml, f"libggml-cpu-{flavour}.so").encode())
        if not registry:
            raise RuntimeError(f"backend {flavour} did not load")
        self.registry = ctypes.c_void_p(registry)
        self.device = ctypes.c_void_p(self.ggml.ggml_backend_dev_by_type(0))
        self.backend = ctypes.c_void_p(self.base.ggml_backend_dev_init(self.device, None))
        set_threads = self.base.ggml_backend_reg_get_proc_address(self.registry, b"ggml_backend_set_n_threads")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(set_threads)(self.backend, ARGS.threads)

    def extra_buffer(self, wanted):
        """One of the buffers in which llama.cpp lays out weights anew."""
        address = self.base.ggml_backend_reg_get_proc_address(self.registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        types = get(self.device)
        self.base.ggml_backend_buft_name.restype = ctypes.c_char_p
        index = 0
        while types and types[index]:
            if self.base.ggml_backend_buft_name(ctypes.c_void_p(types[index])) == wanted:
                return ctypes.c_void_p(types[index])
            index += 1
        return None

    def product(self, rows, outputs, inputs, layout):
        class Params(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

        void, long = ctypes.c_void_p, ctypes.c_int64
        self.base.ggml_init.argtypes = [Params]
        new = lambda: void(self.base.ggml_init(Params(1 << 20, None, True)))
        weights, rest = new(), new()
        tensor = lambda context, kind, a, b: void(
            self.base.ggml_new_tensor_2d(context, ctypes.c_int(kind), long(a), long(b))
        )
        plain = void(self.base.ggml_backend_dev_buffer_type(self.device))
        kind = self.extra_buffer(layout) if layout else plain
        if kind is None:
            raise RuntimeError(f"no buffer type {layout}")
        w = tensor(weights, self.Q4_0, inputs, outputs)
        x = tensor(rest, self.F32, inputs, rows)
        if not self.base.ggml_backend_alloc_ctx_tensors_from_buft(weights, kind):
            raise RuntimeError("weights were not allocated")
        y = void(self.base.ggml_mul_mat(rest, w, x))
        if not self.base.ggml_backend_alloc_ctx_tensors_from_buft(rest, plain):
            raise RuntimeError("activations were not allocated")
        blocks = np.zeros(outputs * inputs // 32, np.dtype([("scale", np.float16), ("codes", np.uint8, 16)]))
        blocks["scale"] = 0.01
        blocks["codes"] = RANDOM.integers(0, 256, (blocks.size, 16), dtype=np.uint8)
        values = RANDOM.standard_normal((rows, inputs)).astype(np.float32)
        for target, data in ((w, blocks), (x, values)):
            self.base.ggml_backend_tensor_set(target, void(data.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(data.nbytes))
        graph = void(self.base.ggml_new_graph(rest))
        self.base.ggml_build_forward_expand(graph, y)
        return lambda: self.base.ggml_backend_graph_compute(self.backend, graph)


class GgmlProcess:
    """llama.cpp in a process of its own: torch gives back the AMX tile registers that llama.cpp takes to be set up."""

    def __init__(self):
        command = [sys.executable, *sys.argv, "--serve-ggml"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer or answer.startswith("failed"):
            raise RuntimeError(answer or "llama.cpp's process ended")
        return answer


def serve_ggml():
    ggml, call = None, None
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "run":
                print(timed(call), flush=True)
            else:
                ggml = ggml or Ggml()
                layout = None if words[3] == "plain" else words[3].encode()
                call = ggml.product(*(int(word) for word in words[:3]), layout)
                call()
                print("ready", flush=True)
        except Exception as error:
            print(f"failed: {error}", flush=True)


def llama(rows, outputs, inputs, layout):
    process = GgmlProcess()
    process.ask(f"{rows} {outputs} {inputs} {layout}")

    def call():
        return int(process.ask("run"))

    call.times_itself = True
    call.process = process
    return call


def products(ours):
    for shape in ARGS.shapes.split(","):
        outputs, inputs = (int(number) for number in shape.split("x"))
        group = next(size for size in (128, 64, 32) if inputs % size == 0)
        for rows in (int(number) for number in ARGS.rows.split(",")):
            size = (rows, outputs, inputs)
            compare(
                ours,
                f"W4A8 g{group} M={rows} N={outputs} K={inputs}",
                f"gemm bits=4 group={group} m={rows} n={outputs} k={inputs}",
                {
                    "torch bf16": lambda: torch_bf16(*size),
                    "torch int4pack bf16": lambda: torch_int4pack(*size),
                    "torchao int8 dynamic, int4": lambda: torchao_int4(*size),
                    "bitsandbytes nf4": lambda: bitsandbytes_4bit(*size),
                    "onnxruntime MatMulNBits level 4": lambda: onnx_int4(*size),
                    "llama.cpp Q4_0 (g32)": lambda: llama(*size, "plain"),
                    "llama.cpp Q4_0 repacked (g32)": lambda: llama(*size, "CPU_REPACK"),
                    "llama.cpp Q4_0 AMX (g32)": lambda: llama(*size, "AMX"),
                },
            )


def main():
    ours = Ours(ARGS.ours)
    clock_name = "thread time" if ARGS.threads == 1 else "wall time"
    print(f"{ARGS.threads} thread(s), {clock_name}, {ARGS.rounds} rounds\n")
    print("| case | implementation | median | peer / ours min | median | max |\n|---|---|---|---|---|---|")
    if ARGS.only in ("", "codecs"):
        codecs(ours)
    if ARGS.only in ("", "gemm"):
        products(ours)
    for name, reason in SKIPPED.items():
        print(f"\nskipped or failed in part: {name}: {reason}")


serve_ggml() if ARGS.serve_ggml else main()
