"""The pool below an `Executor`: a `Pool` with what `concurrent.futures` asks for in addition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pairpool.master import call_errors
from pairpool.pool import Pool
from pairpool.pool_processes import PoolProcess
from pairpool.results.future import PoolFuture
from pairpool.results.iterator import IMapIterator

__all__ = ["ExecutorPool"]

R = TypeVar("R")


class ExecutorPool(Pool):
    """A pool whose tasks may start processes with multiprocessing, as those of `ProcessPoolExecutor` may.

    Methods without a result do nothing in a forked child, which does not own the pool.
    """

    _daemon = False

    @property
    def failure(self) -> BaseException | None:
        """Why no call can run any more; None if calls can run."""
        return self._engine.failure

    @property
    def processes(self) -> list[PoolProcess]:
        """The workers."""
        return self._pool

    def submit_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PoolFuture[Any]:
        """Run a call in a worker. The future raises the exceptions of `concurrent.futures`."""
        return self._submit(func, args, kwargs, as_process_pool=True)

    def stream_ahead(
        self, func: Callable[..., R], items: Iterable[Any], chunksize: int | None, buffersize: int | None
    ) -> IMapIterator[R]:
        """Return a stream of `func(*item)`. Without a `buffersize` it runs to its end whether it is read or not."""
        return self._stream_ahead(func, items, chunksize, buffersize)

    def run_pending(self) -> None:
        """Wait until all calls have ended, except for streams that wait for their readers."""
        if self._engine.is_here():
            self._engine.wait_for_calls()

    def finish(self, reason: BaseException, *, cancel: bool = False, wait: bool = True) -> None:
        """Take no more calls, and run those that are there to their ends.

        Args:
            reason: raised for readers of streams whose inputs are not read to their ends.
            cancel: cancel the calls that no worker has begun, or is free to begin at once.
            wait: wait until the workers have exited.
        """
        if not self._engine.is_here():
            return
        if cancel:
            self._engine.cancel_waiting(call_errors.cancelled())
        self._engine.end_inputs(reason)
        self.close()
        if wait:
            self.join()

    def end_now(self) -> None:
        """Cancel all calls, and end the workers."""
        if self._engine.is_here():
            self.terminate()

    def leave(self) -> None:
        """Take no more calls. The pool ends with the last of its futures."""
        if self._engine.is_here():
            self.close()

    def cancel_calls(self, futures: list[PoolFuture[Any]]) -> None:
        """Cancel calls that have not ended. Workers that run one of them are replaced."""
        if self._engine.is_here():
            self._engine.cancel_calls(futures, call_errors.cancelled())

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Drive the pool until `ready()`."""
        return self._engine.wait(ready)
