"""The pools of the joblib backend, which are kept for later calls of `joblib.Parallel`.

    options of a call ─► key ─► Executor, in use or idle     at most `IDLE_POOLS_KEPT` idle ones

Each set of options has a pool of its own. So has each number of workers that leaves another number of threads to each.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from cloudpickle import cloudpickle

from pairpool.executor import Executor, when_main_ends

__all__ = ["IDLE_POOLS_KEPT", "PoolKey", "pools"]

IDLE_POOLS_KEPT = 2
"""Pools without a call that are kept for later calls."""

PoolKey: TypeAlias = tuple[Any, ...]


class JoblibPools:
    """The executors of all calls of `Parallel`, by options.

    Attributes:
        executors: the executor that was used last comes last.
        users: how many calls use each.
    """

    def __init__(self) -> None:
        self.executors: dict[PoolKey, Executor] = {}
        self.users: Counter[PoolKey] = Counter()
        self.reset_in_child()

    def acquire(
        self, n_jobs: int, environment: dict[str, str], options: dict[str, Any], prepare: Callable[..., object]
    ) -> tuple[PoolKey, Executor]:
        """Return an executor with these options and workers, kept or new, and its key for `release`.

        Args:
            prepare: called in each worker with the environment, and with the initializer and its arguments.
        """
        key: PoolKey = (*environment.items(), *((name, _hashable(options[name])) for name in sorted(options)))
        with self._lock:
            executor = self.executors.get(key)
            if executor is not None and self.users[key] and executor.max_workers != n_jobs:
                key = (*key, n_jobs)  # a call in another thread uses that one, with the number of workers that it wants
            executor = self.executors.pop(key, None)
            if executor is None or not executor.is_usable:
                executor = _open(n_jobs, environment, options, prepare)
            executor.resize(n_jobs)
            self.executors[key] = executor
            self.users[key] += 1
            idle = [one for one in self.executors if not self.users[one]]
            surplus = [self.executors.pop(one) for one in idle[: max(0, len(idle) - IDLE_POOLS_KEPT)]]
        for one in surplus:
            one.shutdown()
        return key, executor

    def release(self, key: PoolKey) -> None:
        """Count one call less for an executor."""
        with self._lock:
            self.users[key] -= 1
            if self.users[key] < 1:  # below 0 in a forked child, because the call belongs to the parent
                del self.users[key]

    def end_calls(self) -> None:
        """End the calls that run when the program ends: no reader can have the rest of a generator any more."""
        for key in list(self.users):
            if key in self.executors:
                self.executors[key].terminate_workers()

    def reset_in_child(self) -> None:
        """Start anew in a forked child: the pools belong to the parent, and no thread would release a held lock."""
        self._lock = threading.RLock()  # reentrant: garbage collection may end a generator's call inside
        self.executors.clear()
        self.users.clear()


pools = JoblibPools()

when_main_ends(pools.end_calls)  # registered after that of executors, so it runs before that
os.register_at_fork(after_in_child=pools.reset_in_child)


def _hashable(value: Any) -> Any:
    """Return the value of an option, or what stands for it in a key: `initargs` may contain lists and arrays."""
    try:
        hash(value)
        return value
    except TypeError:
        pass
    try:
        return cloudpickle.dumps(value)
    except Exception:
        return id(value)  # the executor keeps the value, so no other object gets this id meanwhile


def _open(
    n_jobs: int, environment: dict[str, str], options: dict[str, Any], prepare: Callable[..., object]
) -> Executor:
    options = dict(options)
    initializer = options.pop("initializer", None)
    initargs = options.pop("initargs", ())
    return Executor(
        n_jobs,
        initializer=prepare,
        initargs=(environment, initializer, initargs),
        max_tasks_per_child=options.pop("maxtasksperchild", None),
        **{"name": "joblib", **options},
    )
