"""What runs on a node, in its Dask worker: one pool for each client, which runs the batches that Dask brings.

    Dask's thread ─► run_batch ─┐
    Dask's thread ─► run_batch ─┴► Pool("forkserver"), as many workers as the node has threads

The pool is opened by the first batch, and ended when the client says so. A client may also vanish: Dask then drops its
tasks, a batch whose task was dropped is ended within a second or two, and a pool without batches within a minute.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool.dask.packing import Packer, unpack
from pairpool.errors import TaskTimeout, WorkerDied, encoding_error
from pairpool.master.functions import Wrapper
from pairpool.options import Limits
from pairpool.pool import Pool
from pairpool.transport.failures import error_for_each, safe

if TYPE_CHECKING:
    from pairpool.results.async_result import AsyncResult

__all__ = [
    "CALL",
    "MAP",
    "STAR",
    "CallContent",
    "BatchOrder",
    "BatchReport",
    "Setup",
    "close_pool",
    "initialize",
    "run_batch",
    "versions",
]

MAP, STAR, CALL = 0, 1, 2
"""How items are applied: `f(item)`, `f(*item)`; each a call of its own (`CallContent`)."""

CHUNKS = 4
"""Parts of a batch that each worker of the node gets, one by one."""

LOOK = 1.0
"""Seconds between two looks whether batches are still wanted and pools in use."""

IDLE = 60.0
"""Seconds without a batch after which a node's pool is ended."""

KEPT = 8
"""Functions of the last calls that a node keeps unpickled, for each pool."""


class Setup(NamedTuple):
    """Of a client: which pool on the node is its own, and what that has to be like."""

    key: str
    versions: str
    options: bytes
    """Options of `Pool`, pickled."""


class CallContent(NamedTuple):
    """A single call, as an item of a batch."""

    function: bytes
    """Pickled; the same bytes are the same function."""
    arguments: bytes
    """`(args, kwds)`, pickled."""
    limits: bytes
    """`Limits`, pickled."""


class BatchOrder(NamedTuple):
    """A batch on its way to a node."""

    setup: Setup
    call: str
    """Names the call, whose function is unpickled once."""
    function: bytes
    mode: int
    first: int
    """Index of its first item."""
    items: bytes
    """Packed (`packing`); of single calls a list of `CallContent`, pickled."""
    length: int
    limits: bytes
    """`Limits`, pickled; empty for single calls, which have their own."""


class BatchReport(NamedTuple):
    """What came of a batch."""

    node: str
    pid: int
    threads: int
    seconds: float
    """How long its items took, all together; where all failed, how long the node had them."""
    outcomes: bytes = b""
    """For each item its value or its exception, packed (`packing`)."""
    successes: bytes = b""
    """For each item 1 if the outcome is a value, 0 if it is an exception."""
    refusal: str = ""
    """Why this node runs nothing for this client."""


def versions() -> str:
    """Of this process, those that have to be the same on both sides."""
    number = sys.modules["pairpool"].__version__
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, pairpool {number}"


def run_batch(order: BatchOrder) -> BatchReport:
    """Run a batch in this node's pool; called by Dask. Whatever happens to an item is that item's outcome."""
    node = _address()
    if order.setup.versions != versions():
        reason = f"the node {node} has {versions()}, and this program {order.setup.versions}"
        return BatchReport(node, 0, _threads(), 0.0, refusal=reason)
    entry = _enter(order.setup, node)
    began = time.monotonic()
    try:
        found = _run(entry, order)
    finally:
        _leave(entry)
    outcomes = [
        (True, one[0]) if type(one) is tuple else (False, _named(one, node, _index(order, offset)))
        for offset, one in enumerate(found)
    ]
    packed, successes = _packed(outcomes)
    seconds = [one[1] for one in found if type(one) is tuple]
    total = sum(seconds) / len(seconds) * len(found) if seconds else time.monotonic() - began
    return BatchReport(node, entry.pid, entry.threads, total, packed, successes)


def _index(order: BatchOrder, offset: int) -> int:
    """Of an item in its call."""
    return 0 if order.mode == CALL else order.first + offset


def _run(entry: _Entry, order: BatchOrder) -> list[Any]:
    """For each item a tuple with its value and how long it took, or its exception."""
    if order.mode == CALL:
        return _run_calls(entry, pickle.loads(order.items))
    try:
        function = entry.function(order.call, order.function, order.mode)
        limits: Limits = pickle.loads(order.limits)
    except BaseException as error:
        return list(error_for_each(error, order.length))
    loaded = unpack(order.items)
    items = [item for is_loaded, item in loaded if is_loaded]
    chunksize = max(1, order.length // (CHUNKS * entry.threads))
    result = entry.pool.map_async(function, items, chunksize, return_exceptions=True, **limits)
    with entry.keeping(result.cancel):
        found = iter(result.get())
    return [next(found) if is_loaded else error for is_loaded, error in loaded]


def _run_calls(entry: _Entry, calls: list[CallContent]) -> list[Any]:
    """The same for single calls."""
    results: list[AsyncResult[Any] | BaseException] = [_begin(entry, call) for call in calls]
    begun = [one for one in results if not isinstance(one, BaseException)]

    def cancel(*, kill: bool) -> None:
        for one in begun:
            one.cancel(kill=kill)

    with entry.keeping(cancel):
        return [one if isinstance(one, BaseException) else _outcome(one) for one in results]


def _begin(entry: _Entry, call: CallContent) -> AsyncResult[Any] | BaseException:
    try:
        function = entry.function(call.function, call.function, CALL)
        args, kwds = pickle.loads(call.arguments)
        limits: Limits = pickle.loads(call.limits)
    except BaseException as error:
        return error
    return entry.pool.apply_async(function, args, kwds, **limits)


def _outcome(result: AsyncResult[Any]) -> Any:
    try:
        return result.get()
    except BaseException as error:
        return error


class _Guarded(Wrapper):
    """A function whose results can be told from exceptions: they are in tuples, with how long they took."""

    def __init__(self, function: Callable[..., Any], mode: int) -> None:
        self.function, self.mode = function, mode
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    def __setstate__(self, state: dict[str, Any]) -> None:  # in a worker
        self.__dict__.update(state)
        variables = _variables_of(self.function)
        if variables.get("__name__") == "__main__":
            variables.update(_initialized)

    def __call__(self, *args: Any, **kwds: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        value = self.function(*args[0]) if self.mode == STAR else self.function(*args, **kwds)
        return value, time.perf_counter() - began


_initialized: dict[str, Any] = {}
"""In a worker: the global variables of the program's main module that the initializer has set.

Functions of `__main__` go by value, each pickle with global variables of its own: what the initializer sets in its own
is set in those of the functions that come later.
"""


def initialize(pickled: bytes) -> None:
    """The initializer of the pools on nodes: runs the client's, which is pickled by value."""
    initializer, arguments = pickle.loads(pickled)
    variables = _variables_of(initializer)
    before = dict(variables)
    initializer(*arguments)
    if variables.get("__name__") == "__main__":
        missing = object()
        _initialized.update({name: one for name, one in variables.items() if before.get(name, missing) is not one})


def _variables_of(function: Any) -> dict[str, Any]:
    """The global variables that a function, a method or a partial of one refers to."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    variables: dict[str, Any] | None = getattr(function, "__globals__", None)
    return {} if variables is None else variables


def _named(error: Any, node: str, index: int) -> BaseException:
    """An exception that says on which node it was; what has an index, with that in the whole call."""
    if isinstance(error, WorkerDied):
        function, _index, worker, pid, exitcode, reason, *rest = error.args
        named = WorkerDied(function, index, worker, pid, exitcode, f"{reason} on node {node}", *rest)
        named.__cause__ = error.__cause__
        return named
    if not isinstance(error, BaseException):
        raise AssertionError(f"neither a result nor an exception: {error!r}")
    other = _as_of_the_call(error, index)
    other.add_note(f"on node {node}")
    return other


def _as_of_the_call(error: Any, index: int) -> BaseException:
    """An exception as it would be if the node had been given the item itself, and the whole call."""
    if isinstance(error, TaskTimeout):
        function, _index, *rest = error.args
        return TaskTimeout(function, index, *rest)
    if type(error).__name__ == "MaybeEncodingError" and error.value.startswith("("):
        value, _, _seconds = error.value[1:].rpartition(", ")  # out of the tuple in which results travel here
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


# --- pools of this node -------------------------------------------------------------------------------


class _Entry:
    """A pool of this node."""

    def __init__(self, setup: Setup) -> None:
        from distributed import get_worker

        options = pickle.loads(setup.options)
        self.threads = _threads()
        self.pool = Pool(self.threads, **options)
        self.pid = self.pool.status().pid
        self.uses = 0
        self.idle_since = time.monotonic()
        self._functions: dict[str | bytes, _Guarded] = {}
        self._worker = get_worker()
        self._running: dict[str, Callable[..., object]] = {}  # by the key of Dask's task: what ends its batch

    def function(self, name: str | bytes, pickled: bytes, mode: int) -> _Guarded:
        """Return the function of this name, which is unpickled once for all of its batches."""
        with _lock:
            known = self._functions.get(name)
        if known is None:
            known = _Guarded(pickle.loads(pickled), mode)
            with _lock:
                known = self._functions.setdefault(name, known)
                while len(self._functions) > KEPT:
                    del self._functions[next(iter(self._functions))]
        return known

    @contextmanager
    def keeping(self, cancel: Callable[..., object]) -> Iterator[None]:
        """While a batch runs, for the task that Dask's thread is at."""
        key = self._worker.get_current_task()
        self._running[key] = cancel
        try:
            yield
        finally:
            del self._running[key]

    def end_unwanted(self) -> None:
        """End the batches whose tasks Dask has dropped: nobody waits for them."""
        for key, cancel in list(self._running.items()):
            task = self._worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                cancel(kill=True)


_entries: dict[tuple[str, str], _Entry] = {}
"""By the client's key and the node's address: a `LocalCluster(processes=False)` has several nodes in one process."""

_closed: deque[str] = deque(maxlen=64)
"""Keys of the clients that ended last: a batch of theirs may still be on its way into a thread."""

_lock = threading.Lock()
_opening = threading.Lock()
_janitor: threading.Thread | None = None


def _enter(setup: Setup, node: str) -> _Entry:
    with _opening:
        with _lock:
            entry = _entries.get((setup.key, node))
            if entry is not None:
                entry.uses += 1
                return entry
        entry = None if setup.key in _closed else _Entry(setup)
        with _lock:
            if entry is not None and setup.key not in _closed:
                entry.uses = 1
                _entries[setup.key, node] = entry
                _have_janitor()
                return entry
        if entry is not None:
            entry.pool.terminate()
        raise CancelledError("the client has ended its pools")


def _leave(entry: _Entry) -> None:
    with _lock:
        entry.uses -= 1
        entry.idle_since = time.monotonic()


def close_pool(key: str, dask_worker: Any = None) -> None:
    """End the pool of a client, which needs it no more; Dask says on which of its workers."""
    with _lock:
        _closed.append(key)
        entry = _entries.pop((key, str(dask_worker.address)), None)
    if entry is not None:
        entry.pool.terminate()


def _have_janitor() -> None:
    global _janitor
    if _janitor is None:
        _janitor = threading.Thread(target=_clean_up, name="pairpool-janitor", daemon=True)
        _janitor.start()


def _clean_up() -> None:
    """End what nobody wants any more, as long as there are pools."""
    global _janitor
    while True:
        time.sleep(LOOK)
        with _lock:
            now = time.monotonic()
            old = [key for key, one in _entries.items() if not one.uses and now - one.idle_since > IDLE]
            entries = [_entries.pop(key) for key in old]
            is_over = not _entries
            if is_over:
                _janitor = None
            in_use = list(_entries.values())
        for entry in in_use:
            entry.end_unwanted()
        for entry in entries:
            entry.pool.terminate()
        if is_over:
            return


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


def _threads() -> int:
    from distributed import get_worker

    return int(get_worker().state.nthreads)
