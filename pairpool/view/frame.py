"""Build frames: lines of styled words with an exact width, which rich draws without a layout of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

__all__ = ["BOLD", "CYAN", "FAINT", "GREEN", "RED", "YELLOW", "Frame", "Line", "Words", "cells", "joined"]

BOLD = Style(bold=True)
FAINT = Style(dim=True)
RED = Style(color="red")
GREEN = Style(color="green")
YELLOW = Style(color="yellow")
CYAN = Style(color="cyan")

Words = tuple[str, Style | None]
"""A text without line breaks, and its style."""

Line = list[Words]


class Frame:
    """Lines for a terminal. Wider lines are cut.

    Args:
        lines: the words of each line.
        width: the width of the frame in cells.
    """

    def __init__(self, lines: Sequence[Line], width: int) -> None:
        self.lines = [_stripped(_cut(line, width)) for line in lines]
        self.width = width

    @property
    def text(self) -> str:
        """Return the frame without styles."""
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
    """Return the line without blanks at its end, because they would wrap when the terminal is made narrower."""
    line = list(line)
    while line:
        words, style = line.pop()
        if words.rstrip(" "):
            return [*line, (words.rstrip(" "), style)]
    return line


def joined(parts: Iterable[tuple[int, Line]], width: int, gap: int = 2) -> Line:
    """Join the parts of a line. Leave out the parts with the lowest rank until the rest fits.

    Args:
        parts: the rank and the words of each part.
        width: the width of the line in cells.
        gap: the number of cells between two parts.
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
    """Return the width of a line in cells."""
    return sum(cell_len(words) for words, _style in line)
