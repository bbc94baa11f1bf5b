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
    from pairpool.linux.cgroup import cpu_allowance
    from pairpool.output_lines import OutputLine
    from pairpool.pool import Pool
    from pairpool.results.async_result import AsyncResult, MapResult
    from pairpool.results.iterator import IMapIterator
    from pairpool.scoreboard.progress import progress
    from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus
    from pairpool.transport.fd import Fd
    from pairpool.transport.segments import Shared

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
    "AsyncResult": "results.async_result",
    "AsyncStream": "aio",
    "CallStatus": "status",
    "CancelledError": "errors",
    "Executor": "executor",
    "FailureStatus": "status",
    "Fd": "transport.fd",
    "IMapIterator": "results.iterator",
    "InitializerFailed": "errors",
    "LargeCaptureWarning": "errors",
    "MapResult": "results.async_result",
    "OutputLine": "output_lines",
    "Pool": "pool",
    "PoolInherited": "errors",
    "PoolStatus": "status",
    "Shared": "transport.segments",
    "TaskTimeout": "errors",
    "WorkerDied": "errors",
    "WorkerStatus": "status",
    "cpu_allowance": "linux.cgroup",
    "get_executor": "executor",
    "progress": "scoreboard.progress",
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
