"""`pairpool.progress`: a task stores its progress on the scoreboard, without a message."""

from __future__ import annotations

from pairpool.scoreboard.board import Scoreboard, Word

__all__ = ["become_reporter", "progress"]

_BATCH, _ITEM, _TOTAL, _PROGRESS = Word.BATCH, Word.ITEM, Word.TOTAL, Word.PROGRESS
_TOLD_BATCH, _TOLD_ITEM = Word.TOLD_BATCH, Word.TOLD_ITEM


class Reporter:
    """Writes the progress of one worker's tasks.

    Args:
        number: the slot of the worker.
    """

    __slots__ = ("_board", "_note", "_number", "_reals", "_words")

    def __init__(self, board: Scoreboard, number: int) -> None:
        self._board = board
        self._number = number
        self._words = board.slot(number).words
        self._reals = board.reals(number)
        self._note = ""

    def tell(self, done: float, total: float | None, note: str) -> None:
        """Store the progress of the item that runs."""
        words = self._words
        batch, item = words[_BATCH], words[_ITEM]
        if words[_TOLD_ITEM] != item or words[_TOLD_BATCH] != batch:
            words[_TOLD_BATCH] = 0  # no batch has this number, so readers ignore the values of the item before
            words[_TOTAL] = 0
        if total is not None:
            self._reals[_TOTAL] = total
        self._reals[_PROGRESS] = done
        if note != self._note:
            self._board.write_note(self._number, note)
            self._note = note
        words[_TOLD_ITEM] = item
        words[_TOLD_BATCH] = batch


_reporter: Reporter | None = None


def become_reporter(board: Scoreboard, number: int) -> None:
    """In a worker, store the progress of its tasks in this slot."""
    global _reporter
    _reporter = Reporter(board, number)


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Report the progress of the running task to the live view, `pairpool top` and `Pool.status`.

    A call takes some tenths of a microsecond, so it is cheap enough for a tight loop. Outside a worker it does nothing.

    Args:
        done: the amount that is done, in any unit.
        total: the total amount. None keeps the total that this task reported before; without one, it is unknown.
        note: a short text. It is cut after 127 bytes.

    Raises:
        TypeError: `done` or `total` is not a number.

    Example:
        >>> def count_words(lines):
        ...     total = 0
        ...     for number, line in enumerate(lines):
        ...         pairpool.progress(number, len(lines))
        ...         total += len(line.split())
        ...     return total
    """
    if _reporter is not None:
        _reporter.tell(done, total, note)
