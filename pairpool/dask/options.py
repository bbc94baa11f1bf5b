"""The options of the pools on the nodes and of calls, checked in the program before they travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cloudpickle

from pairpool.dask.node_functions import initialize
from pairpool.options import DEFAULTS, ItemKeywords, Limits, PoolOptions, RetryOn, WorkerKeywords

__all__ = ["NodeOptions", "checked", "limits_of"]


class NodeOptions(WorkerKeywords, ItemKeywords, total=False):
    """The options of the pools on the nodes; `Pool` describes them."""

    start_method: Literal["fork", "forkserver"]


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `Pool` on a node. Raise what `Pool` would raise there, as far as the program can tell."""
    for name in options:
        if name not in NodeOptions.__annotations__:
            raise TypeError(f"{name} is not an option of a pool on a cluster")
    start_method = options.get("start_method", "forkserver")
    if start_method not in ("fork", "forkserver"):
        raise ValueError(f"start_method must be fork or forkserver on a cluster, not {start_method!r}")
    pool = PoolOptions(1, **options).checked()
    found: dict[str, Any] = {"start_method": "forkserver", "name": "on-a-node", **options}
    if pool.initializer is not None:
        pickled = cloudpickle.dumps((pool.initializer, pool.initargs))
        found |= {"initializer": initialize, "initargs": (pickled,)}
    return found


def limits_of(task_timeout: float | None, retries: int | None, retry_on: RetryOn | None) -> Limits:
    """Return the limits of a call that override those of the pools on the nodes, checked."""
    DEFAULTS.override(task_timeout, retries, retry_on)
    given: Limits = {"task_timeout": task_timeout, "retries": retries, "retry_on": retry_on}
    return {name: value for name, value in given.items() if value is not None}  # type: ignore[return-value]
