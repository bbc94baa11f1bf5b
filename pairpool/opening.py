"""How a pool opens: from its options to an engine whose workers start.

1. Check what the platform and the limits of this process allow.
2. Create the scoreboard and the file for stacks, and open the trace.
3. Make the engine, which forks the zygote.
4. Hand the engine to the pool, which ends it if a later step raises.
5. Start the capture of output. The pool then starts the first workers.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pairpool.linux import descriptors, requirements
from pairpool.master.engine import Engine
from pairpool.master.engine_settings import ScoreboardFiles, WorkerSettings
from pairpool.master.zygotes import ForkedZygote, Zygote
from pairpool.options import START_METHODS, PoolOptions
from pairpool.worker import zygote
from pairpool.worker.body import WorkerBody

if TYPE_CHECKING:
    from pairpool.view.trace import TraceWriter

__all__ = ["descriptors_per_worker", "open_engine"]

SCOREBOARD_SLOTS = 4096
DESCRIPTORS_PER_WORKER = 4
DESCRIPTORS_PER_POOL = 16

_numbers = itertools.count(1)


def open_engine(options: PoolOptions, adopt: Callable[[Engine], object], *, daemon: bool) -> None:
    """Make the engine of a pool. Handlers of signals must be deferred meanwhile.

    Args:
        adopt: takes the engine as soon as it exists. If a later step raises, the engine is to be ended there.
        daemon: whether tasks are kept from starting processes with multiprocessing.

    Raises:
        ValueError: this thread cannot use the start method.
        OSError: a limit of this process does not allow so many workers.
    """
    if options.start_method == "direct" and threading.current_thread() is not threading.main_thread():
        raise ValueError('start_method="direct" sets SIGCHLD, which only the main thread can do')
    workers = options.workers
    name = options.name or f"pool-{next(_numbers)}"
    requirements.require_descriptors(
        descriptors_per_worker(options) * workers + DESCRIPTORS_PER_POOL, f"a pool of {workers} workers"
    )
    method = START_METHODS.index(options.start_method)
    files = ScoreboardFiles.create(max(SCOREBOARD_SLOTS, 2 * workers), name, method)
    trace = None
    try:
        trace = _open_trace(options, name, files)
        engine = Engine(_zygote_maker(options, files, daemon), files, _settings(options), trace)
    except BaseException:
        if trace is not None:
            descriptors.disown(trace)
            trace.close()
        files.close()
        raise
    adopt(engine)
    _start_capture(options, engine)


def descriptors_per_worker(options: PoolOptions) -> int:
    """Return the number of descriptors that each worker takes in this process."""
    return DESCRIPTORS_PER_WORKER + 2 * (options.capture is not False) + (options.log_number is not None)


def _settings(options: PoolOptions) -> WorkerSettings:
    return WorkerSettings(
        options.workers,
        options.maxtasksperchild,
        options.initializer is not None,
        options.memory_bytes,
        options.start_timeout,
    )


def _open_trace(options: PoolOptions, name: str, files: ScoreboardFiles) -> TraceWriter | None:
    if options.trace is None:
        return None
    from pairpool.view.trace import TraceWriter

    writer = TraceWriter(options.trace, name=name, pid=os.getpid(), created=files.board.created)
    descriptors.own(writer)
    return writer


def _start_capture(options: PoolOptions, engine: Engine) -> None:
    if options.capture is False and options.log_number is None:
        return
    from pairpool.master import output_sinks

    sink = output_sinks.print_tagged if isinstance(options.capture, bool) else output_sinks.each_line(options.capture)
    engine.start_capture(sink, streams=options.capture is not False, level=options.log_number)


def _zygote_maker(options: PoolOptions, files: ScoreboardFiles, daemon: bool) -> Callable[[], Zygote]:
    """Return a function that makes the zygote, with the body that its workers run."""
    return _ZYGOTE_MAKERS[options.start_method](options, files, daemon)


def _body(options: PoolOptions, files: ScoreboardFiles, daemon: bool) -> WorkerBody:
    initializer, initargs = options.initializer, tuple(options.initargs)
    return WorkerBody(files.board, files.stacks.fileno(), os.getpid(), initializer, initargs, daemon)


def _forked_zygote_maker(options: PoolOptions, files: ScoreboardFiles, daemon: bool) -> Callable[[], Zygote]:
    body = _body(options, files, daemon)
    return lambda: ForkedZygote(zygote.serve, body, keep=[files.stacks])


def _direct_zygote_maker(options: PoolOptions, files: ScoreboardFiles, daemon: bool) -> Callable[[], Zygote]:
    from pairpool.master.direct_zygote import DirectZygote

    body = _body(options, files, daemon)
    return lambda: DirectZygote(body, keep=[files.stacks])


def _fresh_zygote_maker(options: PoolOptions, files: ScoreboardFiles, daemon: bool) -> Callable[[], Zygote]:
    # Most pools need none of these, and `subprocess` behind them takes long to load.
    import pickle

    from pairpool.master.fresh_zygote import FreshZygote
    from pairpool.transport.child_pickles import pickle_for_child
    from pairpool.worker import forkserver_main
    from pairpool.worker.body import make_body

    arguments: bytes | None = None
    fds: list[int] = []
    if options.initializer is not None:
        arguments, fds = pickle_for_child((options.initializer, tuple(options.initargs)))
    setup = pickle.dumps((os.getpid(), arguments, daemon))
    main = f"{forkserver_main.__name__}:{forkserver_main.run_fresh_zygote.__name__}"
    factory = f"{make_body.__module__}:{make_body.__name__}"
    return lambda: FreshZygote(main, factory, [files.board_fd.fileno(), files.stacks.fileno(), *fds], setup)


_ZYGOTE_MAKERS = {
    "fork": _forked_zygote_maker,
    "forkserver": _fresh_zygote_maker,
    "direct": _direct_zygote_maker,
}
assert set(_ZYGOTE_MAKERS) == set(START_METHODS)
