"""Sinks: functions that receive the lines which workers write.

A fork copies the contents of a stream's buffer, and then both processes write them. Therefore this process does not
fork between the write of a sink and its flush: the fork waits for the lock that the sinks hold meanwhile.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from itertools import groupby

from pairpool.output_lines import OutputLine

__all__ = ["OutputRefused", "Sink", "each_line", "print_lines", "print_tagged"]

Sink = Callable[[list[OutputLine]], object]
"""A function that receives lines, in the collector's thread. The lines of one worker and stream come in order."""

_writing = threading.RLock()


def _make_lock() -> None:
    global _writing
    _writing = threading.RLock()


os.register_at_fork(
    before=lambda: _writing.acquire(), after_in_parent=lambda: _writing.release(), after_in_child=_make_lock
)


def print_tagged(lines: list[OutputLine]) -> None:
    """Write `[worker 3] text` to the present `sys.stdout` and `sys.stderr` of this program."""
    _print([(line.stream, f"[worker {line.worker}] {line.text}\n") for line in lines])


def print_lines(lines: list[OutputLine]) -> None:
    """Write lines without a tag, as if the workers wrote them, but line by line."""
    _print([(line.stream, f"{line.text}\n") for line in lines])


class OutputRefused(Exception):
    """A stream of this program takes no more text, because its reader is gone or its disk is full."""


def _print(lines: list[tuple[str, str]]) -> None:
    refused = ""
    for name, group in groupby(lines, key=lambda line: line[0]):
        stream = getattr(sys, name)
        if stream is None:
            continue
        try:
            with _writing:
                stream.write("".join(text for _name, text in group))
                stream.flush()
        except OSError as error:  # go on, so that the other stream gets its lines
            refused = f"what tasks write to {name} is lost from here on: {error.strerror}"
    if refused:
        raise OutputRefused(refused)


def each_line(function: Callable[[OutputLine], object]) -> Sink:
    """Return a sink that calls `function` with every line.

    The sink raises the first exception of the function after it has handed over all lines.
    """

    def sink(lines: list[OutputLine]) -> None:
        failed: BaseException | None = None
        for line in lines:
            try:
                function(line)
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed

    return sink
