"""What a client costs: the same calls over the bare socket, through the Python SDK, and through `mneme mcp`, in one run.

    cargo xtask bench clients

Each round asks every way in turn, so that what else the machine does falls on all of them; medians over rounds. The way by the
official MCP client is measured where the package `mcp` is installed for the Python that runs this.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "python" / "src"))

import mneme  # noqa: E402

QUESTION = "dinner at my Lord's"
START_S_MAX = 30.0


def start(program: str, folder: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "MNEME_PATHS__STATE_DIR": str(folder / "state"), "MNEME_PATHS__RUNTIME_DIR": str(folder / "run")}
    daemon = subprocess.Popen(
        [program, "--set", "engine.program=fake"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until and daemon.poll() is None:
        try:
            with mneme.Client(folder / "run" / "mneme.sock") as client:
                client.ping()
            return daemon
        except mneme.errors.ConnectionFailed:
            time.sleep(0.02)
    raise SystemExit("the daemon does not start")


class Raw:
    """The protocol by hand: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        self.number = 0
        self.call("hello", {"protocol": 1, "client": "bench"})

    def call(self, method: str, params: Dict[str, Any]) -> Any:
        self.number += 1
        frame = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.socket.sendall(json.dumps(frame).encode() + b"\n")
        return json.loads(self.lines.readline())["result"]


class Mcp:
    """`mneme mcp` by hand, in the revision without a handshake."""

    META = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    }

    def __init__(self, program: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [program, "--socket", str(path), "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.number = 0

    def call(self, tool: str, arguments: Dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.number += 1
        params = {"name": tool, "arguments": arguments, "_meta": self.META}
        frame = {"jsonrpc": "2.0", "id": self.number, "method": "tools/call", "params": params}
        self.process.stdin.write(json.dumps(frame).encode() + b"\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())["result"]
        assert not result["isError"], result
        return result["structuredContent"]


def times(call: Callable[[], Any], count: int) -> List[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e6)
    return taken


def official(program: str, path: Path, calls: Dict[str, Any], rounds: int, count: int) -> Dict[str, List[List[float]]]:
    """The official client's way, on an event loop of its own."""
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    async def work() -> Dict[str, List[List[float]]]:
        taken: Dict[str, List[List[float]]] = {name: [] for name in calls}
        server = StdioServerParameters(command=program, args=["--socket", str(path), "mcp"])
        async with Client(stdio_client(server)) as client:
            for _ in range(rounds):
                for name, (tool, arguments) in calls.items():
                    one = []
                    for _ in range(count):
                        began = time.perf_counter()
                        await client.call_tool(tool, arguments())
                        one.append((time.perf_counter() - began) * 1e6)
                    taken[name].append(one)
        return taken

    return asyncio.run(work())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--mneme", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mneme-") as name:
        folder = Path(name)
        daemon = start(options.daemon, folder)
        try:
            measure(options, folder / "run" / "mneme.sock")
        finally:
            daemon.terminate()
            daemon.wait()


def measure(options: argparse.Namespace, path: Path) -> None:
    diary = HERE.parent / "tests" / "data" / "pepys-1660.jsonl"
    raw, sdk, mcp = Raw(path), mneme.Client(path, client="bench"), Mcp(options.mneme, path)
    sdk.import_memories([json.loads(line) for line in diary.read_text(encoding="utf-8").splitlines()])
    while sdk.stats().embeddings_pending:
        time.sleep(0.05)
    number = iter(range(1_000_000_000))

    def text() -> str:
        return f"measured note {next(number)}"

    ways: Dict[str, Dict[str, Callable[[], Any]]] = {
        "status": {
            "socket": lambda: raw.call("admin.status", {}),
            "SDK": lambda: sdk.status(),
            "MCP": lambda: mcp.call("status", {}),
        },
        "recall": {
            "socket": lambda: raw.call("memory.recall", {"query": QUESTION, "limit": 5}),
            "SDK": lambda: sdk.recall(QUESTION, limit=5),
            "MCP": lambda: mcp.call("recall", {"query": QUESTION, "limit": 5}),
        },
        "remember": {
            "socket": lambda: raw.call("memory.remember", {"text": text(), "namespace": "bench"}),
            "SDK": lambda: sdk.remember(text(), namespace="bench"),
            "MCP": lambda: mcp.call("remember", {"text": text(), "namespace": "bench"}),
        },
    }
    taken: Dict[str, Dict[str, List[List[float]]]] = {call: {way: [] for way in by} for call, by in ways.items()}
    for by in ways.values():
        for call in by.values():
            times(call, 20)
    for _ in range(options.rounds):
        for name, by in ways.items():
            for way, call in by.items():
                taken[name][way].append(times(call, options.calls))
    try:
        calls = {
            "status": ("status", lambda: {}),
            "recall": ("recall", lambda: {"query": QUESTION, "limit": 5}),
            "remember": ("remember", lambda: {"text": text(), "namespace": "bench"}),
        }
        for name, rounds in official(options.mneme, path, calls, options.rounds, options.calls).items():
            taken[name]["MCP, official client"] = rounds
    except ImportError:
        print("the package mcp is not installed: the official client is left out")
    print(f"{options.rounds} rounds of {options.calls} calls, medians over rounds; Python {sys.version.split()[0]}\n")
    print("| call | way | p50 µs | p99 µs | over the one before, µs |\n|---|---|---|---|---|")
    for name, by in taken.items():
        before = None
        for way, rounds in by.items():
            p50 = statistics.median(statistics.median(one) for one in rounds)
            p99 = statistics.median(sorted(one)[int(len(one) * 0.99)] for one in rounds)
            more = "" if before is None else f"{p50 - before:+.0f}"
            print(f"| {name} | {way} | {p50:.0f} | {p99:.0f} | {more} |")
            before = p50
    mcp.process.terminate()
    sdk.close()


if __name__ == "__main__":
    main()
