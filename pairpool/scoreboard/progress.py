"""`pairpool.progress`: what a task tells about itself, stored on the status board without a message."""

from __future__ import annotations

from pairpool.scoreboard.board import Scoreboard, Word

__all__ = ["become_reporter", "progress"]

_BATCH, _ITEM, _TOTAL, _PROGRESS = Word.BATCH, Word.ITEM, Word.TOTAL, Word.PROGRESS
_TOLD_BATCH, _TOLD_ITEM = Word.TOLD_BATCH, Word.TOLD_ITEM


class Reporter:
    """A worker's pen on the board.

    Args:
        number: its slot.
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
            words[_TOLD_BATCH] = 0  # no batch has this number: what another item told is nobody's any more
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
    """In a worker: what its tasks tell goes to this slot."""
    global _reporter
    _reporter = Reporter(board, number)


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Tell how far the running task is, for the live view, `pairpool top` and `Pool.status`.

    Cheap enough for a tight loop (some tenths of a microsecond), and nothing outside of a worker.

    Args:
        done: how much is done, in any unit.
        total: how much there is in all; None leaves what this task told before, or unknown.
        note: a short text beside it (what is longer than 127 bytes is cut).

    Raises:
        TypeError: `done` or `total` is no number.

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
