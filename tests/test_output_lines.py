"""Test that bytes become the same lines, whatever pieces they arrive in."""

from __future__ import annotations

import random

import pytest

from pairpool.output_lines import LINE_BYTES, LineCutter


def cut(*pieces: bytes) -> list[str]:
    """Return all lines of a stream that arrives in these pieces and ends."""
    cutter = LineCutter()
    return [line for piece in pieces for line in cutter.feed(piece)] + cutter.flush()


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\n\n\ntwo", ["one", "", "", "two"]),
        (b"  indented \n", ["  indented "]),
        (b"windows\r\nunix\n", ["windows", "unix"]),
        (b"10%\r20%\r30%\n", ["30%"]),
        (b"\r10%\r20%\r", ["20%"]),
        (b"100%\r\r\n", ["100%"]),
        (b"bar 50%\r        \rdone\n", ["done"]),
        (b"bar 50%\r        \r", []),
        (b"\r\r\r", []),
        (b"   ", ["   "]),
        (b"a\x00b\x1b[31mred\n", ["a\0b\x1b[31mred"]),
        ("grün €\n".encode(), ["grün €"]),
        (b"\xff\xfe junk \x80\n", ["\ufffd\ufffd junk \ufffd"]),
        (b"a\x0bb\x0cc\x1cd\xc2\x85e\n", ["a\x0bb\x0cc\x1cd\x85e"]),
    ],
)
def test_lines_of_a_stream(written: bytes, lines: list[str]) -> None:
    assert cut(written) == lines
    assert cut(*(written[at : at + 1] for at in range(len(written)))) == lines


def test_lines_do_not_depend_on_the_pieces() -> None:
    rng = random.Random(5)
    written = b"".join(rng.choice([b"abc", b"\n", b"\r", "ä€🎉".encode(), b" ", b"xyz" * 9]) for _ in range(3000))
    whole = cut(written)
    for _round in range(20):
        places = sorted(rng.sample(range(len(written)), 40))
        assert cut(*(written[a:b] for a, b in zip([0, *places], [*places, len(written)], strict=True))) == whole


@pytest.mark.parametrize("size", [LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1, 5 * LINE_BYTES + 7])
def test_a_long_line_is_cut_and_nothing_is_lost(size: int) -> None:
    lines = cut(b"x" * size + b"\nnext\n")
    assert "".join(lines[:-1]) == "x" * size
    assert len(lines) == -(-size // LINE_BYTES) + 1
    assert lines[-1] == "next"


@pytest.mark.parametrize("offset", range(5))
def test_no_character_is_cut_in_two(offset: int) -> None:
    text = "x" * offset + "🎉" * 50_000
    lines = cut(text.encode() + b"\n")
    assert "".join(lines) == text
    assert len(lines) > 1


def test_the_memory_for_an_unfinished_line_is_bounded() -> None:
    cutter = LineCutter()
    for number in range(10_000):
        assert cutter.feed(b"\r%d %% of it %s" % (number, b"#" * 100)) == []
    assert len(cutter._rest) < 200
    for _round in range(100):
        cutter.feed(b"\xff" * 10_000)
        assert len(cutter._rest) <= LINE_BYTES
