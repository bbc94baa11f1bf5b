"""The status board: one memfd of fixed-size slots that workers write and everybody reads, without a message.

    header (HEADER_SIZE bytes): magic, version, slots, pid, created, pool name, names of functions
    slot 0..n-1 (SLOT_WORDS words of 8 bytes): see `Word`

Every field of a slot is one aligned 8-byte word with one writer, so a reader sees an old or a new value and never a
mix; on x86 and Arm, plain aligned stores of this size are single. There are no locks, and none are needed.
"""

from __future__ import annotations

import mmap
import os
import struct

from pairpool import kernel

__all__ = ["Board", "Slot", "State", "Word", "BoardVersionError"]

MAGIC = b"PAIRPOOL"
VERSION = 1
HEADER_SIZE = 32 * 1024
NAME_SIZE = 96
NAMES_AT = 512
NAMES = (HEADER_SIZE - NAMES_AT) // NAME_SIZE
SLOT_WORDS = 32
SLOT_SIZE = SLOT_WORDS * 8
_HEAD = struct.Struct("<8sQQQQ")

NOTHING = (1 << 64) - 1
"""An index that no item has: in `Word.ITEM` between items, in `Word.LIMIT` where no limit is set."""


class BoardVersionError(ValueError):
    """The memory is not a status board, or one of another version of pairpool."""


class Word:
    """The fields of a slot, as indices of 8-byte words. All but LIMIT and REPLACED are written by the worker."""

    STATE = 0
    PID = 1
    FUNCTION = 2  # number of the function of the current batch
    BATCH = 3  # number of the current batch
    FIRST = 4  # index of its first item
    COUNT = 5  # its items
    ITEM = 6  # index of the running item, within its call
    LIMIT = 7  # the worker stops before the item with this index (written by the master)
    STARTED = 8  # monotonic ns, of the batch or of the item where items are long
    DONE = 9  # items finished since the worker began, failed ones included
    FAILED = 10
    PROGRESS = 11
    TOTAL = 12
    RSS = 13
    BORN = 14  # monotonic ns
    REPLACED = 15  # how many workers had this slot before (written by the master)
    BOUND = 17  # the worker begins items before this index whatever LIMIT says; 0 where it looks at LIMIT each time
    SIZE = 16  # items of the current batch that are in the same unit (see COUNT)


class State:
    """What a worker is doing, in `Word.STATE`."""

    EMPTY = 0
    STARTING = 1
    IDLE = 2
    LOADING = 3  # unpickling the items of a batch, or one of them
    RUNNING = 4
    SAVING = 5  # pickling results
    FUNCTION = 6  # unpickling a function, whose number is in FUNCTION
    SENDING = 7

    NAMES = ("empty", "starting", "idle", "loading", "running", "saving", "loading", "sending")


class Slot:
    """One worker's part of the board, as a view of words: `slot.words[Word.ITEM] = 3`."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview) -> None:
        self.words = words

    def clear(self) -> None:
        replaced = self.words[Word.REPLACED]
        for index in range(SLOT_WORDS):
            self.words[index] = 0
        self.words[Word.REPLACED] = replaced
        self.words[Word.ITEM] = NOTHING
        self.words[Word.LIMIT] = NOTHING


class Board:
    """The whole board, mapped into this process.

    Args:
        fd: the memfd; the board does not own it.
        slots: how many workers fit.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.slots = slots
        self._map = mmap.mmap(fd, HEADER_SIZE + slots * SLOT_SIZE)
        self._bytes = memoryview(self._map)
        self._words = self._bytes[HEADER_SIZE:].cast("Q")
        self._views: dict[int, memoryview] = {}

    @classmethod
    def create(cls, slots: int, name: str, now: int) -> tuple[int, Board]:
        """A new board and its memfd: `slots` workers, a pool's name, and the monotonic time in ns."""
        fd = kernel.memfd("pairpool-board", HEADER_SIZE + slots * SLOT_SIZE)
        try:
            board = cls(fd, slots)
        except BaseException:
            os.close(fd)
            raise
        _HEAD.pack_into(board._map, 0, MAGIC, VERSION, slots, os.getpid(), now)
        board._write_name(_HEAD.size, name)
        return fd, board

    @classmethod
    def attach(cls, fd: int) -> Board:
        """The board behind a memfd that another process made. Raises `BoardVersionError` if it is none."""
        head = os.pread(fd, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            raise BoardVersionError("this is not a pairpool status board")
        _magic, version, slots, _pid, _created = _HEAD.unpack(head)
        if version != VERSION:
            raise BoardVersionError(f"a status board of version {version}; this pairpool reads version {VERSION}")
        if os.fstat(fd).st_size < HEADER_SIZE + slots * SLOT_SIZE:
            raise BoardVersionError("this status board is shorter than it says")
        return cls(fd, slots)

    def slot(self, number: int) -> Slot:
        """Slot `number`; the view is good until `close`."""
        view = self._views.get(number)
        if view is None:
            view = self._views[number] = self._words[number * SLOT_WORDS : (number + 1) * SLOT_WORDS]
        return Slot(view)

    @property
    def name(self) -> str:
        return self._read_name(_HEAD.size)

    @property
    def pid(self) -> int:
        return int(_HEAD.unpack_from(self._map)[3])

    @property
    def created(self) -> int:
        return int(_HEAD.unpack_from(self._map)[4])

    def name_function(self, number: int, name: str) -> None:
        """Write down what function `number` is called; the oldest of many names is overwritten."""
        self._write_name(NAMES_AT + number % NAMES * NAME_SIZE, name)

    def function_name(self, number: int) -> str:
        return self._read_name(NAMES_AT + number % NAMES * NAME_SIZE)

    def _write_name(self, at: int, name: str) -> None:
        data = name.encode("utf-8", "replace")[: NAME_SIZE - 1]
        self._bytes[at : at + NAME_SIZE] = data.ljust(NAME_SIZE, b"\0")

    def _read_name(self, at: int) -> str:
        return bytes(self._bytes[at : at + NAME_SIZE]).split(b"\0", 1)[0].decode("utf-8", "replace")

    def close(self) -> None:
        """Unmap; slots handed out must not be used any more."""
        for view in self._views.values():
            view.release()
        self._views.clear()
        self._words.release()
        self._bytes.release()
        self._map.close()
