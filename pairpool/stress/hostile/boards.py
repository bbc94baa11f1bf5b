"""Scribbles on the shared memory that a worker can write to."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable

from pairpool.scoreboard.board import SLOT_WORDS
from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.packets import EDGES
from pairpool.stress.hostile.reach import Reach, memfds_of
from pairpool.stress.hostile.record import MASTER
from pairpool.transport.payload_shm import RECLAIM_OFFSET

__all__ = ["OTHERS", "SCRIBBLES"]

Scribble = Callable[[Dice, Reach], None]

_BOARD_WORD = struct.Struct("<Q")
_ALL_SEALS = (
    fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL,
    getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x10),
)  # fmt: skip


def _value(dice: Dice, reach: Reach) -> int:
    near = (reach.batch, reach.batch + 1, reach.first, reach.first + 1, max(0, reach.first - 1), reach.first + 5)
    return dice.pick((*EDGES, 4, 5, 6, 7, 8, 9, *near, dice.bits())) & EDGES[-1]


def _own_words(dice: Dice, reach: Reach) -> None:
    """Write to the worker's own slot, which the master reads."""
    for _ in range(dice.pick((1, 1, 1, 3, SLOT_WORDS))):
        reach.words[dice.below(SLOT_WORDS)] = _value(dice, reach)


def _any_words(dice: Dice, reach: Reach) -> None:
    """Write to any words: those of other workers, of the pool, the header, and the texts."""
    words = reach.board.nbytes // 8
    for _ in range(dice.pick((1, 3, 20, 200))):
        _BOARD_WORD.pack_into(reach.board, 8 * dice.below(words), _value(dice, reach))


def _begin(dice: Dice, reach: Reach) -> None:
    """Write to the words at the beginning: the header and the words of the pool."""
    words = min(reach.board.nbytes // 8, 64)
    for _ in range(dice.pick((1, 5, 20))):
        _BOARD_WORD.pack_into(reach.board, 8 * dice.below(words), _value(dice, reach))


def _neighbours(dice: Dice, reach: Reach) -> None:
    """Write the same word of every slot, such as the limit or the pid."""
    word, value = dice.below(SLOT_WORDS), _value(dice, reach)
    end = reach.board.nbytes - reach.board.nbytes % 8
    for at in range(8 * word, end, 8 * SLOT_WORDS):
        _BOARD_WORD.pack_into(reach.board, at, value)


def _noise(dice: Dice, reach: Reach) -> None:
    """Write random bytes to a stretch of memory: no valid text is left there."""
    size = min(dice.pick((8, 64, 4096)), reach.board.nbytes)
    at = dice.below(reach.board.nbytes - size + 1)
    reach.board[at : at + size] = dice.data(size)


def _erase(_dice: Dice, reach: Reach) -> None:
    reach.board[:] = bytes(reach.board.nbytes)


def _punch(dice: Dice, reach: Reach) -> None:
    """Free the pages of the mapping, which then read as zeros."""
    mapped = reach.board.obj
    if isinstance(mapped, mmap.mmap):
        try:
            mapped.madvise(dice.pick((mmap.MADV_REMOVE, mmap.MADV_DONTNEED)))
        except OSError:
            pass  # the mapping is not shared, or sealed


def _resize(dice: Dice, _reach: Reach) -> None:
    """Make memfds of this process and of its master longer or shorter, and seal them."""
    paths = memfds_of("self") + memfds_of(os.environ[MASTER])
    if not paths:
        return
    path = dice.pick(paths)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # it was closed meanwhile
    try:
        if dice.one_in(3):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, dice.pick(_ALL_SEALS))
        else:
            os.ftruncate(fd, dice.pick((0, 1, 4096, os.fstat(fd).st_size // 2, 2 * os.fstat(fd).st_size)))
    except OSError:
        pass  # refused, as it should be
    finally:
        os.close(fd)


def _keep_buffers(dice: Dice, reach: Reach) -> None:
    """Tell the master that a payload buffer is in use, or that its memory is about to be freed, for ever."""
    for buffer in reach.buffers:
        _BOARD_WORD.pack_into(buffer, dice.pick((0, RECLAIM_OFFSET)), dice.pick((1, EDGES[-1])))


SCRIBBLES: dict[str, tuple[Scribble, int]] = {
    "own words": (_own_words, 10),
    "any words": (_any_words, 6),
    "header": (_begin, 4),
    "one word of all": (_neighbours, 6),
    "random bytes": (_noise, 4),
    "zeros": (_erase, 1),
    "pages": (_punch, 2),
    "size and seals": (_resize, 3),
    "buffers": (_keep_buffers, 3),
}
"""Each way to scribble with its weight."""

OTHERS = frozenset({"any words", "header", "one word of all", "random bytes", "zeros", "pages", "size and seals"})
"""Those that write to memory which belongs to other workers or to the master."""
