"""The calls of a pool whose results come one after the other: `imap` and `imap_unordered`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, Unpack, overload

from pairpool.master.engine import Engine
from pairpool.master.jobs.intake import length_of
from pairpool.master.jobs.stream import StreamJob, StreamSpec
from pairpool.options import CallOptions, Limits, RetryOn
from pairpool.results.iterator import IMapIterator
from pairpool.transport.protocol import Mode

__all__ = ["PoolStreams"]

T = TypeVar("T")
R = TypeVar("R")


class PoolStreams:
    """The methods of `Pool` that return a stream of results, and what all calls need."""

    _engine: Engine
    _calls: CallOptions
    """The options of calls that override nothing."""
    _single_calls: CallOptions
    """The same for single calls."""

    def _check_running(self) -> None:
        """Raise `ValueError` if the pool takes no calls."""
        raise NotImplementedError

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R]: ...

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R | BaseException]: ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> IMapIterator[R] | IMapIterator[R | BaseException]:
        """Return results in the order of the input, as they come. The input may be endless.

        Args:
            chunksize: as for `map`.
            buffersize: how many items may be taken from the input and not yet yielded. By default these are a few
                batches per worker: as many items as the workers, or the input, need 0.1 s for, and at most 64 MiB. But
                it is at least two items per worker. An input that waits for a result of this call needs `buffersize=1`.
            return_exceptions: yield exceptions instead of raising them.
        """
        self._check_running()
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, buffersize, return_exceptions)
        return self._stream(func, iterable, options, StreamSpec(ordered=True, total=length_of(iterable)))

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R]: ...

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R | BaseException]: ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> IMapIterator[R] | IMapIterator[R | BaseException]:
        """Do as `imap` does, with results in the order in which they are ready."""
        self._check_running()
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, buffersize, return_exceptions)
        return self._stream(func, iterable, options, StreamSpec(ordered=False, total=length_of(iterable)))

    def _stream_ahead(
        self, func: Callable[..., R], items: Iterable[Any], chunksize: int | None, buffersize: int | None
    ) -> IMapIterator[R]:
        """Return a stream of `func(*item)`. Without a `buffersize` it runs to its end whether it is read or not."""
        is_ahead = buffersize is None
        spec = StreamSpec(True, length_of(items), is_ahead, waits_for_reader=not is_ahead, frees_results=True)
        options = self._calls.override(chunksize=chunksize, buffersize=buffersize)
        return self._stream(func, items, options, spec, Mode.STAR)

    def _stream(
        self,
        func: Callable[..., R],
        iterable: Iterable[Any],
        options: CallOptions,
        spec: StreamSpec,
        mode: int = Mode.MAP,
    ) -> IMapIterator[R]:
        self._check_running()
        engine = self._engine
        source = engine.source_of(iterable, everything=spec.is_ahead)
        job = StreamJob(engine.find_function(func), mode, source, options, spec)
        stream: IMapIterator[R] = IMapIterator.of(self, engine, job, return_exceptions=options.return_exceptions)
        engine.start_stream(job)
        return stream
