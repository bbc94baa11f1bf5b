"""The scoreboard with its files, and the settings of its workers."""

from __future__ import annotations

import time
from typing import NamedTuple

from pairpool.linux import descriptors
from pairpool.scoreboard.board import PoolWord
from pairpool.scoreboard.master_board import MasterScoreboard

__all__ = ["ScoreboardFiles", "WorkerSettings"]


class WorkerSettings(NamedTuple):
    """The number of workers of an engine, and their limits.

    Args:
        processes: the number of workers to keep.
        maxtasks: tasks after which a worker is replaced; None for never.
        has_initializer: whether workers report when they are ready.
        memory_limit: private bytes that a worker may have beyond what it inherited; None for any number.
        start_timeout: seconds that the initializer may take; None for any time.
    """

    processes: int
    maxtasks: int | None = None
    has_initializer: bool = False
    memory_limit: int | None = None
    start_timeout: float | None = None


class ScoreboardFiles(NamedTuple):
    """A scoreboard, its memfd, and the memfd into which workers write their stacks at a fault."""

    board: MasterScoreboard
    board_fd: descriptors.Descriptor
    stacks: descriptors.Descriptor

    @classmethod
    def create(cls, slots: int, name: str, method: int) -> ScoreboardFiles:
        """Create a scoreboard for a pool of this name and start method."""
        number, board = MasterScoreboard.create(slots, name, time.monotonic_ns())
        board.store(PoolWord.METHOD, method)
        files = cls(
            board, descriptors.Descriptor(number), descriptors.Descriptor(descriptors.memfd("pairpool-stacks", 0))
        )
        descriptors.own(files.board_fd)
        descriptors.own(files.stacks)
        return files

    def close(self) -> None:
        """Close all of them. An engine that has started does this itself."""
        for descriptor in (self.board_fd, self.stacks):
            descriptors.disown(descriptor)
            descriptor.close()
        self.board.close()
