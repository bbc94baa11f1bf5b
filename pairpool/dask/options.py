"""The options of the pools on the nodes and of calls, checked in the program before they travel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

import cloudpickle

from pairpool.dask.messages import NodeFunction, NodeLimits
from pairpool.dask.node_functions import initialize
from pairpool.errors import TaskTimeout
from pairpool.master.functions import has_state
from pairpool.options import DEFAULTS, ItemKeywords, Limits, PoolOptions, RetryOn, WorkerKeywords

__all__ = ["NodeOptions", "checked", "for_nodes", "limits_of"]


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
    found.pop("retry_on", None)  # each call names its exceptions, because a Dask worker must not load their types
    if pool.initializer is not None:
        pickled = cloudpickle.dumps((pool.initializer, pool.initargs))
        found |= {"initializer": initialize, "initargs": (pickled,)}
    return found


def limits_of(task_timeout: float | None, retries: int | None, retry_on: RetryOn | None) -> Limits:
    """Return the limits of a call that override those of the pools on the nodes, checked."""
    DEFAULTS.override(task_timeout, retries, retry_on)
    given: Limits = {"task_timeout": task_timeout, "retries": retries, "retry_on": retry_on}
    return {name: value for name, value in given.items() if value is not None}  # type: ignore[return-value]


def for_nodes(function: Callable[..., Any], limits: Limits, default: RetryOn) -> tuple[NodeFunction, NodeLimits]:
    """Return a function and its limits as they travel. Raise the exception of the pickling.

    Args:
        limits: the result of `limits_of`.
        default: the option `retry_on` of the pool.
    """
    kinds = limits.get("retry_on") or default
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    timeout, retries = limits.get("task_timeout"), limits.get("retries")
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return (
        NodeFunction(str(name), cloudpickle.dumps((function, kinds)), has_state(function)),
        NodeLimits(
            None if timeout is None else float(timeout),
            None if retries is None else operator.index(retries),
            issubclass(TaskTimeout, kinds),
        ),
    )
