"""Run batches on a node, in its Dask worker.

    Dask's thread ─► run_batch ─┐
    Dask's thread ─► run_batch ─┴► the client's pool on this node (`node_pools`)

A batch never fails as a whole: whatever happens to an item becomes the outcome of that item.
"""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

from pairpool.dask.messages import BatchOrder, BatchReport, ItemMode, NodeFunction, NodeLimits, versions
from pairpool.dask.node_functions import GuardedFunction, RetryableFailure, StatelessFunction
from pairpool.dask.node_pools import NodePool, node_address, pools
from pairpool.dask.opaque import display, for_workers, serializer
from pairpool.dask.packing import DATA, FAILED, MISSING, opened, pack
from pairpool.errors import DeathDetails, TaskTimeout, TimeoutDetails, WorkerDied
from pairpool.transport.failures import Fault, describe_failure, short_call

if TYPE_CHECKING:
    from pairpool.options import Limits
    from pairpool.results.async_result import AsyncResult

__all__ = ["run_batch"]

PARTS_PER_WORKER = 4
"""Parts into which a batch is cut per worker of the node, so that the workers end together."""


def run_batch(order: BatchOrder) -> BatchReport:
    """Run a batch in this node's pool. Dask calls this function in one of the node's threads."""
    node = node_address()
    setup = order.head.setup
    if setup.versions != versions():
        refusal = f"the node {node} has {versions()}, and this program {setup.versions}"
        return BatchReport(node, 0.0, refusal=refusal)
    kinds, values, large = opened(order.items)
    with pools.use(setup, node) as node_pool:
        began = time.monotonic()
        found = _run(node_pool, order, kinds, *for_workers(kinds, values, large))
    outcomes = []
    seconds = []
    for offset, one in enumerate(found):
        if type(one) is tuple:
            kind, value, took = one
            outcomes.append((kind, (value, ()) if kind == FAILED else value))
            seconds.append(took)
        else:
            outcomes.append(_failure(order, offset, kinds[offset], values[offset], one, node))
    total = sum(seconds) / len(seconds) * len(found) if seconds else time.monotonic() - began
    packed = pack((kind for kind, _value in outcomes), [value for _kind, value in outcomes])
    return BatchReport(node, total, packed)


# --- run the items ------------------------------------------------------------------------------------


def _run(node_pool: NodePool, order: BatchOrder, kinds: bytes, are_pairs: bool, items: list[Any]) -> list[Any]:
    """Return for each item the tuple of a `GuardedFunction`, or the exception of the pool; None if it is missing."""
    if order.head.mode == ItemMode.CALL:
        return _run_calls(node_pool, order, are_pairs, items)
    chunksize = max(1, order.length // (PARTS_PER_WORKER * node_pool.threads))
    function = _guarded(order.head.function, order.head.mode, are_pairs)
    result = node_pool.pool.map_async(function, items, chunksize, return_exceptions=True, **_limits(order.head.limits))
    with node_pool.running(result.cancel):
        found = iter(result.get())
    return [None if kind == MISSING else next(found) for kind in kinds]


def _run_calls(node_pool: NodePool, order: BatchOrder, are_pairs: bool, items: list[Any]) -> list[Any]:
    """Do the same as `_run` for single calls."""
    results = [
        node_pool.pool.apply_async(_guarded(function, ItemMode.CALL, are_pairs), (item,), **_limits(limits))
        for (function, limits), item in zip(order.calls, items, strict=True)
    ]

    def cancel(*, kill: bool) -> None:
        for one in results:
            one.cancel(kill=kill)

    with node_pool.running(cancel):
        return [_outcome_of(one) for one in results]


def _guarded(function: NodeFunction, mode: ItemMode, are_pairs: bool) -> GuardedFunction:
    kind = GuardedFunction if function.has_state else StatelessFunction
    return kind(function.name, function.pickled, mode, are_pairs=are_pairs)


def _limits(limits: NodeLimits) -> Limits:
    """Return the limits of a call as `Pool` takes them."""
    found: Limits = {
        "retry_on": (RetryableFailure, TaskTimeout) if limits.repeats_timeouts else RetryableFailure,
    }
    if limits.task_timeout is not None:
        found["task_timeout"] = limits.task_timeout
    if limits.retries is not None:
        found["retries"] = limits.retries
    return found


def _outcome_of(result: AsyncResult[Any]) -> Any:
    try:
        return result.get()
    except BaseException as error:
        return error


# --- failures -----------------------------------------------------------------------------------------


def _failure(order: BatchOrder, offset: int, kind: int, value: Any, error: Any, node: str) -> tuple[int, Any]:
    """Return the outcome of an item that has no value, and how the outcome travels.

    Args:
        kind: how the item travelled.
        value: the item, as its kind says.
        error: the exception of the pool; None if the item was missing.
    """
    if error is None:
        return MISSING, None
    notes = tuple(getattr(error, "__notes__", ()))
    if isinstance(error, RetryableFailure):
        return FAILED, (error.args, notes)
    function = order.calls[offset][0] if order.calls else order.head.function
    index = 0 if order.calls else order.first + offset
    if isinstance(error, WorkerDied):
        _function, _index, worker, pid, *rest = error.args
        details = DeathDetails(*rest)
        details = details._replace(reason=f"{details.reason} on node {node}", arguments=_shown(order, kind, value))
        error = WorkerDied(function.name, index, worker, pid, *details)
        return FAILED, (pickle.dumps(error, 5), notes)
    if isinstance(error, TaskTimeout):
        _function, _index, limit, worker, pid, *texts = error.args
        times = TimeoutDetails(*texts)._replace(arguments=_shown(order, kind, value))
        error = TaskTimeout(function.name, index, limit, worker, pid, *times)
        return FAILED, (pickle.dumps(error, 5), notes)
    return FAILED, (tuple(describe_failure(serializer, 0, Fault.RAISED, error)), notes)


def _shown(order: BatchOrder, kind: int, value: Any) -> str:
    """Return a short repr of an item, or of the arguments of a single call, without code of its class."""
    if order.calls and kind == DATA:
        return short_call(*pickle.loads(value))
    return display(kind, value)
