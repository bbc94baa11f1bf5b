"""The parts of an engine that several of its other parts work with."""

from __future__ import annotations

from typing import NamedTuple

from pairpool.master.event_loop import EventLoop
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.metrics import Metrics
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerSet
from pairpool.scoreboard.master_board import MasterScoreboard
from pairpool.transport.serializer import Serializer

__all__ = ["EngineParts"]


class EngineParts(NamedTuple):
    """The parts that `Engine` makes once and passes to its dispatcher, report reader, reaper and supervisor."""

    loop: EventLoop
    workers: WorkerSet
    queue: JobQueue
    watchdog: Watchdog
    metrics: Metrics
    serializer: Serializer
    scoreboard: MasterScoreboard
