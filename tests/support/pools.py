"""The type of the fixture `make_pool`, the workers of a pool, and the module that pools are compared with."""

from __future__ import annotations

import multiprocessing.pool
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pairpool import Pool

if TYPE_CHECKING:
    from pairpool import AsyncPool

__all__ = ["MakePool", "mp_pool", "pids_of"]

MakePool: TypeAlias = Callable[..., Pool]
"""The type of the fixture `make_pool`."""

mp_pool: Any = multiprocessing.pool
"""`multiprocessing.pool`. Its type stubs leave out some of its names."""


def pids_of(pool: Pool | AsyncPool) -> list[int]:
    """Return the pids of the workers. Wait until all workers of a `Pool` have started."""
    if isinstance(pool, Pool):
        return [process.pid for process in pool._pool]
    return [worker.pid for worker in pool.status().workers if worker.pid]
