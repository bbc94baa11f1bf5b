"""The scoreboard as its master uses it: what the master writes is kept in private memory, and shown on the scoreboard.

    master ──► private memory ──► Pool.status(), decisions
       └─────► scoreboard ──────► `pairpool top`, live view
                    ▲
    worker ─────────┘  its own words, which the master reads

Every process of the pool can write to every word of the scoreboard, by mistake or on purpose. So the master never reads
a word from there that it has written itself. It reads the words of the workers, and bounds each before it uses it.
"""

from __future__ import annotations

import mmap

from pairpool.scoreboard.board import (
    POOL_AT,
    CallRecord,
    FailureRecord,
    PoolWord,
    Scoreboard,
    Slot,
    Word,
    board_size,
)

__all__ = ["MasterScoreboard", "MasterSlot"]


class MasterSlot(Slot):
    """The words of one worker, as the scoreboard shows them (`words`) and as the master has written them (`own`)."""

    __slots__ = ("own",)

    def __init__(self, words: memoryview, own: memoryview) -> None:
        super().__init__(words)
        self.own = own

    def store(self, word: int, value: int) -> None:
        """Store a word that only the master writes."""
        self.own[word] = self.words[word] = value

    def clear(self) -> None:
        """Prepare the slot for a new worker. The master calls this while the slot has none."""
        Slot(self.own).clear()
        super().clear()
        self.words[Word.REPLACED] = self.own[Word.REPLACED]


class MasterScoreboard(Scoreboard):
    """A scoreboard with the master's private copy of its own words.

    Args:
        memory: a mapping of the memfd, owned by this object.
        slots: the number of workers that fit.
    """

    def __init__(self, memory: mmap.mmap | bytearray, slots: int) -> None:
        super().__init__(memory, slots)
        # Anonymous memory takes room only for the pages that are written.
        private = mmap.mmap(-1, board_size(slots), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._own = Scoreboard(private, slots)

    @classmethod
    def create(cls, slots: int, name: str, now: int) -> tuple[int, MasterScoreboard]:
        """Return a memfd and a new scoreboard on it, for `slots` workers. `now` is the monotonic time in ns."""
        fd, board = super().create(slots, name, now)
        assert isinstance(board, MasterScoreboard)
        board._own.write_head(board.head(POOL_AT))
        return fd, board

    @property
    def own(self) -> Scoreboard:
        return self._own

    @property
    def name(self) -> str:
        return self._own.name

    @property
    def pid(self) -> int:
        return self._own.pid

    @property
    def created(self) -> int:
        return self._own.created

    def slot(self, number: int) -> MasterSlot:
        """Return slot `number`. Its views are valid until `close`."""
        return MasterSlot(super().slot(number).words, self._own.slot(number).words)

    def store(self, word: int, value: int) -> None:
        """Store a word of the pool (`PoolWord`)."""
        self._own.pool[word] = self.pool[word] = value

    def name_function(self, number: int, name: str) -> None:
        self._own.name_function(number, name)
        super().name_function(number, name)

    def show_argument(self, number: int, batch: int, item: int, text: str) -> None:
        self._own.show_argument(number, batch, item, text)
        super().show_argument(number, batch, item, text)

    def begin_second(self, second: int) -> int:
        super().begin_second(second)
        return self._own.begin_second(second)

    def write_calls(self, records: list[CallRecord]) -> None:
        self._own.write_calls(records)
        super().write_calls(records)

    def add_failure(self, record: FailureRecord) -> None:
        self.pool[PoolWord.FAILURES] = self._own.pool[PoolWord.FAILURES]
        self._own.add_failure(record)
        super().add_failure(record)

    def remains(self) -> Scoreboard:
        """Return a private copy without the workers: what remains of a pool that has ended."""
        return self._own.remains()

    def close(self) -> None:
        """Unmap the memory. Slots must not be used afterwards."""
        super().close()
        self._own.close()
