"""`pairpool.joblib.register()`: a backend for joblib, and so for scikit-learn. The extra is `pairpool[joblib]`.

with joblib.parallel_config("pairpool"):
    GridSearchCV(model, grid, n_jobs=8).fit(X, y)

Parallel ─► batches of joblib ─► PairpoolBackend ─► Executor, kept for the next call ─► Pool
                                 joblib_arrays      joblib_pools
                                 joblib_calls
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pairpool.executor import Executor
from pairpool.joblib_arrays import JoblibArrays
from pairpool.joblib_calls import run_batch, separate
from pairpool.joblib_pools import pools
from pairpool.linux import cgroup
from pairpool.options import names_of_options
from pairpool.results.future import PoolFuture

try:
    from joblib import register_parallel_backend
    from joblib.disk import memstr_to_bytes
    from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as missing:
    raise ImportError("pairpool.joblib needs joblib: pip install 'pairpool[joblib]'") from missing

__all__ = ["PairpoolBackend", "register"]

NAME = "pairpool"

_OPTIONS = names_of_options() - {"processes"}


def register(*, make_default: bool = False) -> None:
    """Make the backend `"pairpool"` known to joblib.

    Args:
        make_default: use this backend if a call names no other one.

    Example:
        >>> from joblib import Parallel, delayed, parallel_config
        >>> register()
        >>> with parallel_config("pairpool", n_jobs=2):
        ...     Parallel()(delayed(abs)(x) for x in (-1, 2))
        [1, 2]
    """
    register_parallel_backend(NAME, PairpoolBackend, make_default=make_default)


class PairpoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Run the calls of `joblib.Parallel` in a pool of pairpool, which is kept for later calls with the same options.

    The differences from joblib's own backend, loky, are:

    - A worker that dies fails the call with `WorkerDied`, which names the task and the reason. The pool goes on.
    - An array of at least `max_nbytes` that several tasks have as an argument is written once per call of `Parallel`
      into memory that all workers map. There it is writable, copy-on-write: what a task writes is undone when the task
      has ended. Do not change such an array while the call runs. `mmap_mode` and `temp_folder` have no effect.
    - An array of `numpy.memmap` is mapped from its file, as with loky, so the file contains what tasks write.
      Both kinds of arrays may also be in a list, tuple or dict that is an argument.
    - A call that fails does not affect the calls of other threads.
    - Two pools are kept beside those in use, because each set of options has its own pool. loky keeps one.
    - Workers come from a fresh interpreter, as loky's do. They are forked off one that has imported what they need.
      `start_method="fork"` forks them off the program. That is quicker, but not safe if the program has used OpenMP.

    Args:
        nesting_level: how many calls of `Parallel` this one is in; for joblib.
        inner_max_num_threads: threads that numerical libraries may use in each worker; by default the number of cores
            divided by the number of workers. It is set in the environment, and by threadpoolctl if that is installed.
        options: of `Pool`: `start_method`, `task_timeout`, `memory_limit`, `live`, `initializer` and so on.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False

    MIN_IDEAL_BATCH_DURATION = 0.02  # in s; a batch costs about 100 µs, most of them joblib's
    MAX_IDEAL_BATCH_DURATION = 0.2

    _executor: Executor | None = None
    _arrays: JoblibArrays | None = None

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options  # the base class keeps them only from joblib 1.5 on

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers that `n_jobs` means: -1 is the number of cores, -2 is one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(cgroup.cpu_allowance() + 1 + n_jobs, 1)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | float | str | None = "1M", **given: Any
    ) -> int:
        """Prepare a pool, and return the number of its workers. Options of other backends are ignored."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self._options, **{name: value for name, value in given.items() if name in _OPTIONS}}
        least = options.pop("max_nbytes", max_nbytes)
        least = memstr_to_bytes(least) if isinstance(least, str) else least
        self._leave()
        environment = self._prepare_worker_env(n_jobs=n_jobs)
        options.setdefault("start_method", "forkserver")
        self._key, self._executor = pools.acquire(n_jobs, environment, options, _prepare_worker)
        self._arrays = JoblibArrays(self._executor, least)
        self._futures: set[PoolFuture[Any]] = set()
        self._again = functools.partial(self.configure, n_jobs, parallel, max_nbytes, **given)
        self.parallel = parallel
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Run a batch in a worker."""
        assert self._executor is not None
        assert self._arrays is not None
        if hasattr(func, "items"):
            func.items = separate(self._arrays.prepare(func.items), self._executor.pool)
        future = self._executor.submit(run_batch, func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # the name of the method before joblib 1.5

    def retrieve_result_callback(self, future: PoolFuture[Any]) -> Any:
        """Return the results of a batch that has ended."""
        return future.result()

    def terminate(self) -> None:
        """End a call of `Parallel`. The pool is kept for the next call, but the shared arrays are not."""
        self._leave()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the tasks of a call that has failed."""
        if self._executor is not None:
            self._executor.kill_calls(self._futures)
        self._leave()
        if ensure_ready:
            self._again()

    def _leave(self) -> None:
        if self._executor is not None:
            self._executor = None
            pools.release(self._key)
        if self._arrays is not None:
            self._arrays.close()
            self._arrays = None


def _prepare_worker(
    environment: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """Limit the threads of numerical libraries in a worker, both of those that are loaded and of those to come."""
    register()  # because tasks may use `Parallel`, and the main module may register only in the main process
    os.environ.update(environment)
    try:
        from threadpoolctl import threadpool_info, threadpool_limits
    except ImportError:
        pass  # an optional dependency of numerical packages; libraries that load later read the environment
    else:
        threadpool_limits({one["prefix"]: _threads_of(one["internal_api"], environment) for one in threadpool_info()})
    if initializer is not None:
        initializer(*initargs)


def _threads_of(library: str, environment: dict[str, str]) -> int | None:
    """Return the number of threads that the environment allows a library; None if it does not say."""
    text = environment.get(f"{library.upper()}_NUM_THREADS", environment["OMP_NUM_THREADS"])
    first = text.partition(",")[0]  # OpenMP's value may be a list, by level of nesting
    return int(first) if first.strip().isdecimal() else None
