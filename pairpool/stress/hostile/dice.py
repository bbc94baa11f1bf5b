"""Random numbers of an attack: the same for the same seed, on every Python, without an import of `random`."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import shake_128
from typing import TypeVar

from pairpool.stress.plan import mix

__all__ = ["Dice"]

_T = TypeVar("_T")

WEYL = 0x9E3779B97F4A7C15
"""The step of the sequence that `mix` scrambles."""


class Dice:
    """Random numbers that depend on a seed and on a number, such as that of an attack."""

    def __init__(self, seed: int, number: int = 0) -> None:
        self._state = mix(seed) ^ mix(number + 1)

    def bits(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + WEYL) & 0xFFFF_FFFF_FFFF_FFFF
        return mix(self._state)

    def below(self, bound: int) -> int:
        """Return a number from 0 to `bound - 1`."""
        return self.bits() % bound

    def one_in(self, number: int) -> bool:
        """Return True once in `number` times."""
        return self.below(number) == 0

    def pick(self, choices: Sequence[_T]) -> _T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def data(self, size: int) -> bytes:
        """Return random bytes."""
        return shake_128(self.bits().to_bytes(8, "little")).digest(size)
