"""Texts for narrow places: each on one line, within its number of cells."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pairpool.view.text import Glyphs, clean, count, fit, passable, percent, rate, seconds, size

UNICODE, ASCII = Glyphs(), Glyphs(ascii=True)

HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b[]\n\t\r\x9b\u202e\u200d\u0301\ud83d字😀é⠿❤\ufe0f")), max_size=40
)


@given(HOSTILE, st.integers(-2, 30), st.booleans(), st.sampled_from([UNICODE, ASCII]))
def test_what_is_fitted_has_exactly_that_width(text: str, width: int, right: bool, glyphs: Glyphs) -> None:
    fitted = fit(clean(text), width, glyphs, right=right)
    assert cell_len(fitted) == max(0, width)
    assert fitted.isprintable()


@given(HOSTILE)
def test_cleaned_texts_are_printable(text: str) -> None:
    assert clean(text).isprintable()
    assert len(clean(text)) == len(text)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("abc", 5, "abc  "),
        ("字字字", 6, "字字字"),
        ("字字字", 5, "字字…"),
        ("字字字", 4, "字 …"),
        ("a", 0, ""),
        ("ab", 1, "…"),
    ],
)
def test_cut_texts_say_so(text: str, width: int, expected: str) -> None:
    assert fit(text, width, UNICODE) == expected


def test_right() -> None:
    assert fit("abc", 5, UNICODE, right=True) == "  abc"
    assert fit("abc", 2, ASCII, right=True) == "a~"


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0.00s"),
        (0.1234, "0.12s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (10, "10s"),
        (59.4, "59s"),
        (59.6, "1:00"),
        (65, "1:05"),
        (3599, "59:59"),
        (3600, "1h00"),
        (47 * 3600 + 59 * 60, "47h59"),
        (48 * 3600, "2d00h"),
        (400 * 86400, "400d"),
    ],
)
def test_seconds(value: float, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (99_999, "99,999"),
        (123_400, "123.4k"),
        (999_949, "999.9k"),
        (999_951, "1M"),
        (12_350_000, "12.35M"),
        (1_234_567_890, "1.235G"),
    ],
)
def test_counts(value: int, expected: str) -> None:
    assert count(value) == expected


@given(st.integers(0, 10**30))
def test_counts_have_at_most_seven_cells(value: int) -> None:
    assert len(count(value)) <= 7


@given(st.floats(0, 1e9))
def test_durations_have_at_most_six_cells(value: float) -> None:
    assert len(seconds(value)) <= 6


@given(st.integers(0, 2**56))
def test_sizes_have_at_most_six_cells(value: int) -> None:
    assert len(size(value)) <= 6


@given(st.floats())
def test_no_float_is_too_odd(value: float) -> None:
    assert seconds(value)
    assert rate(value)
    assert percent(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0/s"), (0.25, "0.25/s"), (12.34, "12.3/s"), (1234, "1,234/s"), (1_234_567, "1.235M/s")]
)
def test_rates(value: float, expected: str) -> None:
    assert rate(value) == expected


def test_rates_between_the_words() -> None:
    assert rate(99.96) == "100/s"
    assert percent(9.94) == "9.9%"
    assert percent(9.96) == "10%"
    assert percent(0.04) == "0%"


# --- bars and sparklines ------------------------------------------------------------------------------


@given(st.floats(), st.integers(0, 40), st.sampled_from([UNICODE, ASCII]))
def test_bars_are_as_wide_as_they_should_be(share: float, width: int, glyphs: Glyphs) -> None:
    done, rest = glyphs.bar(share, width)
    assert cell_len(done + rest) == width


@pytest.mark.parametrize(("share", "done"), [(0, ""), (0.5, "━━"), (0.6, "━━╾"), (1, "━━━━"), (2, "━━━━"), (-1, "")])
def test_bars(share: float, done: str) -> None:
    assert UNICODE.bar(share, 4)[0] == done


def test_bars_of_no_number_are_empty() -> None:
    assert ASCII.bar(math.nan, 4) == ("", "----")
    assert ASCII.bar(math.inf, 4) == ("####", "")


def test_sparklines_show_all_that_is_not_zero() -> None:
    assert UNICODE.sparkline((0, 1, 1000, 500), 10) == " ▁█▄"
    assert UNICODE.sparkline((0, 1, 1000, 500), 2) == "█▄"
    assert UNICODE.sparkline((0, 0), 10) == "  "
    assert UNICODE.sparkline((1, 2), 0) == UNICODE.sparkline((), 5) == ""


# --- what is passed on to a terminal ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext", "plain\ttext"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m"),
        ("\x1b[38:2::1:2:3mx", "\x1b[38:2::1:2:3mx\x1b[0m"),
        ("\x1b[2J\x1b[Hhome", "home"),
        ("\x1bcreset", "reset"),
        ("\x1b7\x1b8saved", "saved"),
        ("\x1b(0charset\x0e", "charset"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0~\x1b\\sixel", "sixel"),
        ("\x1b[?25lcursor", "cursor"),
        ("bell\x07 back\x08 \x9b31m \x85 \x00", "bell back 31m  "),
        ("cut\x1b", "cut"),
        ("cut\x1b[12", "cut12"),
        ("\x1b\x1b[31mx", "\x1b[31mx\x1b[0m"),
    ],
)
def test_only_colours_pass(text: str, expected: str) -> None:
    assert passable(text, colours=True) == expected


@given(HOSTILE, st.booleans())
def test_nothing_else_passes(text: str, colours: bool) -> None:
    passed = passable(text, colours)
    if colours:
        passed = re.sub(r"\x1b\[[0-9;:]*m", "", passed)
    assert not [char for char in passed if (char < " " and char != "\t") or "\x7f" <= char <= "\x9f"]
