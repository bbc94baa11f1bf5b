"""Format texts for narrow places: texts of the user on one line, cut to a number of cells, and short numbers."""

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
    """The signs that pictures consist of.

    Args:
        ascii: use only ASCII signs.
    """

    def __init__(self, ascii: bool = False) -> None:
        self.ascii = ascii
        self.more = "~" if ascii else "…"
        self.full, self.rest = ("#", "-") if ascii else ("━", "─")  # they differ even without colours
        self.half = "" if ascii else "╾"
        self.spark = " .:-=+*#" if ascii else " ▁▂▃▄▅▆▇█"
        self.busy, self.idle, self.other = ("*", "-", "o") if ascii else ("●", "○", "◌")
        self.cross = "!" if ascii else "✗"
        self.times = "x" if ascii else "×"

    def sparkline(self, values: tuple[int, ...], width: int) -> str:
        """Draw the last `width` values. The largest has the highest sign, and every value above 0 is visible."""
        shown = values[-width:] if width > 0 else ()
        top = max(shown, default=0)
        if not top:
            return self.spark[0] * len(shown)
        steps = len(self.spark) - 1
        return "".join(self.spark[-(-value * steps // top)] for value in shown)

    def bar(self, share: float, width: int) -> tuple[str, str]:
        """Return the done and the open part of a bar of `width` cells."""
        halves = 0 if math.isnan(share) else round(max(0.0, min(1.0, share)) * width * 2)
        if self.ascii:
            halves -= halves % 2
        done = self.full * (halves // 2) + (self.half if halves % 2 else "")
        return done, self.rest * (width - len(done))


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Return a text on one line. Unprintable characters (line breaks, tabs, escapes, direction marks) become spaces."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)


_CONTROL_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
)  # ECMA-48, 5.3 to 5.6; also matches a sequence that is cut off
_COLOUR_SEQUENCE = re.compile(r"\x1b\[[0-9;:]*m")
_DROPPED_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\x1b"}


def passable(text: str, colours: bool) -> str:
    """Return a text that is safe to print on a terminal: without control characters except tabs.

    Args:
        text: the text of a user or a task.
        colours: whether to keep the sequences that set colours. They are reset at the end.
    """
    if text.isprintable():
        return text
    kept = _CONTROL_SEQUENCE.sub(
        lambda found: found[0] if colours and _COLOUR_SEQUENCE.fullmatch(found[0]) else "", text
    )
    kept = kept.translate(_DROPPED_CONTROLS)
    return f"{kept}\x1b[0m" if "\x1b" in kept else kept


def fit(text: str, width: int, glyphs: Glyphs, *, right: bool = False) -> str:
    """Return the text in exactly `width` cells: padded, or cut with a sign at the end."""
    if width <= 0:
        return ""
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + glyphs.more
    padding = " " * (width - cells)
    return padding + text if right else text + padding


def item_name(function: str, item: int | None, width: int, glyphs: Glyphs) -> str:
    """Return `function[item]` in at most `width` cells. A long name is cut, and the index is kept."""
    name, index = clean(function), f"[{item}]"
    if name and cell_len(name) + len(index) > width:
        name = fit(name, max(1, width - len(index)), glyphs)
    text = name + index
    return fit(text, width, glyphs) if cell_len(text) > width else text


def seconds(value: float) -> str:
    """Return a duration in at most six cells: `0.12s`, `9.9s`, `1:05`, `3h05`, `2d01h`, `400d`; `?` if not finite."""
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
    """Return a count in at most seven cells: `12,345`, `123.4k`, `12.35M`, `1.235G`."""
    if value < 100_000:
        return f"{value:,}"
    for unit, one in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if value < 999.95 * one:
            return f"{value / one:.4g}{unit}"
    return f"{value:.1e}"


def rate(value: float) -> str:
    """Return a number per second: `0.25/s`, `12.3/s`, `1,234/s`, `1.235M/s`; `?` if not finite."""
    if not math.isfinite(value):
        return "?"
    if value < 0.005:
        return "0/s"
    if value < 100:
        return f"{value:.3g}/s"
    return f"{count(round(value))}/s"


def percent(value: float) -> str:
    """Return a percentage: `0%`, `9.5%`, `100%`."""
    return f"{value:.0f}%" if value >= 9.95 or value < 0.05 else f"{value:.1f}%"


def share_text(share: float) -> str:
    """Return a share as a percentage, rounded down: `0%`, `25%`, at most `999%`. Only a complete share is `100%`."""
    return f"{math.floor(max(0.0, min(9.99, share)) * 100 + 1e-9)}%"


def size(value: int) -> str:
    """Return a number of bytes in at most six cells: `512B`, `1.5K`, `12.3M`, `1.2G`."""
    text, unit = format_size(value).split(" ")
    if len(text) > 4:
        text = text.partition(".")[0]
    return text + unit[0]
