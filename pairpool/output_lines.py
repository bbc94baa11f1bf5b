"""Lines of output: cut out of the bytes that tasks write, tagged by who wrote them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LONGEST", "LineCutter", "OutputLine"]

LONGEST = 64 * 1024
"""Bytes of a line; one that is longer comes in several."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a task, its C code or a program that it started has written.

    Attributes:
        worker: number of the worker.
        pid: its process id.
        stream: `stdout` or `stderr`.
        text: the line without its end; control characters other than that are as they were written.
    """

    worker: int
    pid: int
    stream: str
    text: str


class LineCutter:
    """Cuts one stream of bytes into whole lines, as UTF-8; what is no UTF-8 becomes U+FFFD.

    Of a line that was written over after a carriage return, as progress bars are, the last version counts.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in `data`, and the pieces of one that is too long to wait for its end."""
        *whole, rest = (self._rest + data).split(b"\n")
        lines: list[str] = []
        for line in whole:
            last = _take_pieces(_last_version(line).rstrip(b"\r"), lines)
            lines.append(last.decode("utf-8", "replace"))
        self._rest = _take_pieces(_last_version(rest), lines)
        return lines

    def flush(self) -> list[str]:
        """The line that was not ended, if there is something to be seen of it; nothing more will be written."""
        rest, self._rest = self._rest, b""
        visible = _last_version(rest).rstrip(b"\r")
        if not visible or (visible.isspace() and b"\r" in rest):
            return []
        return [visible.decode("utf-8", "replace")]


def _last_version(line: bytes) -> bytes:
    """What follows the last carriage return that something follows."""
    if b"\r" not in line:
        return line
    return line[line.rstrip(b"\r").rfind(b"\r") + 1 :]


def _take_pieces(line: bytes, lines: list[str]) -> bytes:
    """Move pieces off the front of what is too long to `lines`, none of them in the midst of a character."""
    while len(line) > LONGEST:
        at = LONGEST
        while at > LONGEST - 4 and line[at] & 0xC0 == 0x80:
            at -= 1
        lines.append(line[:at].decode("utf-8", "replace"))
        line = line[at:]
    return line
