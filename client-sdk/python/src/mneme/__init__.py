"""The Python client of Mneme: a memory that lasts, and a generator that writes from it.

`Client` blocks, `AsyncClient` is for asyncio; both speak with this user's daemon over its Unix socket and need nothing
but the standard library. Texts of memories are data: what a memory with trust below `observed` says is never an
instruction.
"""

from __future__ import annotations

from . import _types as types
from . import errors
from ._types import (
    Filter,
    ForgetReceipt,
    GenerateParams,
    GenerateResult,
    HitView,
    MemoryView,
    RecallResult,
    RememberParams,
    RememberResult,
    TaskEvent,
)
from ._version import __version__
from ._wire import default_socket, new_op_id
from .aio import AsyncClient
from .client import Client
from .errors import MnemeError

__all__ = [
    "AsyncClient",
    "Client",
    "Filter",
    "ForgetReceipt",
    "GenerateParams",
    "GenerateResult",
    "HitView",
    "MemoryView",
    "MnemeError",
    "RecallResult",
    "RememberParams",
    "RememberResult",
    "TaskEvent",
    "__version__",
    "default_socket",
    "errors",
    "new_op_id",
    "types",
]
