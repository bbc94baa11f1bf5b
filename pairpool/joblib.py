"""`pairpool.joblib.register()`: a backend for joblib, and so for scikit-learn. The extra is `pairpool[joblib]`.

with joblib.parallel_config("pairpool"):
    GridSearchCV(model, grid, n_jobs=8).fit(X, y)

Parallel ─► batches of joblib ─► Executor, kept for the next call ─► Pool
"""

from __future__ import annotations

import functools
import mmap
import operator
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from cloudpickle import cloudpickle

from pairpool.executor import Executor, when_main_ends
from pairpool.linux import cgroup
from pairpool.master.functions import has_state
from pairpool.options import names_of_options
from pairpool.pool import Pool
from pairpool.results.future import PoolFuture
from pairpool.transport.items import is_immutable, standalone
from pairpool.transport.segments import Shared, restore
from pairpool.transport.serializer import Serializer

try:
    from joblib import register_parallel_backend
    from joblib.disk import memstr_to_bytes
    from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as missing:
    raise ImportError("pairpool.joblib needs joblib: pip install 'pairpool[joblib]'") from missing

__all__ = ["PairpoolBackend", "register"]

NAME = "pairpool"

_OPTIONS = names_of_options() - {"processes"}

KEPT = 2
"""Pools without a call that are kept for later ones. Each set of options has a pool of its own, and so has each number
of workers that leaves another number of threads to each."""

_executors: dict[tuple[Any, ...], Executor] = {}
"""By options; the one that was used last comes last."""

_users: Counter[tuple[Any, ...]] = Counter()
"""How many calls of `Parallel` have each."""

_executors_lock = threading.RLock()  # the collector may end a generator's call while the same thread has it


def register(*, make_default: bool = False) -> None:
    """Make the backend `"pairpool"` known to joblib.

    Args:
        make_default: use it wherever no other one is asked for.

    Example:
        >>> from joblib import Parallel, delayed, parallel_config
        >>> register()
        >>> with parallel_config("pairpool", n_jobs=2):
        ...     Parallel()(delayed(abs)(x) for x in (-1, 2))
        [1, 2]
    """
    register_parallel_backend(NAME, PairpoolBackend, make_default=make_default)


class PairpoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs the calls of `joblib.Parallel` in a pool of pairpool, which is kept for later calls with the same options.

    What is different from joblib's own backend, loky:

    - A worker that dies fails the call with `WorkerDied`, which names the task and the reason; the pool goes on.
    - Arrays of at least `max_nbytes` that more than one task has as an argument are written once a call of `Parallel`
      into memory that all workers map, and are writable there, copy-on-write: what a task writes is undone when it has
      ended. Do not change such an array while the call runs. `mmap_mode` and `temp_folder` are of no
      effect. Arrays of `numpy.memmap` are mapped from their file, so that what tasks write is in it, as with loky; both
      also in a list, tuple or dict that is an argument.
    - A call that fails leaves those of other threads alone.
    - Two pools are kept beside those in use, as each set of options has its own; loky keeps one.
    - Workers come from a fresh interpreter, as loky's do, forked off one that has imported what they need once.
      `start_method="fork"` forks them off the program, which is quicker, but not safe where it has used OpenMP before.

    Args:
        nesting_level: how many calls of `Parallel` this one is in; for joblib.
        inner_max_num_threads: threads that numerical libraries may use in each worker; by default the cores over the
            workers. It is set in the environment, and by threadpoolctl where that is installed.
        options: of `Pool`: `start_method`, `task_timeout`, `memory_limit`, `live`, `initializer` and so on.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False

    MIN_IDEAL_BATCH_DURATION = 0.02  # in s; a batch costs some 100 µs, most of them joblib's
    MAX_IDEAL_BATCH_DURATION = 0.2

    _executor: Executor | None = None
    _arrays: _Arrays | None = None

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options  # that the base keeps them is new in joblib 1.5

    # --- what joblib calls ----------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers `n_jobs` means: -1 is as many as this process may use cores, -2 is one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(cgroup.cpu_allowance() + 1 + n_jobs, 1)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | float | str | None = "1M", **given: Any
    ) -> int:
        """Have a pool ready; returns the number of its workers. What `Parallel` has for other backends is ignored."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self._options, **{name: value for name, value in given.items() if name in _OPTIONS}}
        least = options.pop("max_nbytes", max_nbytes)
        least = memstr_to_bytes(least) if isinstance(least, str) else least
        self._leave()
        environment = self._prepare_worker_env(n_jobs=n_jobs)
        options.setdefault("start_method", "forkserver")
        self._key, self._executor = _take_executor(n_jobs, environment, options)
        self._arrays = _Arrays(self._executor, least)
        self._futures: set[PoolFuture[Any]] = set()
        self._again = functools.partial(self.configure, n_jobs, parallel, max_nbytes, **given)
        self.parallel = parallel
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Have a worker run a batch."""
        assert self._executor is not None
        assert self._arrays is not None
        if hasattr(func, "items"):
            calls = self._arrays.prepare(func.items)
            func.items = _apart(calls, self._executor.pool)
        future = self._executor.submit(_run, func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # what joblib calls it before 1.5

    def retrieve_result_callback(self, future: PoolFuture[Any]) -> Any:
        """The results of a batch that has ended."""
        return future.result()

    def terminate(self) -> None:
        """The call has ended: the pool stays for the next one, what was shared does not."""
        self._leave()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End what runs of this call, for it has failed."""
        if self._executor is not None:
            self._executor.kill_calls(self._futures)
        self._leave()
        if ensure_ready:
            self._again()

    def _leave(self) -> None:
        if self._executor is not None:
            self._executor = None
            _leave_executor(self._key)
        if self._arrays is not None:
            self._arrays.close()
            self._arrays = None


# --- pools that are kept ------------------------------------------------------------------------------


def _take_executor(
    n_jobs: int, environment: dict[str, str], options: dict[str, Any]
) -> tuple[tuple[Any, ...], Executor]:
    """One with these options and workers, kept or new, and its key, with which it is left again."""
    key: tuple[Any, ...] = (*environment.items(), *((name, _hashable(options[name])) for name in sorted(options)))
    with _executors_lock:
        executor = _executors.get(key)
        if executor is not None and _users[key] and executor.max_workers != n_jobs:
            key = (*key, n_jobs)  # a call in another thread has that one, with as many workers as it wants
        executor = _executors.pop(key, None)
        if executor is None or not executor.is_usable:
            executor = _open(n_jobs, environment, options)
        executor.resize(n_jobs)
        _executors[key] = executor
        _users[key] += 1
        idle = [one for one in _executors if not _users[one]]
        surplus = [_executors.pop(one) for one in idle[: max(0, len(idle) - KEPT)]]
    for one in surplus:
        one.shutdown()
    return key, executor


def _end_what_runs() -> None:
    """When the program ends: nobody can have what is left of a generator, and what comes next cannot be submitted."""
    for key in list(_users):
        if key in _executors:
            _executors[key].terminate_workers()


when_main_ends(_end_what_runs)  # after that of executors, so it is run before it


def _leave_executor(key: tuple[Any, ...]) -> None:
    with _executors_lock:
        _users[key] -= 1
        if _users[key] < 1:  # less than none in a forked child, for the call was its parent's
            del _users[key]


def _start_anew() -> None:
    """In a forked child: the pools are its parent's, and nobody would ever release a lock that was held."""
    global _executors_lock
    _executors_lock = threading.RLock()
    _executors.clear()
    _users.clear()


os.register_at_fork(after_in_child=_start_anew)


def _hashable(value: Any) -> Any:
    """The value of an option, or what stands for it in a key: `initargs` may have lists and arrays."""
    try:
        hash(value)
        return value
    except TypeError:
        pass
    try:
        return cloudpickle.dumps(value)
    except Exception:
        return id(value)  # which the executor has, so that no other thing has this id while it is kept


def _open(n_jobs: int, environment: dict[str, str], options: dict[str, Any]) -> Executor:
    options = dict(options)
    initializer = options.pop("initializer", None)
    initargs = options.pop("initargs", ())
    return Executor(
        n_jobs,
        initializer=_prepare_worker,
        initargs=(environment, initializer, initargs),
        max_tasks_per_child=options.pop("maxtasksperchild", None),
        **{"name": "joblib", **options},
    )


def _prepare_worker(
    environment: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """In a worker: limit the threads of numerical libraries, those that are loaded and those to come."""
    register()  # tasks may have calls of their own, and a main module registers it where only the main process does
    os.environ.update(environment)
    try:
        from threadpoolctl import threadpool_info, threadpool_limits
    except ImportError:
        pass  # an optional dependency of numerical packages; the environment holds for what is loaded from now on
    else:
        threadpool_limits({one["prefix"]: _threads_of(one["internal_api"], environment) for one in threadpool_info()})
    if initializer is not None:
        initializer(*initargs)


def _threads_of(library: str, environment: dict[str, str]) -> int | None:
    """How many threads the environment allows a library; None if it does not say."""
    text = environment.get(f"{library.upper()}_NUM_THREADS", environment["OMP_NUM_THREADS"])
    first = text.partition(",")[0]  # OpenMP's may be a list, by level of nesting
    return int(first) if first.strip().isdecimal() else None


def _run(batch: Callable[[], Any]) -> Any:
    """The task: a batch of joblib's, with its function as an argument, so that it goes as one."""
    return batch()


# --- the calls of a batch, each as if it were alone -------------------------------------------------------

_codec = Serializer()
"""Of a worker."""


def _apart(calls: list[tuple[Any, Any, Any]], pool: Pool) -> list[tuple[Any, Any, Any]]:
    """The calls of a batch, none of which sees what another one does to its arguments or its result."""
    found: list[tuple[Any, Any, Any]] = []
    for call, args, kwargs in calls:
        if is_immutable(args) and not kwargs and not has_state(call):
            found.append((_call_plainly, (call, *args), kwargs) if len(calls) > 1 else (call, args, kwargs))
            continue
        shared = tuple(_idents_in((*args, *kwargs.values())))
        if shared or len(calls) > 1:
            alone = pool.taken((call if has_state(call) else None, args, kwargs))
            found.append((_call_alone, (None if has_state(call) else call, alone, shared), {}))
        else:
            found.append((call, args, kwargs))
    return found


def _idents_in(values: Iterable[Any], depth: int = 1) -> Iterator[int]:
    """The numbers of the shared arrays among arguments, or in lists, tuples and dicts that are arguments."""
    for value in values:
        if type(value) is Shared:
            yield value.ident
        elif depth and type(value) in (list, tuple, dict):
            yield from _idents_in(value.values() if type(value) is dict else value, depth - 1)


def _call_alone(call: Any, alone: tuple[Any, Any, Any], shared: tuple[int, ...]) -> Any:
    """In a worker: a call of a batch, with arguments, and a callable with state, that were pickled by themselves.

    What it writes to shared arrays is undone behind it.
    """
    own, args, kwargs = alone
    try:
        return _call_plainly(call if own is None else own, *args, **kwargs)
    finally:
        for ident in shared:
            restore(ident)


def _call_plainly(call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """In a worker: a call of a batch; its result, or the pickle of it if the next call may change it."""
    value = call(*args, **kwargs)
    if is_immutable(value):
        return value
    try:
        return standalone(_codec.dump(value), value)
    except Exception:
        return value  # the batch says why it cannot be pickled


# --- large arrays, and arrays in files ------------------------------------------------------------------


class _Arrays:
    """What becomes of the arrays among the arguments of one call of `Parallel`.

    Args:
        executor: whose workers get them.
        least: bytes from which on one is shared that comes for the second time; None for never.
    """

    def __init__(self, executor: Executor, least: float | None) -> None:
        self._executor = executor
        self._least = least
        self._seen: dict[int, tuple[weakref.ref[Any], Shared[Any] | None]] = {}
        """Large ones by id, for as long as they exist: memory is bounded by what the program itself keeps."""

    def prepare(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> list[tuple[Any, Any, Any]]:
        """The calls of a batch as they are to travel."""
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return calls
        kinds = {numpy.ndarray, numpy.memmap}

        def found(value: Any) -> Any:
            kind = type(value)
            if kind in kinds:
                return self._prepare(value)
            if kind not in (dict, list, tuple):
                return value
            values = list(value.values() if kind is dict else value)
            ready = [self._prepare(one) if type(one) in kinds else one for one in values]
            if all(map(operator.is_, values, ready)):
                return value  # the very same: it may contain itself
            return dict(zip(value, ready, strict=True)) if kind is dict else kind(ready)

        return [
            (call, tuple(map(found, args)), {name: found(value) for name, value in kwargs.items()})
            for call, args, kwargs in calls
        ]

    def _prepare(self, array: Any) -> Any:
        if array.base is not None:
            in_file = _in_file(array)
            if in_file is not None:
                return in_file
        if self._least is None or array.nbytes < max(self._least, 1) or array.dtype.hasobject:
            return array
        key = id(array)
        reference, shared = self._seen.get(key, (None, None))
        if reference is None:
            seen = self._seen
            self._seen[key] = weakref.ref(array, lambda _gone: seen.pop(key, None)), None
            return array  # it may be the only time
        if shared is None:
            shared = self._executor.pool.share(array)
            self._seen[key] = reference, shared
        return shared

    def close(self) -> None:
        """Free what was shared."""
        seen, self._seen = self._seen, {}
        for _reference, shared in seen.values():
            if shared is not None:
                shared.close()


class _InFile:
    """An array that lies in a file, on its way to a worker, which maps it."""

    def __init__(self, *where: Any) -> None:
        self._where = where

    def __reduce__(self) -> Any:
        return _map_file, self._where


def _in_file(array: Any) -> _InFile | None:
    """How a worker gets an array that is a `numpy.memmap` or a view of one; None for others, and for private ones."""
    whole = array
    while not isinstance(whole.base, mmap.mmap):
        whole = whole.base
        if not hasattr(whole, "base"):
            return None
    name = getattr(whole, "filename", None)
    if name is None or whole.mode == "c" or not array.size or not os.path.exists(name):
        return None
    steps = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    length = before + sum(step for step in steps if step > 0) + array.itemsize
    at = whole.offset + _address(array) - _address(whole) - before
    mode = "r" if whole.mode == "r" or not array.flags.writeable else "r+"
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else None
    strides = None if order is not None else array.strides
    return _InFile(str(name), mode, at, array.dtype, array.shape, order, length, before, strides)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _map_file(
    name: str,
    mode: Any,
    at: int,
    dtype: Any,
    shape: tuple[int, ...],
    order: Any,
    length: int,
    before: int,
    strides: tuple[int, ...] | None,
) -> Any:
    """In a worker: the array. One that has gaps is an array over a map of the bytes from its first to its last one."""
    import numpy as np

    if strides is None:
        return np.memmap(name, dtype, mode, at, shape, order)
    return np.ndarray(shape, dtype, np.memmap(name, np.uint8, mode, at, (length,)), before, strides)
