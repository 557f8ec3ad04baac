"""The asynchronous client: calls run side by side over one connection."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, AsyncIterator, Dict, Mapping, Optional, Type, TypeVar, Union

from . import _types as types
from . import _wire as wire
from . import errors
from ._async_api import AsyncApi
from ._version import __version__

T = TypeVar("T")

EVENTS_MAX = 256
"""Stream events that wait for a slow caller; then reading waits, and the daemon skips events for us."""
READ_BYTES = 64 << 10
"""Bytes read at once; twice as many may wait unread before the socket is left alone."""


class _Connection:
    """One greeted connection: a task that reads, callers that write, answers matched by id."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, streaming: bool) -> None:
        self._reader = reader
        self._buffer = bytearray()
        self._writer = writer
        self._next_id = 0
        self._waiting: Dict[int, "asyncio.Future[Any]"] = {}
        self.closed = False
        self.leaving = False
        """Whether new calls belong on another connection; those under way may still be answered on this one."""
        self.places = asyncio.Semaphore(1)
        self.events: "Optional[asyncio.Queue[types.TaskEvent]]" = asyncio.Queue(EVENTS_MAX) if streaming else None
        self._task = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def open(cls, path: Path, greeting: Mapping[str, Any], streaming: bool = False) -> "_Connection":
        try:
            reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=READ_BYTES)
        except OSError as error:
            raise wire.connect_error(path, error) from error
        connection = cls(reader, writer, streaming)
        try:
            connection.hello = wire.decode(types.Hello, await connection.call("hello", greeting))
            connection.places = asyncio.Semaphore(max(1, connection.hello.limits.requests_in_flight_max))
        except BaseException:
            connection.close()
            raise
        return connection

    hello: Optional[types.Hello] = None

    def close(self) -> None:
        self.closed = True
        self._task.cancel()
        self._writer.close()

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        op_id: Optional[str] = None,
        until: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> Any:
        async with self.places:
            if self.leaving:
                # It was not sent: it may be sent elsewhere, whatever it is.
                raise errors.ShuttingDown("connection to the daemon is given up")
            if self.closed:
                raise errors.Disconnected("connection to the daemon was lost")
            self._next_id += 1
            identifier = self._next_id
            deadline_ms = None if until is None else max(1, int((until - time.monotonic()) * 1000))
            line = wire.encode(identifier, method, params, op_id=op_id, deadline_ms=deadline_ms, min_lsn=min_lsn)
            try:
                wire.check_length(line, self.hello)
            except errors.FrameTooLarge:
                # The limit may have been raised since the greeting: the next connection knows.
                self._leave()
                raise
            answer: "asyncio.Future[Any]" = asyncio.get_running_loop().create_future()
            self._waiting[identifier] = answer
            try:
                self._writer.write(line)
                try:
                    await self._writer.drain()
                except OSError:
                    pass  # The reader notices too, and may still have an answer that says why.
                return await answer
            finally:
                self._waiting.pop(identifier, None)
                if self.leaving:
                    self._leave()

    def _leave(self) -> None:
        self.leaving = True
        if not self._waiting and not self.closed:
            self.close()

    async def _read(self) -> None:
        problem: errors.MnemeError = errors.Disconnected("connection to the daemon was lost")
        try:
            while True:
                line = await self._line()
                if line is None:
                    break
                frame = wire.parse(line)
                if frame.get("method") == "task.event":
                    if self.events is not None:
                        await self.events.put(wire.decode(types.TaskEvent, frame.get("params")))
                elif frame.get("id") is None and frame.get("error") is not None:
                    # An error without an id is about the connection itself, or about a line that nobody can name. A caller
                    # who is not alone may have nothing to do with it: for that one, the connection was lost.
                    if len(self._waiting) <= 1:
                        problem = errors.from_wire(frame["error"])
                    break
                else:
                    self._answer(frame)
        except (OSError, ValueError):
            pass
        except errors.MnemeError as error:
            problem = error
        finally:
            self.closed = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(problem)
            self._writer.close()

    async def _line(self) -> Optional[bytes]:
        """The next line; `None` at the end. Only the line that is being read is kept here, so that a slow caller is felt."""
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
            data = await self._reader.read(READ_BYTES)
            if not data:
                return None
            self._buffer += data

    def _answer(self, frame: Mapping[str, Any]) -> None:
        identifier = frame.get("id")
        waiting = self._waiting.get(identifier) if isinstance(identifier, int) else None
        if waiting is None or waiting.done():
            return
        if frame.get("error") is not None:
            error = errors.from_wire(frame["error"])
            self.leaving = self.leaving or isinstance(error, errors.ShuttingDown)
            waiting.set_exception(error)
        elif "result" in frame:
            waiting.set_result(frame["result"])
        else:
            waiting.set_exception(errors.ProtocolError("daemon sent a response without a result"))


class AsyncClient(AsyncApi):
    """A client of this user's daemon, for asyncio; belongs to one event loop. Parameters as for `mneme.Client`."""

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
        self._connection: Optional[_Connection] = None
        self._opening: Optional[asyncio.Lock] = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. The client may be used again; it then connects anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def hello(self) -> types.Hello:
        """What the daemon said in its greeting: versions and limits."""
        greeted = (await self._connected()).hello
        assert greeted is not None, "a connection is greeted when it is opened"
        return greeted

    async def generate_stream(
        self, prompt: Optional[str] = None, *, timeout: Optional[float] = None, **parameters: Any
    ) -> AsyncIterator[Union[types.TaskEvent, types.GenerateResult]]:
        """Writes from memory, yielding every event while the canvas crystallises, and the `GenerateResult` last.

        Takes the parameters of `generate`. Has a connection of its own; leaving it early closes that, which stops the
        work.
        """
        patience = self.timeout if timeout is None else timeout
        until = time.monotonic() + patience
        params = {**parameters, "prompt": prompt, "stream": True}
        connection = await self._open(streaming=True)
        events = connection.events
        assert events is not None
        loop = asyncio.get_running_loop()
        call = loop.create_task(connection.call("generate", params, op_id=wire.new_op_id(), until=until))
        event: "Optional[asyncio.Task[types.TaskEvent]]" = None
        try:
            while True:
                event = loop.create_task(events.get())
                left = max(0.0, until - time.monotonic())
                done, _ = await asyncio.wait({call, event}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if event in done:
                    yield event.result()
                    continue
                if call not in done:
                    raise wire.timed_out(patience)
                event.cancel()
                while not events.empty():
                    yield events.get_nowait()
                yield wire.decode(types.GenerateResult, call.result())
                return
        finally:
            for task in (call, event):
                if task is not None:
                    task.cancel()
            connection.close()

    async def export(self, namespace: Optional[str] = None, *, page: int = 500) -> AsyncIterator[types.MemoryView]:
        """Every memory, superseded ones too, in id order; fetches page after page."""
        after: Optional[str] = None
        while True:
            found = await self.export_page(after=after, limit=page, namespace=namespace)
            for memory in found.memories:
                yield memory
            after = found.next
            if after is None:
                return

    async def _call(
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

        async def attempt() -> Any:
            connection = await self._connected()
            return await connection.call(method, params, op_id=op_id, until=until, min_lsn=min_lsn)

        while True:
            try:
                left = max(0.0, until - time.monotonic())
                return wire.decode(result, await asyncio.wait_for(attempt(), left))
            except asyncio.TimeoutError as error:
                raise wire.timed_out(patience) from error
            except errors.MnemeError as error:
                wait = wire.pause_after(error, method, pause) if self.retry else None
                if wait is None or time.monotonic() + wait >= until:
                    raise
                await asyncio.sleep(wait)
                pause = min(pause * 2, wire.BACKOFF_MAX_S)

    async def _connected(self) -> _Connection:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._connection is None or self._connection.closed or self._connection.leaving:
                self._connection = await self._open(streaming=False)
            return self._connection

    async def _open(self, *, streaming: bool) -> _Connection:
        try:
            return await asyncio.wait_for(
                _Connection.open(self.socket, self._greeting, streaming), self.connect_timeout
            )
        except asyncio.TimeoutError as error:
            raise wire.timed_out(self.connect_timeout) from error
