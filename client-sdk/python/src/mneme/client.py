"""The blocking client. Safe to use from several threads: each call under way has a connection of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Type, TypeVar, Union

from . import _types as types
from . import _wire as wire
from . import errors
from ._sync_api import SyncApi
from ._version import __version__

T = TypeVar("T")

IDLE_CONNECTIONS_MAX = 8
"""Connections that are kept open for the next call."""
READ_BYTES = 64 << 10
"""Bytes read at once."""


class _Connection:
    """One greeted connection, used by one call at a time."""

    hello: Optional[types.Hello] = None

    def __init__(self, path: Path, greeting: Mapping[str, Any], until: float) -> None:
        self._buffer = bytearray()
        self._next_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._patience(until)
            try:
                self._socket.connect(os.fspath(path))
            except socket.timeout:
                raise
            except OSError as error:
                raise wire.connect_error(path, error) from error
            self.hello = wire.decode(types.Hello, self.exchange("hello", greeting, until=until))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def is_stale(self) -> bool:
        """Whether the daemon has closed it, or said something that nobody asked for."""
        # A socket with a timeout would wait for it even when told not to: it must not block at all.
        self._socket.setblocking(False)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    def exchange(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        until: float,
        op_id: Optional[str] = None,
        min_lsn: Optional[int] = None,
        observe: Optional[Callable[[types.TaskEvent], None]] = None,
    ) -> Any:
        """Sends a request and waits for its result."""
        identifier = self.send(method, params, until=until, op_id=op_id, min_lsn=min_lsn)
        while True:
            frame = self.receive(identifier, until)
            if isinstance(frame, types.TaskEvent):
                if observe is not None:
                    observe(frame)
                continue
            return frame["result"]

    def send(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        until: float,
        op_id: Optional[str] = None,
        min_lsn: Optional[int] = None,
    ) -> int:
        self._next_id += 1
        deadline_ms = max(1, int((until - time.monotonic()) * 1000))
        line = wire.encode(self._next_id, method, params, op_id=op_id, deadline_ms=deadline_ms, min_lsn=min_lsn)
        wire.check_length(line, self.hello)
        self._patience(until)
        try:
            self._socket.sendall(line)
        except socket.timeout:
            raise
        except OSError as error:
            # The daemon may have said why before it closed.
            if not self._readable():
                raise errors.Disconnected("connection to the daemon was lost") from error
        return self._next_id

    def receive(self, identifier: int, until: float) -> Union[types.TaskEvent, Dict[str, Any]]:
        """The next event, or the response with that id; its error is raised."""
        while True:
            frame = wire.parse(self._line(until))
            if frame.get("method") == "task.event":
                return wire.decode(types.TaskEvent, frame.get("params"))
            # An error without an id is about the connection itself.
            if frame.get("error") is not None and frame.get("id") in (None, identifier):
                raise errors.from_wire(frame["error"])
            if frame.get("id") == identifier:
                if "result" not in frame:
                    raise errors.ProtocolError("daemon sent a response without a result")
                return frame

    def _line(self, until: float) -> bytes:
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > wire.FRAME_BYTES_MAX:
                raise errors.ProtocolError(f"daemon sent a line of more than {wire.FRAME_BYTES_MAX} bytes")
            self._patience(until)
            try:
                data = self._socket.recv(READ_BYTES)
            except socket.timeout:
                raise
            except OSError as error:
                raise errors.Disconnected("connection to the daemon was lost") from error
            if not data:
                raise errors.Disconnected("connection to the daemon was lost")
            self._buffer += data

    def _readable(self) -> bool:
        self._socket.setblocking(False)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _patience(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise socket.timeout()
        self._socket.settimeout(left)


class Client(SyncApi):
    """A client of this user's daemon.

    - socket: The daemon's socket; `MNEME_SOCKET` or where the daemon's defaults put it when missing.
    - client: The program's name; becomes part of the provenance of what it remembers (1 to 64 bytes).
    - session: The program's session or conversation; becomes part of provenance.
    - timeout: The deadline of calls that name none (seconds).
    - connect_timeout: How long opening a connection may take (seconds).
    - retry: Open a lost connection again and send what was under way again, under the same `op_id`; wait when the
      daemon is busy or restarts.

    Nothing is connected before the first call.
    """

    def __init__(
        self,
        socket: Union[str, "os.PathLike[str]", None] = None,
        *,
        client: str = "python",
        session: Optional[str] = None,
        timeout: float = 30.0,
        connect_timeout: float = 2.0,
        retry: bool = True,
    ) -> None:
        self.socket = wire.default_socket() if socket is None else Path(os.fspath(socket))
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.retry = retry
        self._greeting = wire.hello(client, __version__, session)
        self._idle: List[_Connection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client may be used again; it then connects anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def hello(self) -> types.Hello:
        """What the daemon said in its greeting: versions and limits."""
        try:
            connection = self._take(time.monotonic() + self.connect_timeout)
        except socket.timeout as error:
            raise wire.timed_out(self.connect_timeout) from error
        self._give_back(connection)
        assert connection.hello is not None, "a connection is greeted when it is opened"
        return connection.hello

    def generate_stream(
        self, prompt: Optional[str] = None, *, timeout: Optional[float] = None, **parameters: Any
    ) -> Iterator[Union[types.TaskEvent, types.GenerateResult]]:
        """Writes from memory, yielding every event while the canvas crystallises, and the `GenerateResult` last.

        Takes the parameters of `generate`. Leaving the loop early closes the connection, which stops the work.
        """
        patience = self.timeout if timeout is None else timeout
        until = time.monotonic() + patience
        params = {**parameters, "prompt": prompt, "stream": True}
        try:
            connection = self._take(until)
            try:
                identifier = connection.send("generate", params, until=until, op_id=wire.new_op_id())
                while True:
                    frame = connection.receive(identifier, until)
                    if not isinstance(frame, types.TaskEvent):
                        break
                    yield frame
            except BaseException:
                connection.close()
                raise
        except socket.timeout as error:
            raise wire.timed_out(patience) from error
        self._give_back(connection)
        yield wire.decode(types.GenerateResult, frame["result"])

    def export(self, namespace: Optional[str] = None, *, page: int = 500) -> Iterator[types.MemoryView]:
        """Every memory, superseded ones too, in id order; fetches page after page."""
        after: Optional[str] = None
        while True:
            found = self.export_page(after=after, limit=page, namespace=namespace)
            yield from found.memories
            after = found.next
            if after is None:
                return

    def _call(
        self,
        method: str,
        params: Mapping[str, Any],
        result: Type[T],
        *,
        op_id: Optional[str],
        timeout: Optional[float],
        min_lsn: Optional[int],
    ) -> T:
        patience = self.timeout if timeout is None else timeout
        until = time.monotonic() + patience
        op_id = op_id or wire.new_op_id()
        pause = wire.BACKOFF_S
        while True:
            try:
                return wire.decode(result, self._attempt(method, params, op_id, min_lsn, until))
            except socket.timeout as error:
                raise wire.timed_out(patience) from error
            except errors.MnemeError as error:
                wait = wire.pause_after(error, method, pause) if self.retry else None
                if wait is None or time.monotonic() + wait >= until:
                    raise
                time.sleep(wait)
                pause = min(pause * 2, wire.BACKOFF_MAX_S)

    def _attempt(
        self, method: str, params: Mapping[str, Any], op_id: str, min_lsn: Optional[int], until: float
    ) -> Any:
        connection = self._take(until)
        try:
            answer = connection.exchange(method, params, until=until, op_id=op_id, min_lsn=min_lsn)
        except errors.MnemeError as error:
            if error.kind in errors.BY_KIND and error.kind not in ("frame_too_large", "busy", "shutting_down"):
                self._give_back(connection)
            else:
                connection.close()
            raise
        except BaseException:
            # What is still to come on it would be taken for the answer to another call.
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _take(self, until: float) -> _Connection:
        self._after_fork()
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                limit = time.monotonic() + self.connect_timeout
                try:
                    return _Connection(self.socket, self._greeting, min(until, limit))
                except socket.timeout as error:
                    if until <= limit:
                        raise
                    raise wire.timed_out(self.connect_timeout) from error
            if not connection.is_stale():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS_MAX and self._process == os.getpid():
                self._idle.append(connection)
                return
        connection.close()

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            # The parent's connections are the parent's: two processes must not read from one.
            self._process, self._idle, self._lock = os.getpid(), [], threading.Lock()
