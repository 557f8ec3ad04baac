"""What the clients do with a peer that misbehaves, and how lines are read and written. Needs no daemon."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import socket
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import mneme
from fake_daemon import HELLO, ScriptedDaemon
from mneme import _wire as wire
from mneme import errors
from mneme._types import Hello

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = ROOT.parent.parent / "PROTOCOL.md"
DONE = {
    "result": {
        "ack": "indexed", "duplicate": False, "id": "m", "lsn": 1, "quarantined": False, "redactions": 0,
        "replayed": False, "said_by_a_newer_daemon": [1],
    }
}  # fmt: skip


def _sync(daemon: ScriptedDaemon, **options: Any) -> mneme.RememberResult:
    with mneme.Client(daemon.socket) as client:
        return client.remember("tea", **options)


def _async(daemon: ScriptedDaemon, **options: Any) -> mneme.RememberResult:
    async def scenario() -> mneme.RememberResult:
        async with mneme.AsyncClient(daemon.socket) as client:
            return await client.remember("tea", **options)

    return asyncio.run(scenario())


both = pytest.mark.parametrize("remember", [_sync, _async])
Remember = Callable[..., mneme.RememberResult]


def failure(kind: str, **data: Any) -> Dict[str, Any]:
    return {"error": {"code": -32000, "message": "no", "data": {"kind": kind, **data}}}


@both
def test_a_lost_connection_is_opened_again_and_the_change_keeps_its_op_id(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: None if count < 3 else DONE) as daemon:
        assert remember(daemon).id == "m"
        assert daemon.connections == 3
        assert len({request["op_id"] for request in daemon.seen}) == 1


@both
def test_busy_is_waited_for_and_sent_again(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: failure("busy", retry_after_ms=1) if count < 3 else DONE) as daemon:
        assert remember(daemon).id == "m"
        assert len(daemon.seen) == 3


@both
def test_a_call_under_way_waits_for_a_daemon_that_restarts(remember: Remember) -> None:
    def answer(request: Dict[str, Any], count: int) -> Any:
        if count > 1:
            return DONE
        daemon.restart(away_s=0.2)
        return None

    with ScriptedDaemon(answer) as daemon:
        assert remember(daemon).id == "m"
        assert [request["connection"] for request in daemon.seen] == [1, 2]
        assert len({request["op_id"] for request in daemon.seen}) == 1


@both
@pytest.mark.parametrize("retry_after", [{}, {"retry_after_ms": 1}])
def test_a_daemon_that_shuts_down_is_left_for_the_one_that_comes_after_it(
    remember: Remember, retry_after: Dict[str, int]
) -> None:
    def answer(request: Dict[str, Any], count: int) -> Any:
        if count > 1:
            return DONE
        daemon.restart(away_s=0.2)
        return failure("shutting_down", **retry_after)

    with ScriptedDaemon(answer) as daemon:
        assert remember(daemon).id == "m"
        assert [request["connection"] for request in daemon.seen] == [1, 2]
        assert len({request["op_id"] for request in daemon.seen}) == 1


def test_what_is_under_way_is_answered_by_the_daemon_that_shuts_down() -> None:
    async def scenario() -> None:
        async with mneme.AsyncClient(daemon.socket) as client:
            slow = asyncio.ensure_future(client.remember("slow"))
            kept = await client.remember("refused", op_id="b" * 32)
            assert kept.id == "m"
            assert (await slow).id == "m"

    def answer(request: Dict[str, Any], count: int) -> Any:
        if count == 1:
            # The second request is answered first, then the first one.
            return b""
        if count == 2:
            lines = [{"id": request["id"], **failure("shutting_down", retry_after_ms=1)}, {"id": daemon.seen[0]["id"], **DONE}]
            return "".join(json.dumps(line) + "\n" for line in lines).encode()
        return DONE

    with ScriptedDaemon(answer) as daemon:
        asyncio.run(scenario())
        assert [request["connection"] for request in daemon.seen] == [1, 1, 2]


def test_a_drain_is_not_meant_for_the_daemon_after_the_one_that_shuts_down() -> None:
    with ScriptedDaemon(lambda request, count: failure("shutting_down", retry_after_ms=1)) as daemon:
        with pytest.raises(errors.ShuttingDown):
            mneme.Client(daemon.socket).drain()
        assert len(daemon.seen) == 1


@both
def test_a_request_that_is_too_long_is_refused_before_it_is_sent(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: DONE) as daemon:
        with pytest.raises(errors.FrameTooLarge, match="4194304"):
            remember(daemon, metadata={"long": "x" * (4 << 20)})
        assert daemon.seen == []


def test_the_longest_request_is_sent() -> None:
    greeted = wire.decode(Hello, HELLO)
    wire.check_length(b"x" * greeted.limits.frame_bytes_max + b"\n", greeted)
    with pytest.raises(errors.FrameTooLarge):
        wire.check_length(b"x" * (greeted.limits.frame_bytes_max + 1) + b"\n", greeted)


def test_a_request_that_is_too_long_is_no_other_callers() -> None:
    async def scenario() -> None:
        async with mneme.AsyncClient(daemon.socket) as client:
            long, short = await asyncio.gather(
                client.remember("x" * (5 << 20)), client.remember("x"), return_exceptions=True
            )
            assert isinstance(long, errors.FrameTooLarge)
            assert isinstance(short, mneme.RememberResult)
            assert (await client.remember("y")).id == "m"

    with ScriptedDaemon(lambda request, count: DONE) as daemon:
        asyncio.run(scenario())
        assert len(daemon.seen) == 2


def test_an_error_about_a_line_that_nobody_can_name_is_no_other_callers() -> None:
    nameless = json.dumps({"id": None, **failure("frame_too_large")}).encode() + b"\n"

    async def scenario() -> None:
        async with mneme.AsyncClient(daemon.socket) as client:
            kept = await asyncio.gather(client.remember("x"), client.remember("y"))
            assert [result.id for result in kept] == ["m", "m"]

    with ScriptedDaemon(lambda request, count: [b"", nameless, DONE, DONE][count - 1]) as daemon:
        asyncio.run(scenario())
        assert len({request["op_id"] for request in daemon.seen}) == 2


@both
def test_busy_for_longer_than_the_deadline_is_raised(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: failure("busy", retry_after_ms=60_000, hint="later")) as daemon:
        with pytest.raises(errors.Busy) as raised:
            remember(daemon, timeout=5)
        assert raised.value.retry_after_ms == 60_000
        assert raised.value.hint == "later"
        assert len(daemon.seen) == 1


@both
def test_silence_ends_at_the_deadline(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: b"") as daemon:
        with pytest.raises(errors.DeadlineExceeded):
            remember(daemon, timeout=0.5)
        assert 1 <= daemon.seen[0]["deadline_ms"] <= 500


@both
@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"id":2,"jsonrpc":"2.0","result":{"id":7}}\n', b"\xff\n"])
def test_a_line_that_is_not_the_protocol_is_an_error_of_its_own(remember: Remember, line: bytes) -> None:
    with ScriptedDaemon(lambda request, count: line) as daemon:
        with pytest.raises(errors.ProtocolError):
            remember(daemon, timeout=5)


@both
def test_an_unknown_kind_of_error_keeps_its_name(remember: Remember) -> None:
    with ScriptedDaemon(lambda request, count: failure("teapot")) as daemon:
        with pytest.raises(mneme.MnemeError) as raised:
            remember(daemon)
        assert raised.value.kind == "teapot"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.generate("x"),
        lambda client: client.evolve_run(),
        lambda client: client.evolve_rollback("a"),
        lambda client: client.backup("/backup"),
        lambda client: client.compact(),
        lambda client: client.drain(),
    ],
)
def test_what_no_op_id_makes_once_is_not_sent_twice(call: Callable[[mneme.Client], object]) -> None:
    with ScriptedDaemon(lambda request, count: None) as daemon:
        with pytest.raises(errors.Disconnected):
            call(mneme.Client(daemon.socket))
        assert len(daemon.seen) == 1


def test_what_is_not_sent_twice_are_methods_of_the_protocol() -> None:
    methods = set(re.findall(r"^### `([\w.]+)`$", PROTOCOL.read_text(encoding="utf-8"), re.M))
    assert wire.NOT_REPEATED <= methods


def test_a_late_answer_is_never_taken_for_another_calls() -> None:
    answers: List[Any] = [b"", DONE]
    with ScriptedDaemon(lambda request, count: answers[count - 1]) as daemon:
        client = mneme.Client(daemon.socket)
        with pytest.raises(errors.DeadlineExceeded):
            client.remember("first", timeout=0.5)
        assert client.remember("second").id == "m"
        assert daemon.connections == 2


def test_every_kind_of_the_protocol_has_a_class_that_knows_whether_it_passes() -> None:
    table = re.findall(r"^\| `(\w+)` \| -\d+ \| (yes|no) \|$", PROTOCOL.read_text(encoding="utf-8"), re.M)
    assert len(table) == len(errors.BY_KIND)
    for kind, transient in table:
        assert errors.BY_KIND[kind].transient == (transient == "yes"), kind


def test_the_generated_files_are_those_of_the_protocol_page() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"run tools/generate.py: {path.name} is older than PROTOCOL.md"


def test_a_stream_that_is_not_read_is_left_in_the_daemon() -> None:
    told = {"task": "t", "sequence": 0, "event": {"type": "started", "from_the_future": "x" * 4096}}
    events = (json.dumps({"jsonrpc": "2.0", "method": "task.event", "params": told}).encode() + b"\n") * 4096
    writers: List[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        writer.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": HELLO}).encode() + b"\n")
        await reader.readline()
        writer.write(events)
        writers.append(writer)

    async def scenario(path: Path) -> None:
        server = await asyncio.start_unix_server(serve, path)
        client = mneme.AsyncClient(path)
        stream = client.generate_stream("x")
        await stream.__anext__()
        # What is taken is taken within a moment: there is nothing else to do.
        for _ in range(100):
            await asyncio.sleep(0.01)
            assert writers[0].transport.get_write_buffer_size() > len(events) // 2, "the client keeps it all"
        for _ in range(1_000):
            assert isinstance(await stream.__anext__(), mneme.TaskEvent), "reading goes on when the caller does"
        await stream.aclose()  # type: ignore[attr-defined]
        server.close()

    with tempfile.TemporaryDirectory(prefix="mneme-") as folder:
        asyncio.run(asyncio.wait_for(scenario(Path(folder) / "s"), 60))


def test_a_long_answer_is_read_whole() -> None:
    long = {"result": {**DONE["result"], "id": "m" * (1 << 20)}}
    with ScriptedDaemon(lambda request, count: long) as daemon:
        assert len(_async(daemon).id) == len(_sync(daemon).id) == 1 << 20


def test_a_daemon_that_does_not_greet_is_told_with_the_time_that_it_had() -> None:
    with tempfile.TemporaryDirectory(prefix="mneme-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "s"
        listener.bind(str(path))
        listener.listen()
        for timeout, told in ((30.0, "within 0.2 s"), (0.1, "within 0.1 s")):
            with mneme.Client(path, connect_timeout=0.2, timeout=timeout) as client:
                with pytest.raises(errors.DeadlineExceeded, match=told):
                    client.remember("tea")

            async def scenario() -> None:
                async with mneme.AsyncClient(path, connect_timeout=0.2, timeout=timeout) as client:
                    await client.remember("tea")

            with pytest.raises(errors.DeadlineExceeded, match=told):
                asyncio.run(scenario())


def test_parameters_that_were_not_given_are_not_sent() -> None:
    request = json.loads(wire.encode(1, "m", {"a": None, "b": False, "c": "ü\n"}, op_id="o"))
    assert request == {"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"b": False, "c": "ü\n"}, "op_id": "o"}
    assert wire.encode(1, "m", {"c": "a\nb"}).count(b"\n") == 1


@pytest.mark.parametrize(
    ("environment", "socket"),
    [
        ({"MNEME_SOCKET": "/a/s"}, "/a/s"),
        ({"MNEME_PATHS__RUNTIME_DIR": "/r", "XDG_RUNTIME_DIR": "/x"}, "/r/mneme.sock"),
        ({"XDG_RUNTIME_DIR": "/x"}, "/x/mneme/mneme.sock"),
        ({"XDG_RUNTIME_DIR": "x", "XDG_STATE_HOME": "/s"}, "/s/mneme/run/mneme.sock"),
        ({"MNEME_PATHS__STATE_DIR": "/d"}, "/d/run/mneme.sock"),
        ({"HOME": "/h", "MNEME_SOCKET": ""}, "/h/.local/state/mneme/run/mneme.sock"),
    ],
)
def test_the_socket_is_where_the_daemon_puts_it(
    monkeypatch: pytest.MonkeyPatch, environment: Dict[str, str], socket: str
) -> None:
    for name in ("MNEME_SOCKET", "MNEME_PATHS__RUNTIME_DIR", "MNEME_PATHS__STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(wire.default_socket()) == socket
