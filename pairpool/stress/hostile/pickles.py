"""Payloads that cannot be unpickled, or not as what they should be. None of them runs code where it is unpickled."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from pairpool.stress.hostile.dice import Dice

__all__ = ["BROKEN_PICKLES", "FORGED", "broken_failures", "broken_table", "values_of"]

FORGED = -1
"""The value of an item whose result an attack has forged."""


def values_of(count: int) -> bytes:
    """Return the pickled values of `count` items."""
    return pickle.dumps([FORGED] * min(count, 10_000), 5)


def _truncated(dice: Dice) -> bytes:
    whole = pickle.dumps([{"key": [1, 2.0, "text", b"bytes", None]} for _ in range(20)], 5)
    return whole[: dice.below(len(whole))]


def _mutated(dice: Dice) -> bytes:
    whole = bytearray(pickle.dumps([1, "two", [3.0, None], {"four": b"5"}, (6, 7)], 5))
    for _ in range(1 + dice.below(4)):
        whole[dice.below(len(whole))] = dice.below(256)
    return _harmless(bytes(whole))


def _random(dice: Dice) -> bytes:
    return _harmless(b"\x80\x05" + dice.data(1 + dice.below(200)))


def _harmless(pickled: bytes) -> bytes:
    """Return a pickle without the opcodes that import names or call them, and without those that fill memory.

    A pickle that runs code needs an opcode such as GLOBAL. PUT and LONG_BINPUT let the unpickler reserve a table of any
    size.
    """
    return pickled.translate(_HARMLESS)


_FORBIDDEN = b"cipr\x82\x83\x84\x93\x96"
_HARMLESS = bytes(ord("N") if code in _FORBIDDEN else code for code in range(256))


def _huge_length(dice: Dice) -> bytes:
    size = dice.pick((1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1))
    opcode = dice.pick((b"\x8d", b"\x8e", b"\x95"))  # BINUNICODE8, BINBYTES8, FRAME
    return b"\x80\x05" + opcode + struct.pack("<Q", size) + b"abc."


def _deep(dice: Dice) -> bytes:
    depth = dice.pick((100, 1000, 20_000))
    return b"\x80\x05" + b"(" * dice.below(2) + b"]" * depth + b"a" * (depth - 1) + b"."


def _deep_list(dice: Dice) -> bytes:
    """A list of one item that is nested deeply."""
    return b"\x80\x05]" + _deep(dice)[2:-1] + b"a."


def _recursive(_dice: Dice) -> bytes:
    return b"\x80\x05]\x94h\x00a."  # a list that contains itself


def _no_name(dice: Dice) -> bytes:
    name = dice.pick((b"nowhere\nnothing\n", b"builtins\nno_such_name\n", b"\xff\xfe\n\xff\n", b"pairpool\n\n"))
    return b"\x80\x05c" + name + b"."


def _wrong_protocol(dice: Dice) -> bytes:
    return bytes((0x80, dice.pick((6, 7, 100, 255)))) + b"]."


def _persistent(_dice: Dice) -> bytes:
    return b"\x80\x05K\x00Q."  # BINPERSID: names a large object, and there is none


def _out_of_band(_dice: Dice) -> bytes:
    return b"\x80\x05]\x97a."  # NEXT_BUFFER: there is no buffer


def _empty_stack(dice: Dice) -> bytes:
    return b"\x80\x05" + dice.pick((b".", b"a.", b"(.", b"0.", b"s.", b"u.", b"t.", b"b.", b"R.", b"\x91."))


BROKEN_PICKLES: tuple[Callable[[Dice], bytes], ...] = (
    _truncated, _mutated, _random, _huge_length, _deep, _deep_list, _recursive, _no_name, _wrong_protocol, _persistent,
    _out_of_band, _empty_stack,
)  # fmt: skip


def broken_table(dice: Dice, count: int) -> bytes:
    """Return a payload of the format EACH whose table does not fit, or does not match the number of items."""
    one = pickle.dumps(FORGED, 5)
    edges = (0, 1, len(one), len(one) + 1, 1 << 20, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)
    rows = dice.pick((0, 1, count, count - 1, count + 1))
    table: list[int] = []
    for _ in range(max(0, rows)):
        is_odd = dice.one_in(2)
        table += [dice.pick(edges) if is_odd else len(one), dice.pick(edges) if dice.one_in(4) else 0]
    words = dice.pick((len(table), len(table), len(table), *edges))
    payload = struct.pack(f"<{len(table) + 1}Q", words, *table) + one * max(0, rows)
    cut = dice.below(4)
    return payload if cut else payload[: dice.below(len(payload))]


def broken_failures(dice: Dice, count: int) -> bytes:
    """Return a pickled list of failures that is wrong in one way."""
    right: tuple[Any, ...] = (dice.below(max(1, count)), 0, None, "ValueError", "text", "traceback", None)
    offset = dice.pick((-1, count, count + 1, 1 << 40, -(1 << 40), "0", None, 0.5, (), True))
    place = dice.below(len(right))
    odd: Any = dice.pick((None, -1, 99, "x" * 5000, b"\xff", [], {}, 1 << 70, "\x1b]0;title\x07", ("a",)))
    many = [(number % max(1, count), *right[1:]) for number in range(2000)]
    options: tuple[Any, ...] = (
        [(offset, *right[1:])], [(*right[:place], odd, *right[place + 1 :])], [right[:4]], [right + right], many,
        [], None, 7, "text", {1: right}, [7], [None], [(right[0], 0, dice.pick(BROKEN_PICKLES)(dice), *right[3:])],
        [(right[0], 0, pickle.dumps(dice.pick((1, [], None, "no exception"))), *right[3:])],
    )  # fmt: skip
    pickled = pickle.dumps(dice.pick(options), 5)
    return pickled if dice.below(8) else dice.pick(BROKEN_PICKLES)(dice)
