"""A frame: lines of styled words, each exactly as wide as it says, that rich draws without laying them out again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

__all__ = ["Frame", "Line", "Words", "cells", "joined"]

Words = tuple[str, Style | None]
"""A text without line breaks, and how it looks."""

Line = list[Words]


class Frame:
    """Lines for a terminal; wider ones are cut.

    Args:
        lines: each a list of words.
        width: cells.
    """

    def __init__(self, lines: Sequence[Line], width: int) -> None:
        self.lines = [_stripped(_cut(line, width)) for line in lines]
        self.width = width

    @property
    def text(self) -> str:
        """The frame without styles."""
        return "\n".join("".join(words for words, _style in line) for line in self.lines)

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        newline = Segment.line()
        for line in self.lines:
            for words, style in line:
                yield Segment(words, style)
            yield newline


def _cut(line: Line, width: int) -> Line:
    left = width
    for place, (words, style) in enumerate(line):
        wide = cell_len(words)
        if wide > left:
            return [*line[:place], (set_cell_size(words, left), style)]
        left -= wide
    return line


def _stripped(line: Line) -> Line:
    """Without blanks at its end, which would wrap where the terminal is made narrower."""
    line = list(line)
    while line:
        words, style = line.pop()
        if words.rstrip(" "):
            return [*line, (words.rstrip(" "), style)]
    return line


def joined(parts: Iterable[tuple[int, Line]], width: int, gap: int = 2) -> Line:
    """Put parts beside each other; those with the lowest rank are left out until the rest fits.

    Args:
        parts: each with its rank.
        gap: cells between two of them.
    """
    kept = list(parts)
    while len(kept) > 1 and sum(cells(part) + gap for _rank, part in kept) - gap > width:
        kept.remove(min(kept, key=lambda entry: entry[0]))
    line: Line = []
    for _rank, part in kept:
        if line:
            line.append((" " * gap, None))
        line += part
    return line


def cells(line: Line) -> int:
    """How wide a line is."""
    return sum(cell_len(words) for words, _style in line)
