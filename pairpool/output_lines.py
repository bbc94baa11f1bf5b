"""Cut the bytes that tasks write into lines, and label each line with its worker and stream."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LINE_BYTES", "LineCutter", "OutputLine"]

LINE_BYTES = 64 * 1024
"""Bytes of one line. A longer line is cut into several."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a task, its C code or a program that it started has written.

    Attributes:
        worker: number of the worker.
        pid: process id of the worker.
        stream: `stdout` or `stderr`.
        text: the line without its end. Other control characters are unchanged.
    """

    worker: int
    pid: int
    stream: str
    text: str


class LineCutter:
    """Cut one stream of bytes into whole lines, and decode them as UTF-8. Other bytes become U+FFFD.

    Progress bars write a line several times, with a carriage return in between. Only the last version counts.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that end in `data`, and the pieces of a line that is too long already."""
        *whole, rest = (self._rest + data).split(b"\n")
        lines: list[str] = []
        for line in whole:
            last = _take_pieces(_last_version(line).rstrip(b"\r"), lines)
            lines.append(last.decode("utf-8", "replace"))
        self._rest = _take_pieces(_last_version(rest), lines)
        return lines

    def flush(self) -> list[str]:
        """Return the last line, if it has no end and is not blank. Call this after the end of the stream."""
        rest, self._rest = self._rest, b""
        visible = _last_version(rest).rstrip(b"\r")
        if not visible or (visible.isspace() and b"\r" in rest):
            return []
        return [visible.decode("utf-8", "replace")]


def _last_version(line: bytes) -> bytes:
    """Return the text after the last carriage return. Carriage returns at the end of the line do not count."""
    if b"\r" not in line:
        return line
    return line[line.rstrip(b"\r").rfind(b"\r") + 1 :]


def _take_pieces(line: bytes, lines: list[str]) -> bytes:
    """Move pieces from the front of a line that is too long to `lines`, without cutting a character in two."""
    while len(line) > LINE_BYTES:
        at = LINE_BYTES
        while at > LINE_BYTES - 4 and line[at] & 0xC0 == 0x80:
            at -= 1
        lines.append(line[:at].decode("utf-8", "replace"))
        line = line[at:]
    return line
