"""Options of pools on nodes and of calls there, checked where they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict

import cloudpickle

from pairpool.dask import node
from pairpool.linux.memory import parse_size
from pairpool.options import DEFAULTS, Limits, RetryOn, check_seconds

__all__ = ["NodeOptions", "checked", "limits_of"]


class NodeOptions(TypedDict, total=False):
    """The options of the pools on the nodes; `Pool` describes them."""

    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    maxtasksperchild: int | None
    start_method: Literal["fork", "forkserver"]
    task_timeout: float | None
    retries: int
    retry_on: RetryOn
    memory_limit: int | str | None
    start_timeout: float | None


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of pools on nodes, as far as that can be told from here."""
    for name in options:
        if name not in NodeOptions.__annotations__:
            raise TypeError(f"{name} is not an option of a pool on a cluster")
    initializer, start_method = options.get("initializer"), options.get("start_method", "forkserver")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if start_method not in ("fork", "forkserver"):
        raise ValueError(f"start_method must be fork or forkserver on a cluster, not {start_method!r}")
    DEFAULTS.override(options.get("task_timeout"), options.get("retries"), options.get("retry_on"))
    check_seconds(options.get("start_timeout"), "start_timeout")
    if options.get("memory_limit") is not None:
        parse_size(options["memory_limit"])
    found: dict[str, Any] = {"start_method": "forkserver", "name": "on-a-node", **options}
    if initializer is not None:
        pickled = cloudpickle.dumps((initializer, tuple(options.get("initargs", ()))))
        found |= {"initializer": node.initialize, "initargs": (pickled,)}
    return found


def limits_of(task_timeout: float | None, retries: int | None, retry_on: RetryOn | None) -> Limits:
    """What a call has of its own, checked."""
    DEFAULTS.override(task_timeout, retries, retry_on)
    limits: Limits = {}
    if task_timeout is not None:
        limits["task_timeout"] = task_timeout
    if retries is not None:
        limits["retries"] = retries
    if retry_on is not None:
        limits["retry_on"] = retry_on
    return limits
