"""Questions that a thread puts to the leader: the answer, or the exception of the question, goes to that thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pairpool.linux.interrupts import is_own

__all__ = ["Question"]

T = TypeVar("T")


class Question(Generic[T]):
    """An action for the leader whose result another thread waits for.

    Args:
        ask: runs in the leader.

    Attributes:
        is_answered: whether `ask` has returned or raised.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answers: list[T] = []
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """Answer the question. An exception of the question does not end the turn of the leader."""
        try:
            self._answers.append(self._ask())
        except BaseException as error:
            if not is_own(error):
                raise
            self._error = error

    @property
    def is_answered(self) -> bool:
        return bool(self._answers) or self._error is not None

    def answer(self) -> T:
        """Return the answer, or raise the exception of the question. It must be answered."""
        if self._error is not None:
            raise self._error
        return self._answers[0]
