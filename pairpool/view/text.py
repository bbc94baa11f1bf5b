"""Texts for narrow places: the user's own words on one line, cut to a number of cells; numbers as people read them."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from rich.cells import cell_len, set_cell_size

from pairpool.linux.memory import format_size

__all__ = [
    "Glyphs",
    "clean",
    "count",
    "fit",
    "item_name",
    "passable",
    "percent",
    "rate",
    "seconds",
    "share_text",
    "size",
]


class Glyphs:
    """The signs that pictures are made of.

    Args:
        ascii: only those that every terminal has.
    """

    def __init__(self, ascii: bool = False) -> None:
        self.ascii = ascii
        self.more = "~" if ascii else "…"
        self.full, self.rest = ("#", "-") if ascii else ("━", "─")  # told apart without colours, too
        self.half = "" if ascii else "╾"
        self.spark = " .:-=+*#" if ascii else " ▁▂▃▄▅▆▇█"
        self.busy, self.idle, self.other = ("*", "-", "o") if ascii else ("●", "○", "◌")
        self.cross = "!" if ascii else "✗"
        self.times = "x" if ascii else "×"

    def sparkline(self, values: tuple[int, ...], width: int) -> str:
        """The last `width` values, the largest of them as the highest sign; anything above 0 is seen."""
        shown = values[-width:] if width > 0 else ()
        top = max(shown, default=0)
        if not top:
            return self.spark[0] * len(shown)
        steps = len(self.spark) - 1
        return "".join(self.spark[-(-value * steps // top)] for value in shown)

    def bar(self, share: float, width: int) -> tuple[str, str]:
        """The done and the open part of a bar of `width` cells."""
        halves = 0 if math.isnan(share) else round(max(0.0, min(1.0, share)) * width * 2)
        if self.ascii:
            halves -= halves % 2
        done = self.full * (halves // 2) + (self.half if halves % 2 else "")
        return done, self.rest * (width - len(done))


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """A text on one line: what is not printable (line breaks, tabs, escapes, marks of direction) becomes a space."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)


_CONTROL_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
)  # ECMA-48, 5.3 to 5.6; of one that is cut off, what is there
_COLOUR_SEQUENCE = re.compile(r"\x1b\[[0-9;:]*m")
_DROPPED_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\x1b"}


def passable(text: str, colours: bool) -> str:
    """A text that does nothing to a terminal but to be shown: control characters are dropped, tabs excepted.

    Args:
        colours: whether to keep the sequences that set them, and set them back at the end.
    """
    if text.isprintable():
        return text
    kept = _CONTROL_SEQUENCE.sub(
        lambda found: found[0] if colours and _COLOUR_SEQUENCE.fullmatch(found[0]) else "", text
    )
    kept = kept.translate(_DROPPED_CONTROLS)
    return f"{kept}\x1b[0m" if "\x1b" in kept else kept


def fit(text: str, width: int, glyphs: Glyphs, *, right: bool = False) -> str:
    """The text in exactly `width` cells: padded, or cut with a sign that says so."""
    if width <= 0:
        return ""
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + glyphs.more
    padding = " " * (width - cells)
    return padding + text if right else text + padding


def item_name(function: str, item: int | None, width: int, glyphs: Glyphs) -> str:
    """`function[item]` in at most `width` cells: of a long name the end is cut, for the index tells more."""
    name, index = clean(function), f"[{item}]"
    if name and cell_len(name) + len(index) > width:
        name = fit(name, max(1, width - len(index)), glyphs)
    text = name + index
    return fit(text, width, glyphs) if cell_len(text) > width else text


def seconds(value: float) -> str:
    """A duration in at most six cells: `0.12s`, `9.9s`, `1:05`, `59:59`, `3h05`, `2d01h`, `400d`; `?` of no number."""
    if not math.isfinite(value):
        return "?"
    if value < 9.95:
        return f"{value:.1f}s" if value >= 0.995 else f"{value:.2f}s"
    if value < 60:
        return f"{value:.0f}s" if value < 59.5 else "1:00"
    minutes, rest = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h" if days < 100 else f"{days}d"


def count(value: int) -> str:
    """A number of things in at most seven cells: `12,345`, `123.4k`, `12.35M`, `1.235G`."""
    if value < 100_000:
        return f"{value:,}"
    for unit, one in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if value < 999.95 * one:
            return f"{value / one:.4g}{unit}"
    return f"{value:.1e}"


def rate(value: float) -> str:
    """Things a second: `0.25/s`, `12.3/s`, `1,234/s`, `1.235M/s`; `?` of no number."""
    if not math.isfinite(value):
        return "?"
    if value < 0.005:
        return "0/s"
    if value < 100:
        return f"{value:.3g}/s"
    return f"{count(round(value))}/s"


def percent(value: float) -> str:
    """A number of per cent: `0%`, `9.5%`, `100%`."""
    return f"{value:.0f}%" if value >= 9.95 or value < 0.05 else f"{value:.1f}%"


def share_text(share: float) -> str:
    """How much is done, in per cent: `0%`, `25%`, `999%` at most; what is not all is not `100%`."""
    return f"{math.floor(max(0.0, min(9.99, share)) * 100 + 1e-9)}%"


def size(value: int) -> str:
    """Bytes in at most six cells: `512B`, `1.5K`, `12.3M`, `1.2G`."""
    text, unit = format_size(value).split(" ")
    if len(text) > 4:
        text = text.partition(".")[0]
    return text + unit[0]
