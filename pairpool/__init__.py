"""pairpool: a process pool for Linux over SEQPACKET socketpairs, a drop-in for `multiprocessing.Pool`.

Nothing is loaded until it is used: `import pairpool` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairpool.aio import AsyncPool, AsyncStream
    from pairpool.errors import (
        CancelledError,
        InitializerFailed,
        LargeCaptureWarning,
        PoolInherited,
        TaskTimeout,
        WorkerDied,
    )
    from pairpool.executor import Executor, get_executor
    from pairpool.kernel import cpu_allowance
    from pairpool.lines import OutputLine
    from pairpool.pool import Pool
    from pairpool.results import AsyncResult, MapResult
    from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus
    from pairpool.streams import IMapIterator
    from pairpool.wire.fd import Fd
    from pairpool.wire.reporting import progress
    from pairpool.wire.segments import Shared

__version__ = "0.1.0"

__all__ = [
    "AsyncPool",
    "AsyncResult",
    "AsyncStream",
    "CallStatus",
    "CancelledError",
    "Executor",
    "FailureStatus",
    "Fd",
    "IMapIterator",
    "InitializerFailed",
    "LargeCaptureWarning",
    "MapResult",
    "OutputLine",
    "Pool",
    "PoolInherited",
    "PoolStatus",
    "Shared",
    "TaskTimeout",
    "WorkerDied",
    "WorkerStatus",
    "cpu_allowance",
    "get_executor",
    "progress",
]

_HOMES = {
    "AsyncPool": "aio",
    "AsyncResult": "results",
    "AsyncStream": "aio",
    "CallStatus": "status",
    "CancelledError": "errors",
    "Executor": "executor",
    "FailureStatus": "status",
    "Fd": "wire.fd",
    "IMapIterator": "streams",
    "InitializerFailed": "errors",
    "LargeCaptureWarning": "errors",
    "MapResult": "results",
    "OutputLine": "lines",
    "Pool": "pool",
    "PoolInherited": "errors",
    "PoolStatus": "status",
    "Shared": "wire.segments",
    "TaskTimeout": "errors",
    "WorkerDied": "errors",
    "WorkerStatus": "status",
    "cpu_allowance": "kernel",
    "get_executor": "executor",
    "progress": "wire.reporting",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
