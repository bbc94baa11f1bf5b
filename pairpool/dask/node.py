"""Run batches on a node, in its Dask worker.

    Dask's thread ─► run_batch ─┐
    Dask's thread ─► run_batch ─┴► the client's pool on this node (`node_pools`)

A batch never fails as a whole: whatever happens to an item becomes the outcome of that item.
"""

from __future__ import annotations

import pickle
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pairpool.dask.messages import BatchOrder, BatchReport, CallContent, ItemMode, versions
from pairpool.dask.node_pools import NodePool, node_address, pools
from pairpool.dask.packing import Packer, unpack
from pairpool.errors import DeathDetails, TaskTimeout, WorkerDied, encoding_error, with_cause
from pairpool.transport.failures import error_for_each, safe

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
    with pools.use(setup, node) as node_pool:
        began = time.monotonic()
        found = _run(node_pool, order)
    outcomes = [
        (True, one[0]) if type(one) is tuple else (False, _on_node(one, node, _index(order, offset)))
        for offset, one in enumerate(found)
    ]
    packed, successes = _packed(outcomes)
    seconds = [one[1] for one in found if type(one) is tuple]
    total = sum(seconds) / len(seconds) * len(found) if seconds else time.monotonic() - began
    return BatchReport(node, total, packed, successes)


def _index(order: BatchOrder, offset: int) -> int:
    """Return the index of an item in its call."""
    return 0 if order.head.mode == ItemMode.CALL else order.first + offset


# --- run the items ------------------------------------------------------------------------------------


def _run(node_pool: NodePool, order: BatchOrder) -> list[Any]:
    """Return for each item a tuple of its value and its seconds, or its exception."""
    head = order.head
    if head.mode == ItemMode.CALL:
        return _run_calls(node_pool, pickle.loads(order.items))
    try:
        function = node_pool.function(head.call, head.function, head.mode)
        limits: Limits = pickle.loads(head.limits)
    except BaseException as error:
        return list(error_for_each(error, order.length))
    loaded = unpack(order.items)
    items = [item for is_loaded, item in loaded if is_loaded]
    chunksize = max(1, order.length // (PARTS_PER_WORKER * node_pool.threads))
    result = node_pool.pool.map_async(function, items, chunksize, return_exceptions=True, **limits)
    with node_pool.running(result.cancel):
        found = iter(result.get())
    return [next(found) if is_loaded else error for is_loaded, error in loaded]


def _run_calls(node_pool: NodePool, calls: list[CallContent]) -> list[Any]:
    """Do the same as `_run` for single calls."""
    results: list[AsyncResult[Any] | BaseException] = [_begin_call(node_pool, call) for call in calls]
    begun = [one for one in results if not isinstance(one, BaseException)]

    def cancel(*, kill: bool) -> None:
        for one in begun:
            one.cancel(kill=kill)

    with node_pool.running(cancel):
        return [one if isinstance(one, BaseException) else _outcome_of(one) for one in results]


def _begin_call(node_pool: NodePool, call: CallContent) -> AsyncResult[Any] | BaseException:
    try:
        function = node_pool.function(call.function, call.function, ItemMode.CALL)
        args, kwds = pickle.loads(call.arguments)
        limits: Limits = pickle.loads(call.limits)
    except BaseException as error:
        return error
    return node_pool.pool.apply_async(function, args, kwds, **limits)


def _outcome_of(result: AsyncResult[Any]) -> Any:
    try:
        return result.get()
    except BaseException as error:
        return error


# --- report the outcomes ------------------------------------------------------------------------------


def _on_node(error: Any, node: str, index: int) -> BaseException:
    """Return an exception that names the node, and the index of the item in the whole call."""
    if isinstance(error, WorkerDied):
        function, _index, worker, pid, *rest = error.args
        details = DeathDetails(*rest)
        named = WorkerDied(function, index, worker, pid, *details._replace(reason=f"{details.reason} on node {node}"))
        return with_cause(named, error.__cause__)
    if not isinstance(error, BaseException):
        raise AssertionError(f"neither a result nor an exception: {error!r}")
    other = _as_of_the_call(error, index)
    other.add_note(f"on node {node}")
    return other


def _as_of_the_call(error: Any, index: int) -> BaseException:
    """Return an exception as it would be if the node had been given the item itself, and the whole call."""
    if isinstance(error, TaskTimeout):
        function, _index, *rest = error.args
        return TaskTimeout(function, index, *rest)
    if type(error).__name__ == "MaybeEncodingError" and error.value.startswith("("):
        value, _, _seconds = error.value[1:].rpartition(", ")  # results travel in a tuple with their seconds
        return encoding_error(error.exc, value, error.original)
    return error  # type: ignore[no-any-return]


def _packed(outcomes: list[tuple[bool, Any]]) -> tuple[bytes, bytes]:
    """Return `BatchReport.outcomes` and `.successes`. An outcome that cannot be pickled becomes an exception."""
    packer = Packer()
    successes = bytearray()
    for is_value, outcome in outcomes:
        try:
            packer.add(outcome)
        except BaseException as error:
            is_value = False
            packer.add(pickle.PicklingError(f"the outcome cannot be pickled: {safe(partial(repr, error))}"))
        successes.append(is_value)
    return packer.packed(), bytes(successes)
