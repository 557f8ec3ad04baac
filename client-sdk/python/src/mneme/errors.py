"""What can go wrong, one class for each kind of error of the protocol. All are `MnemeError`."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Type


class MnemeError(Exception):
    """A call that gave no result. Go by the class or by `kind`: messages may change."""

    kind: str = "unknown"
    """The protocol's kind of error, or `connection`, `protocol` for what never reached the daemon."""
    transient: bool = False
    """Whether the same call may succeed later, unchanged."""

    def __init__(self, message: str, *, hint: Optional[str] = None, retry_after_ms: Optional[int] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} (hint: {self.hint})"


class ConnectionFailed(MnemeError):
    """The daemon cannot be reached."""

    kind = "connection"


class NotRunning(ConnectionFailed):
    """Nothing listens on the socket."""


class Disconnected(ConnectionFailed):
    """The connection was lost, and the call is not one that is sent twice, or it could not be opened again in time."""


class ProtocolError(MnemeError):
    """The daemon sent what this client cannot read."""

    kind = "protocol"


class InvalidRequest(MnemeError):
    """The request was malformed."""

    kind = "invalid_request"


class ParseError(InvalidRequest):
    """The request was not JSON."""

    kind = "parse_error"


class MethodNotFound(InvalidRequest):
    """This daemon does not know the method."""

    kind = "method_not_found"


class InvalidParams(InvalidRequest):
    """A parameter is missing, unknown or out of bounds."""

    kind = "invalid_params"


class FrameTooLarge(InvalidRequest):
    """The request is longer than the daemon takes."""

    kind = "frame_too_large"


class UnsupportedVersion(MnemeError):
    """Client and daemon speak no common version."""

    kind = "unsupported_version"


class HelloRequired(InvalidRequest):
    """The connection was not greeted."""

    kind = "hello_required"


class Internal(MnemeError):
    """The daemon failed; its log says more."""

    kind = "internal"


class Busy(MnemeError):
    """Too much is under way, for longer than the call was willing to wait."""

    kind = "busy"
    transient = True


class DeadlineExceeded(MnemeError):
    """The time that was given has passed."""

    kind = "deadline_exceeded"


class Cancelled(MnemeError):
    """The task was cancelled."""

    kind = "cancelled"


class NotFound(MnemeError):
    """What was named does not exist, or was forgotten."""

    kind = "not_found"


class Conflict(MnemeError):
    """The change does not fit what is there."""

    kind = "conflict"


class QuotaExceeded(MnemeError):
    """The store is full, by its own limits."""

    kind = "quota_exceeded"
    transient = True


class ReadOnly(MnemeError):
    """The store takes no writes now."""

    kind = "read_only"
    transient = True


class EngineUnavailable(MnemeError):
    """The generator is away."""

    kind = "engine_unavailable"
    transient = True


class Unsatisfiable(MnemeError):
    """No text satisfies the constraint."""

    kind = "unsatisfiable"


class ShuttingDown(MnemeError):
    """The daemon is stopping, and none took its place in the time that the call was willing to wait."""

    kind = "shutting_down"
    transient = True


class Forbidden(MnemeError):
    """This user or client may not."""

    kind = "forbidden"


class StoreFailed(MnemeError):
    """The disk failed the store; nothing was changed."""

    kind = "store_failed"


def _classes(base: Type[MnemeError]) -> Dict[str, Type[MnemeError]]:
    found = {base.kind: base}
    for child in base.__subclasses__():
        found.update(_classes(child))
    return found


BY_KIND: Dict[str, Type[MnemeError]] = {
    kind: cls for kind, cls in _classes(MnemeError).items() if kind not in ("unknown", "connection", "protocol")
}
"""The class of each kind that the daemon answers with."""


def from_wire(error: Mapping[str, Any]) -> MnemeError:
    """The exception for the `error` member of a response. An unknown kind is a plain `MnemeError` with that kind."""
    raw = error.get("data")
    data: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
    kind = str(data.get("kind", "unknown"))
    hint, retry = data.get("hint"), data.get("retry_after_ms")
    raised = BY_KIND.get(kind, MnemeError)(
        str(error.get("message", "the daemon gave no reason")),
        hint=None if hint is None else str(hint),
        retry_after_ms=retry if isinstance(retry, int) else None,
    )
    raised.kind = kind
    return raised
