"""What the clients do with a peer that misbehaves, and how lines are read and written. Needs no daemon."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import mneme
from fake_daemon import ScriptedDaemon
from mneme import _wire as wire
from mneme import errors

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


def test_a_generation_is_not_sent_twice() -> None:
    with ScriptedDaemon(lambda request, count: None) as daemon:
        with pytest.raises(errors.Disconnected):
            mneme.Client(daemon.socket).generate("x")
        assert len(daemon.seen) == 1


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
