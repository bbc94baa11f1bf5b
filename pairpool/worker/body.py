"""What the zygote runs in each child: set up the process, run the worker, and finish."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pairpool.scoreboard import progress
from pairpool.scoreboard.board import Scoreboard, Word
from pairpool.scoreboard.fault_stacks import catch_faults
from pairpool.scoreboard.stacks import offer_stack
from pairpool.transport import capture
from pairpool.transport.channel import Channel
from pairpool.transport.protocol import REPORT_SIGNAL
from pairpool.worker import bootstrap
from pairpool.worker.worker import Worker

__all__ = ["WorkerBody", "make_body"]


class WorkerBody(NamedTuple):
    """Runs a worker in a child of the zygote. The child inherits this object.

    Args:
        board: the scoreboard.
        stacks: descriptor of the memfd that receives the Python stack at a fault.
        master: pid of the master.
        daemon: whether multiprocessing treats the worker as a daemon process.
    """

    board: Scoreboard
    stacks: int
    master: int
    initializer: Callable[..., object] | None
    initargs: Sequence[Any]
    daemon: bool

    def __call__(self, channel: Channel, number: int, serial: int) -> int:
        slot = self.board.slot(number)
        slot.words[Word.BORN] = time.monotonic_ns()
        progress.become_reporter(self.board, number)
        catch_faults(self.stacks, number)
        offer_stack()
        bootstrap.become_pool_worker(serial, self.master, daemon=self.daemon)
        worker = Worker(channel, slot, self.initializer, self.initargs)
        signal.signal(REPORT_SIGNAL, worker.runner.on_report_signal)
        status = worker.run()
        if status == 0:
            bootstrap.finish_pool_worker()
        capture.finish()
        return status


def make_body(fds: list[int], setup: bytes) -> WorkerBody:
    """Return the body in a fresh zygote.

    Args:
        fds: the scoreboard, the memfd for stacks, and the descriptors of the initializer's arguments.
        setup: the pickled master, arguments and daemon flag.
    """
    from pairpool.transport.child_pickles import remember_inherited  # only fresh interpreters need it

    board_fd, stacks, *inherited = fds
    remember_inherited(inherited)
    master, arguments, daemon = pickle.loads(setup)
    return WorkerBody(Scoreboard.attach(board_fd), stacks, master, _load_initializer, (arguments,), daemon)


def _load_initializer(pickled: bytes | None) -> None:
    if pickled is not None:
        initializer, initargs = pickle.loads(pickled)
        initializer(*initargs)
