"""The scoreboard: one memfd of fixed-size slots that workers write and all processes read, without messages.

    header   magic, version, slots, pid, time of creation, name of the pool
    pool     one row of words (`PoolWord`), items per second, calls, latest failures: written by the master
    names    names of functions, by number
    slots    SLOT_WORDS words of 8 bytes per worker: see `Word`
    texts    per worker: the argument of its item (written by the master), its note (written by the worker)

Every field is one aligned 8-byte word with one writer. A reader sees the old or the new value and never a mix, because
x86 and Arm store an aligned word of this size at once. So no locks are needed. An argument, a progress or a note
belongs to one item and is stored with the index of that item. A reader ignores it if the worker runs another item.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any, NamedTuple

from pairpool.linux import descriptors

__all__ = [
    "CALL_KINDS",
    "Scoreboard",
    "BoardVersionError",
    "CallRecord",
    "FailureRecord",
    "PoolWord",
    "Slot",
    "State",
    "Word",
    "board_size",
    "owner_of",
]

MEMFD = "pairpool-board"
MAGIC = b"PAIRPOOL"
VERSION = 3
NAME_SIZE = 96
POOL_AT = 256
POOL_WORDS = 32
RATES_AT = POOL_AT + POOL_WORDS * 8
SECONDS = 64
"""Seconds for which the scoreboard keeps the number of items that ended."""
CALLS_AT = RATES_AT + SECONDS * 16
CALLS = 16
CALL_WORDS = 8
FAILURES_AT = CALLS_AT + CALLS * CALL_WORDS * 8
FAILURES = 8
FAILURE_SIZE = 384
NAMES_AT = 8192
BOARD_HEADER_SIZE = 40960
NAMES = (BOARD_HEADER_SIZE - NAMES_AT) // NAME_SIZE
SLOT_WORDS = 32
SLOT_SIZE = SLOT_WORDS * 8
TEXT_SIZE = 384
ARGUMENT_SIZE = 256
_HEAD = struct.Struct("<8sQQQQ")
_CALL_RECORD = struct.Struct("<8Q")
_FAILURE = struct.Struct("<5Q")

MAX_SLOTS = 1 << 20
"""No scoreboard has more slots."""

NOTHING = (1 << 64) - 1
"""An index that no item has: in `Word.ITEM` between items, in `Word.LIMIT` if no limit is set."""


class BoardVersionError(ValueError):
    """The memory is not a scoreboard, or it is one of another version of pairpool."""


class Word:
    """The fields of a slot, as indices of 8-byte words.

    PID, LIMIT, RSS, REPLACED, SHOWN_BATCH and SHOWN_ITEM are written by the master, all others by the worker.
    """

    STATE = 0
    PID = 1  # 0 if there is no worker
    FUNCTION = 2  # number of the function of the current batch
    BATCH = 3  # number of the current batch
    FIRST = 4  # index of its first item
    COUNT = 5  # its items
    ITEM = 6  # index of the running item, within its call
    LIMIT = 7  # the worker stops before the item with this index
    STARTED = 8  # monotonic ns, of the batch, or of the item if items are long
    DONE = 9  # items finished since the worker started, failed ones included
    FAILED = 10
    PROGRESS = 11  # a double, stored by the task
    TOTAL = 12  # a double, stored by the task; 0 if the task gave none
    RSS = 13  # bytes
    BORN = 14  # monotonic ns
    REPLACED = 15  # number of workers that had this slot before
    READY = 16  # monotonic ns when the worker could take work; 0 before
    BOUND = 17  # the worker runs items before this index whatever LIMIT says; 0 if it reads LIMIT before each item
    SHOWN_BATCH = 18  # the batch and the item of the argument in the text
    SHOWN_ITEM = 19
    TOLD_BATCH = 20  # the batch and the item of PROGRESS, TOTAL and the note
    TOLD_ITEM = 21


class PoolWord:
    """The fields of the pool, as indices of 8-byte words, all written by the master."""

    STATE = 0  # index in STATES
    METHOD = 1  # index in METHODS
    PROCESSES = 2
    PLACES = 3  # slots that have ever been used
    CALLS = 4  # calls that have not ended
    DONE = 5  # items that have ended
    FAILED = 6
    PENDING = 7
    LISTED = 8  # valid records of calls
    FAILURES = 9  # failures recorded since the pool was opened
    ENDED = 10  # monotonic ns when the pool ended; 0 before
    COUNTED = 11  # the value of DONE when PENDING was written, which happens a few times per second

    STATES = ("RUN", "CLOSE", "TERMINATE")
    METHODS = ("fork", "forkserver", "direct")


class CallRecord(NamedTuple):
    """One call that has not ended, as the scoreboard stores it."""

    function: int
    kind: int
    total: int  # NOTHING if it is not known
    done: int
    failed: int
    began: int  # monotonic ns
    number: int  # of the call, among all calls of the pool


CALL_KINDS = ("map", "imap", "apply")
"""The names of the values of `CallRecord.kind`."""


class FailureRecord(NamedTuple):
    """One item that failed, as the scoreboard stores it."""

    when: int  # monotonic ns
    worker: int  # NOTHING if no worker ran the item
    item: int
    function: str
    error: str


class State:
    """What a worker does: the values of `Word.STATE`."""

    EMPTY = 0
    STARTING = 1
    IDLE = 2
    LOADING = 3  # unpickling the items of a batch, or one of them
    RUNNING = 4
    SAVING = 5  # pickling results
    FUNCTION = 6  # unpickling a function, whose number is in FUNCTION
    SENDING = 7
    KEEPING = 8  # pickling the result of the item in ITEM, before the next item is run
    CHANNEL_LOST = 9  # ending, because a task has closed the channel or has put another file in its place

    NAMES = ("empty", "starting", "idle", "loading", "running", "saving", "loading", "sending", "saving", "ending")


class Slot:
    """The words of one worker: `slot.words[Word.ITEM] = 3`."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview) -> None:
        self.words = words

    def clear(self) -> None:
        """Prepare the slot for a new worker. The master calls this while the slot has none."""
        replaced = self.words[Word.REPLACED]
        for index in range(SLOT_WORDS):
            self.words[index] = 0
        self.words[Word.REPLACED] = replaced
        self.words[Word.ITEM] = NOTHING
        self.words[Word.LIMIT] = NOTHING


class Scoreboard:
    """The whole scoreboard, mapped into this process.

    Args:
        memory: a mapping of the memfd, or a copy of its header; owned by this object.
        slots: the number of workers that fit.
    """

    def __init__(self, memory: mmap.mmap | bytearray, slots: int) -> None:
        self.slots = slots
        self._map = memory
        self._bytes = memoryview(self._map)
        self._texts_at = BOARD_HEADER_SIZE + slots * SLOT_SIZE
        self._slots = self._bytes[BOARD_HEADER_SIZE : self._texts_at]
        self._words = self._slots.cast("Q")
        self._reals = self._slots.cast("d")
        self._pool_bytes = self._bytes[POOL_AT:FAILURES_AT]
        self.pool = self._pool_bytes.cast("Q")
        """The words of the pool (`PoolWord`), then two words per second: the second and a count."""
        self._views: dict[int, memoryview] = {}
        self._real_views: dict[int, memoryview[float]] = {}

    @classmethod
    def create(cls, slots: int, name: str, now: int) -> tuple[int, Scoreboard]:
        """Return a memfd and a new scoreboard on it, for `slots` workers. `now` is the monotonic time in ns."""
        fd = descriptors.fixed_memfd(MEMFD, board_size(slots))
        try:
            board = cls(mmap.mmap(fd, board_size(slots)), slots)
        except BaseException:
            os.close(fd)
            raise
        _HEAD.pack_into(board._map, 0, MAGIC, VERSION, slots, os.getpid(), now)
        board._write_text(_HEAD.size, NAME_SIZE, name)
        return fd, board

    @classmethod
    def attach(cls, fd: int, *, writable: bool = True, max_slots: int = MAX_SLOTS) -> Scoreboard:
        """Return the scoreboard on a memfd that another process made. The caller keeps the descriptor.

        Args:
            writable: whether this process may write to the scoreboard.
            max_slots: a scoreboard with more slots is refused.

        Raises:
            BoardVersionError: the memfd has no scoreboard, one of another version, or one whose size can change.
        """
        _magic, version, slots, _pid, _created = _read_head(fd)
        if version != VERSION:
            raise BoardVersionError(f"a scoreboard of version {version}; this pairpool reads version {VERSION}")
        size = descriptors.fixed_size(fd)
        if size < 0:
            raise BoardVersionError("this is not a scoreboard: its size can change")
        if size != board_size(slots):
            raise BoardVersionError(f"this is not a scoreboard: {slots} workers do not fit into its {size} bytes")
        if slots > max_slots:
            raise BoardVersionError(f"a scoreboard for {slots} workers; more than {max_slots} are not shown")
        access = mmap.ACCESS_DEFAULT if writable else mmap.ACCESS_READ
        return cls(mmap.mmap(fd, board_size(slots), access=access), slots)

    def remains(self) -> Scoreboard:
        """Return a private copy without the workers: what remains of a pool that has ended."""
        return Scoreboard(bytearray(self._bytes[:BOARD_HEADER_SIZE]), 0)

    def slot(self, number: int) -> Slot:
        """Return slot `number`. Its view is valid until `close`."""
        view = self._views.get(number)
        if view is None:
            view = self._views[number] = self._words[number * SLOT_WORDS : (number + 1) * SLOT_WORDS]
        return Slot(view)

    def reals(self, number: int) -> memoryview[float]:
        """Return slot `number` as doubles, with the same indices; valid until `close`."""
        view = self._real_views.get(number)
        if view is None:
            view = self._real_views[number] = self._reals[number * SLOT_WORDS : (number + 1) * SLOT_WORDS]
        return view

    @property
    def own(self) -> Scoreboard:
        """The scoreboard with the words that the master writes: this one, except in the master."""
        return self

    def head(self, size: int) -> bytes:
        """Return the first bytes."""
        return bytes(self._bytes[:size])

    def write_head(self, head: bytes) -> None:
        """Replace the first bytes."""
        self._bytes[: len(head)] = head

    @property
    def name(self) -> str:
        return self._read_text(_HEAD.size, NAME_SIZE)

    @property
    def pid(self) -> int:
        return int(_HEAD.unpack_from(self._map)[3])

    @property
    def created(self) -> int:
        return int(_HEAD.unpack_from(self._map)[4])

    # --- texts ----------------------------------------------------------------------------------

    def name_function(self, number: int, name: str) -> None:
        """Store the name of function `number`. If there are too many names, the oldest is overwritten."""
        self._write_text(NAMES_AT + number % NAMES * NAME_SIZE, NAME_SIZE, name)

    def function_name(self, number: int) -> str:
        return self._read_text(NAMES_AT + number % NAMES * NAME_SIZE, NAME_SIZE)

    def show_argument(self, number: int, batch: int, item: int, text: str) -> None:
        """Store the argument of the item that worker `number` runs."""
        words = self.slot(number).words
        words[Word.SHOWN_BATCH] = 0  # no batch has this number, so readers ignore the text while it changes
        self._write_text(self._texts_at + number * TEXT_SIZE, ARGUMENT_SIZE, text)
        words[Word.SHOWN_ITEM] = item
        words[Word.SHOWN_BATCH] = batch

    def argument(self, number: int) -> str:
        return self._read_text(self._texts_at + number * TEXT_SIZE, ARGUMENT_SIZE)

    def write_note(self, number: int, text: str) -> None:
        self._write_text(self._texts_at + number * TEXT_SIZE + ARGUMENT_SIZE, TEXT_SIZE - ARGUMENT_SIZE, text)

    def note(self, number: int) -> str:
        return self._read_text(self._texts_at + number * TEXT_SIZE + ARGUMENT_SIZE, TEXT_SIZE - ARGUMENT_SIZE)

    def _write_text(self, at: int, size: int, text: str) -> None:
        data = text.encode("utf-8", "replace")
        if len(data) >= size:
            data = data[: size - 1].decode("utf-8", "ignore").encode()  # without a part of a character
        self._bytes[at : at + size] = data.ljust(size, b"\0")

    def _read_text(self, at: int, size: int) -> str:
        return bytes(self._bytes[at : at + size]).split(b"\0", 1)[0].decode("utf-8", "replace")

    # --- counts of the master -------------------------------------------------------------------

    def begin_second(self, second: int) -> int:
        """Begin to count the items that end in a second of the monotonic clock; return the index of the count."""
        at = POOL_WORDS + second % SECONDS * 2
        self.pool[at + 1] = 0
        self.pool[at] = second
        return at + 1

    def seconds(self, first: int, last: int) -> list[int]:
        """Return how many items ended in each second from `first` to `last - 1`; at most `SECONDS` numbers."""
        row = self.pool[POOL_WORDS : POOL_WORDS + SECONDS * 2].tolist()
        places = [second % SECONDS * 2 for second in range(first, last)]
        return [row[at + 1] if row[at] == first + offset else 0 for offset, at in enumerate(places)]

    def write_calls(self, records: list[CallRecord]) -> None:
        """Store up to `CALLS` calls that have not ended."""
        for place, record in enumerate(records[:CALLS]):
            _CALL_RECORD.pack_into(self._map, CALLS_AT + place * _CALL_RECORD.size, *record, 0)
        self.pool[PoolWord.LISTED] = min(len(records), CALLS)

    def calls(self) -> list[CallRecord]:
        listed = min(self.pool[PoolWord.LISTED], CALLS)
        return [
            CallRecord(*_CALL_RECORD.unpack_from(self._map, CALLS_AT + place * _CALL_RECORD.size)[:7])
            for place in range(listed)
        ]

    def add_failure(self, record: FailureRecord) -> None:
        """Store a failure in place of the oldest."""
        count = self.pool[PoolWord.FAILURES]
        at = FAILURES_AT + count % FAILURES * FAILURE_SIZE
        _FAILURE.pack_into(self._map, at, record.when, record.worker, record.item, 0, 0)
        self._write_text(at + _FAILURE.size, NAME_SIZE, record.function)
        self._write_text(at + _FAILURE.size + NAME_SIZE, FAILURE_SIZE - _FAILURE.size - NAME_SIZE, record.error)
        self.pool[PoolWord.FAILURES] = count + 1

    def failures(self) -> list[FailureRecord]:
        """Return the stored failures, the latest first."""
        count = self.pool[PoolWord.FAILURES]
        found = []
        for number in range(count - 1, max(-1, count - FAILURES - 1), -1):
            at = FAILURES_AT + number % FAILURES * FAILURE_SIZE
            when, worker, item, _, _ = _FAILURE.unpack_from(self._map, at)
            function = self._read_text(at + _FAILURE.size, NAME_SIZE)
            error = self._read_text(at + _FAILURE.size + NAME_SIZE, FAILURE_SIZE - _FAILURE.size - NAME_SIZE)
            found.append(FailureRecord(when, worker, item, function, error))
        return found

    def close(self) -> None:
        """Unmap the memory. Slots must not be used afterwards."""
        views: list[memoryview[Any]] = [*self._views.values(), *self._real_views.values()]
        views += [self.pool, self._pool_bytes, self._words, self._reals, self._slots, self._bytes]
        for view in views:
            view.release()
        self._views.clear()
        self._real_views.clear()
        if isinstance(self._map, mmap.mmap):
            self._map.close()


def owner_of(fd: int) -> int:
    """Return the pid of the process that made the scoreboard on a memfd, whatever version it has.

    Raise `BoardVersionError` if the memfd has no scoreboard.
    """
    return int(_read_head(fd)[3])


def _read_head(fd: int) -> tuple[Any, ...]:
    head = os.pread(fd, _HEAD.size, 0)
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise BoardVersionError("this is not a pairpool scoreboard")
    return _HEAD.unpack(head)


def board_size(slots: int) -> int:
    """Return the number of bytes of a scoreboard."""
    return BOARD_HEADER_SIZE + slots * (SLOT_SIZE + TEXT_SIZE)
