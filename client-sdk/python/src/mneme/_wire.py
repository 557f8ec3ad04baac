"""What both clients share: where the socket is, requests as lines, responses as typed results, when to try again."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import typing
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union, cast

from . import errors
from ._types import Hello, Selector

T = TypeVar("T")

PROTOCOL_VERSION = 1
"""The version of the protocol that this package speaks."""
FRAME_BYTES_MAX = 256 << 20
"""A longer line from the daemon ends the connection (bytes): a page of an export fits."""
BACKOFF_S = 0.02
"""First pause before a lost connection is opened again; doubles up to `BACKOFF_MAX_S`."""
BACKOFF_MAX_S = 1.0
"""The longest pause between two attempts."""
BUSY_RETRY_S = 0.05
"""The pause after `busy` when the daemon names none."""
NOT_REPEATED = frozenset(
    {
        "generate",
        "task.events",
        "evolve.run",
        "evolve.rollback",
        "evolve.pin",
        "evolve.retire",
        "evolve.import",
        "watch.add",
        "watch.remove",
        "admin.backup",
        "admin.compact",
        "admin.drain",
    }
)
"""Calls that are not sent again after a lost connection: no `op_id` makes these once, they would be carried out twice."""


def default_socket() -> Path:
    """The socket of this user's daemon: `MNEME_SOCKET`, else where the daemon's own defaults put it."""

    def variable(name: str) -> Optional[Path]:
        value = os.environ.get(name)
        return Path(value) if value else None

    socket = variable("MNEME_SOCKET")
    if socket is not None:
        return socket
    folder = variable("MNEME_PATHS__RUNTIME_DIR")
    if folder is not None:
        return folder / "mneme.sock"
    runtime = variable("XDG_RUNTIME_DIR")
    if runtime is not None and runtime.is_absolute():
        return runtime / "mneme" / "mneme.sock"
    state = variable("MNEME_PATHS__STATE_DIR")
    if state is None:
        home = variable("XDG_STATE_HOME")
        state = home / "mneme" if home is not None else Path.home() / ".local" / "state" / "mneme"
    return state / "run" / "mneme.sock"


def new_op_id() -> str:
    """A name for a change, to be sent with every attempt at it."""
    return uuid.uuid4().hex


def selector(select: Union[str, Sequence[str], Selector]) -> Dict[str, Any]:
    """What to forget: one id, several ids, or a selector such as `{"source": "mail"}`."""
    if isinstance(select, str):
        return {"ids": [select]}
    if isinstance(select, Mapping):
        return dict(select)
    return {"ids": list(select)}


def encode(
    identifier: int,
    method: str,
    params: Mapping[str, Any],
    *,
    op_id: Optional[str] = None,
    deadline_ms: Optional[int] = None,
    min_lsn: Optional[int] = None,
) -> bytes:
    """A request as a line. Parameters that are None are left out."""
    given = {name: value for name, value in params.items() if value is not None}
    request: Dict[str, Any] = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": given}
    extra = {"op_id": op_id, "deadline_ms": deadline_ms, "min_lsn": min_lsn}
    request.update({name: value for name, value in extra.items() if value is not None})
    return json.dumps(request, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def check_length(line: bytes, greeted: Optional[Hello]) -> None:
    """Refuses a request that the daemon would not take: it would close the connection, and with it other calls.

    The daemon counts the line without its end.
    """
    length = len(line) - 1
    if greeted is not None and length > greeted.limits.frame_bytes_max:
        raise errors.FrameTooLarge(
            f"request has {length} bytes, daemon takes {greeted.limits.frame_bytes_max}",
            hint="send it in parts, or raise server.frame_bytes_max",
        )


def parse(line: bytes) -> Dict[str, Any]:
    """A line from the daemon."""
    try:
        frame = json.loads(line)
    except ValueError as error:
        raise errors.ProtocolError(f"daemon sent a line that is not JSON: {error}") from error
    if not isinstance(frame, dict):
        raise errors.ProtocolError("daemon sent a line that is not an object")
    return frame


def hello(client: str, version: str, session: Optional[str]) -> Dict[str, Any]:
    """The parameters of the greeting."""
    return {"protocol": PROTOCOL_VERSION, "client": client, "client_version": version, "session": session}


def pause_after(error: errors.MnemeError, method: str, pause: float) -> Optional[float]:
    """How long to wait before the same call is sent again; None when it is not to be sent again."""
    if isinstance(error, errors.Busy):
        after = BUSY_RETRY_S if error.retry_after_ms is None else error.retry_after_ms / 1000
        return max(after, pause)
    # It was refused before anything was done: whoever listens next may take it. A drain is not meant for that one.
    if isinstance(error, errors.ShuttingDown) and method != "admin.drain":
        return max(pause, (error.retry_after_ms or 0) / 1000)
    if isinstance(error, errors.Disconnected) and method not in NOT_REPEATED:
        return pause
    # The daemon may be restarting: between its end and its start nothing listens. Before the first pause it never was there.
    if isinstance(error, errors.NotRunning) and pause > BACKOFF_S:
        return pause
    return None


def connect_error(socket: Path, error: OSError) -> errors.MnemeError:
    """Why the socket could not be opened."""
    if isinstance(error, PermissionError):
        return errors.Forbidden(
            f"daemon at {socket} refuses this user", hint="each user has a daemon of their own; check MNEME_SOCKET"
        )
    return errors.NotRunning(
        f"daemon is not running at {socket}: {error.strerror or error}",
        hint="start it with 'mneme service start' or 'mnemed'",
    )


def timed_out(seconds: float) -> errors.DeadlineExceeded:
    """The error of a call that took too long."""
    return errors.DeadlineExceeded(
        f"daemon did not answer within {seconds:g} s", hint="see 'mneme status' for what it is doing"
    )


def decode(kind: Type[T], value: Any) -> T:
    """A response as its type. Unknown members are passed over, so that a newer daemon can say more."""
    return cast(T, _decoder(cast(Any, kind))(value))


_PLAIN: Dict[Any, Any] = {str: str, int: int, bool: bool}


@lru_cache(maxsize=None)
def _decoder(kind: Any) -> Callable[[Any], Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union and type(None) in arguments:
        (inner,) = [_decoder(argument) for argument in arguments if argument is not type(None)]
        return lambda value: None if value is None else inner(value)
    if origin is list:
        item = _decoder(arguments[0])
        return lambda value: [item(entry) for entry in _expect(value, list)]
    if origin is dict:
        item = _decoder(arguments[1])
        return lambda value: {str(name): item(entry) for name, entry in _expect(value, dict).items()}
    if origin is tuple:
        items = [_decoder(argument) for argument in arguments]

        def pair(value: Any) -> Any:
            entries = _expect(value, list)
            if len(entries) != len(items):
                raise errors.ProtocolError(f"daemon sent {len(entries)} values where {len(items)} belong")
            return tuple(item(entry) for item, entry in zip(items, entries))

        return pair
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if kind is float:
        return lambda value: float("nan") if value is None else float(_expect(value, (int, float)))
    if kind in _PLAIN:
        return lambda value: _expect(value, kind)
    # Names of choices and free mappings stay as they are: a newer daemon may know more of them.
    return lambda value: value


def _record(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    fields = [(entry.name, entry.name.rstrip("_"), _decoder(hints[entry.name])) for entry in dataclasses.fields(kind)]

    def record(value: Any) -> Any:
        members = _expect(value, dict)
        try:
            return kind(**{name: decoder(members[wire]) for name, wire, decoder in fields if wire in members})
        except TypeError as error:
            raise errors.ProtocolError(
                f"daemon sent an incomplete {kind.__name__}: {error}",
                hint="client and daemon are of different versions; upgrade both",
            ) from error

    return record


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise errors.ProtocolError(f"daemon sent {type(value).__name__} where {kind} belongs")
    return value
