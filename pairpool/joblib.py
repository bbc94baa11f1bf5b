"""`pairpool.joblib.register()`: a backend for joblib, and so for scikit-learn. The extra is `pairpool[joblib]`.

    with joblib.parallel_config("pairpool"):
        GridSearchCV(model, grid, n_jobs=8).fit(X, y)

    Parallel ─► batches of joblib ─► Executor, kept for the next call ─► Pool
"""

from __future__ import annotations

import inspect
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pairpool import kernel
from pairpool.executor import Executor
from pairpool.memory import parse_size
from pairpool.pool import Pool

try:
    from joblib import register_parallel_backend
    from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as missing:
    raise ImportError("pairpool.joblib needs joblib: pip install 'pairpool[joblib]'") from missing

__all__ = ["PairpoolBackend", "register"]

NAME = "pairpool"

_OPTIONS = frozenset(inspect.signature(Pool).parameters) - {"processes"}

KEPT = 2
"""Pools without a call that are kept for later ones. Each set of options has a pool of its own, and so has each number
of workers that leaves another number of threads to each."""

_executors: dict[tuple[Any, ...], Executor] = {}
"""By options; the one that was used last comes last."""

_users: Counter[tuple[Any, ...]] = Counter()
"""How many calls of `Parallel` have each."""

_executors_lock = threading.Lock()


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
    - Arrays of at least `max_nbytes` that are arguments of a task are written once a call of `Parallel` into memory
      that all workers map, and are writable there, copy-on-write. `mmap_mode` and `temp_folder` are of no effect.
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
    _shared: dict[int, tuple[Any, Any]] | None = None
    """What is shared in this call, by its id, with its handle."""

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options)

    # --- what joblib calls ----------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers `n_jobs` means: -1 is as many as this process may use cores, -2 is one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(kernel.cpu_allowance() + 1 + n_jobs, 1)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | str | None = "1M", **given: Any
    ) -> int:
        """Have a pool ready; returns the number of its workers. What `Parallel` has for other backends is ignored."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self.backend_kwargs, **{name: value for name, value in given.items() if name in _OPTIONS}}
        least = options.pop("max_nbytes", max_nbytes)
        self._shares_from = None if least is None else parse_size(f"{least}B" if isinstance(least, str) else least)
        self._leave()
        self._release()
        environment = tuple(self._prepare_worker_env(n_jobs=n_jobs).items())
        options.setdefault("start_method", "forkserver")
        self._key = (environment, *sorted(options.items(), key=str))
        with _executors_lock:
            executor = _executors.pop(self._key, None)
            if executor is None or not executor.is_usable:
                executor = _open(n_jobs, dict(environment), options)
            _executors[self._key] = executor
            _users[self._key] += 1
            idle = [key for key in _executors if not _users[key]]
            surplus = [_executors.pop(key) for key in idle[: max(0, len(idle) - KEPT)]]
        for one in surplus:
            one.shutdown()
        executor.resize(n_jobs)
        self._executor, self.parallel = executor, parallel
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Have a worker run a batch."""
        assert self._executor is not None
        if self._shares_from is not None and hasattr(func, "items"):
            func.items = [(call, *self._with_handles(args, kwargs)) for call, args, kwargs in func.items]
        future = self._executor.submit(_run, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """The results of a batch that has ended."""
        return future.result()

    def terminate(self) -> None:
        """The call has ended: the pool stays for the next one, what was shared does not."""
        self._leave()
        self._release()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End what runs, for the call has failed."""
        if self._executor is not None:
            with _executors_lock:
                _executors.pop(self._key, None)
            self._executor.terminate_workers()
        self._leave()
        self._release()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)

    def _leave(self) -> None:
        if self._executor is not None:
            with _executors_lock:
                _users[self._key] -= 1
            self._executor = None

    # --- large arrays ---------------------------------------------------------------------------

    def _with_handles(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with what is large in shared memory."""
        return tuple(map(self._handle, args)), {name: self._handle(value) for name, value in kwargs.items()}

    def _handle(self, value: Any) -> Any:
        if type(value).__module__ != "numpy" or type(value).__name__ != "ndarray":
            return value
        if value.dtype.hasobject or value.nbytes < self._shares_from:
            return value
        assert self._shared is not None
        assert self._executor is not None
        if id(value) not in self._shared:
            self._shared[id(value)] = value, self._executor.pool.share(value)
        return self._shared[id(value)][1]

    def _release(self) -> None:
        for _value, handle in (self._shared or {}).values():
            handle.close()
        self._shared = {}


def _open(n_jobs: int, environment: dict[str, str], options: dict[str, Any]) -> Executor:
    options = dict(options)
    initializer = options.pop("initializer", None)
    initargs = options.pop("initargs", ())
    return Executor(
        n_jobs,
        initializer=_prepare_worker,
        initargs=(environment, initializer, initargs),
        **{"name": "joblib", **options},
    )


def _prepare_worker(
    environment: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """In a worker: limit the threads of numerical libraries, those that are loaded and those to come."""
    os.environ.update(environment)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        pass  # an optional dependency of numerical packages; the environment holds for what is loaded from now on
    else:
        threadpool_limits(int(environment["OMP_NUM_THREADS"]))
    if initializer is not None:
        initializer(*initargs)


def _run(batch: Callable[[], Any]) -> Any:
    """The task: a batch of joblib's, with its function as an argument, so that it goes as one."""
    return batch()
