"""An emulated terminal that knows the control sequences of the view, and programs that run on it through a real pty."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.cells import cell_len

from tests.support.scripts import environment
from tests.support.waiting import PATIENCE

__all__ = ["Program", "Terminal", "in_terminal"]

SEQUENCE = re.compile(r"\x1b(?:\[([0-?]*)([@-~])|[78DM=>])")
LONGEST_SEQUENCE = 16


class Row:
    """One row of cells. `goes_on` is true if the line continues in the next row."""

    def __init__(self, text: str = "", goes_on: bool = False) -> None:
        self.text = text
        self.goes_on = goes_on

    def put(self, column: int, char: str) -> None:
        self.text = self.text[:column].ljust(column) + char + self.text[column + 1 :]


class Terminal:
    """Text as a terminal shows it, with what was scrolled off its top; wide characters count as one cell.

    Attributes:
        shows_cursor: whether the cursor is seen.
        wraps: whether long lines go on in the next row.
        frames: how often something has been drawn below the cursor.
        unknown: control characters and sequences that it does not know.
        colours: codes of the plain colours of texts that it was given.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.shows_cursor = True
        self.frames = 0
        self._saved = (0, 0)  # row of the screen, column
        self.unknown: list[str] = []
        self.wraps = True
        self.colours: set[int] = set()
        self._rows = [Row()]
        self._top = 0
        self._row = 0
        self._column = 0
        self._rest = ""  # of a control sequence
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    @property
    def lines(self) -> list[str]:
        """Return all lines, including those above the screen, without wraps."""
        lines, begun = [], ""
        for row in self._rows:
            begun += row.text
            if not row.goes_on:
                lines.append(begun.rstrip())
                begun = ""
        return lines

    @property
    def screen(self) -> list[str]:
        """Return the visible rows."""
        return [row.text.rstrip() for row in self._rows[self._top :]]

    @property
    def below(self) -> list[str]:
        """Return the visible rows below the cursor."""
        return self.screen[self._row - self._top + 1 :]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def feed(self, data: bytes) -> None:
        """Show output of a program."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        while text:
            found = SEQUENCE.match(text)
            if found:
                self._control(found[0], found[1] or "", found[2] or "")
                text = text[found.end() :]
            elif text[0] == "\x1b" and len(text) < LONGEST_SEQUENCE:
                self._rest = text
                return
            else:
                self._put(text[0])
                text = text[1:]

    def resize(self, width: int, height: int) -> None:
        """Wrap lines anew. A cursor above the screen moves to its top, as in tmux."""
        lines: list[str] = []
        begun, at = "", (0, 0)
        for number, row in enumerate(self._rows):
            if number == self._row:
                at = (len(lines), len(begun) + self._column)
            begun += row.text.ljust(self.width) if row.goes_on else row.text
            if not row.goes_on:
                lines.append(begun)
                begun = ""
        self.width, self.height = width, height
        self._rows = []
        for number, line in enumerate(lines):
            if number == at[0]:
                self._row, self._column = len(self._rows) + at[1] // width, at[1] % width
                line = line.ljust(at[1])
            pieces = [line[start : start + width] for start in range(0, max(1, len(line)), width)]
            self._rows += [Row(piece, True) for piece in pieces[:-1]] + [Row(pieces[-1])]
        self._go(self._row)
        self._top = max(0, len(self._rows) - height)
        if self._row < self._top:
            self._row, self._column = self._top, 0

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._down()
        elif char == "\t":
            self._column = min(self.width - 1, (self._column // 8 + 1) * 8)
        elif char < " " or "\x7f" <= char <= "\x9f":
            self.unknown.append(char)
        elif cell_len(char):
            if self._column == self.width and not self.wraps:
                self._column -= 1
            if self._column == self.width:
                self._rows[self._row].goes_on = True
                self._down()
                self._column = 0
            self._rows[self._row].put(self._column, char)
            self._column += 1

    def _down(self) -> None:
        self._go(self._row + 1)
        self._top = max(self._top, self._row - self.height + 1)

    def _go(self, row: int) -> None:
        self._row = row
        while len(self._rows) <= row:
            self._rows.append(Row())

    def _control(self, sequence: str, parameters: str, final: str) -> None:
        if sequence == "\x1b7":
            self._saved = (self._row - self._top, self._column)
            return
        if sequence == "\x1b8":
            self._go(self._top + self._saved[0])
            self._column = self._saved[1]
            self.frames += 1
            return
        self._column = min(self._column, self.width - 1) if final != "m" else self._column
        number = int(parameters) if parameters.isdigit() else None
        if final == "m":
            self.colours |= {int(one) for one in parameters.split(";") if one.isdigit() and 30 <= int(one) <= 37}
            return
        if (parameters, final) in (("?25", "l"), ("?25", "h")):
            self.shows_cursor = final == "h"
        elif (parameters, final) in (("?7", "l"), ("?7", "h")):
            self.wraps = final == "h"
        elif sequence == "\x1bD":
            self._down()
        elif final == "A":
            self._row = max(self._top, self._row - (number or 1))
        elif final == "B":
            self._row = min(self._top + self.height - 1, self._row + (number or 1))
            self._go(self._row)
        elif final == "C":
            self._column = min(self.width - 1, self._column + (number or 1))
        elif final == "J" and not number:
            if (self._row, self._column) == (self._top, 0):
                self.unknown.append("the whole screen is cleared, which tmux keeps")
            row = self._rows[self._row]
            row.text, row.goes_on = row.text[: self._column], False
            del self._rows[self._row + 1 :]
        elif final == "K" and not number:
            self._rows[self._row] = Row(self._rows[self._row].text[: self._column])
            if not self._column and self._row:  # it no longer belongs to what was wrapped there
                self._rows[self._row - 1].goes_on = False
        else:
            self.unknown.append(sequence)


class Program:
    """A program on a terminal of its own, which is read all the time.

    Attributes:
        terminal: what it shows.
        process: the program.
    """

    def __init__(self, process: subprocess.Popen[bytes], fd: int, terminal: Terminal) -> None:
        self.process = process
        self.terminal = terminal
        self._fd = fd
        self._changed = threading.Condition()
        self._is_over = False
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._hang_up = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._read, name="terminal")
        self._thread.start()

    def _read(self) -> None:
        while True:
            self._goes_on.wait()
            ready = select.select([self._fd, self._hang_up], [], [])[0]
            try:
                data = os.read(self._fd, 65536) if self._hang_up not in ready else b""
            except OSError:
                data = b""  # EIO: nobody has the terminal open any more
            with self._changed:
                self.terminal.feed(data)
                self._is_over = not data
                self._changed.notify_all()
            if not data:
                return

    def until(self, shows: Callable[[Terminal], object]) -> None:
        """Wait until `shows` is true for the terminal."""
        with self._changed:
            met = self._changed.wait_for(lambda: bool(shows(self.terminal)) or self._is_over, PATIENCE)
            assert met, "\n".join(["it never came:", *self.terminal.lines])
            assert shows(self.terminal), "\n".join(["it ended without that:", *self.terminal.lines])

    def until_text(self, text: str) -> None:
        """Wait until the terminal has shown this text, on the screen or above it."""
        self.until(lambda terminal: text in terminal.text)

    def until_screen(self, text: str) -> None:
        """Wait until this text is on the screen."""
        self.until(lambda terminal: text in "\n".join(terminal.screen))

    def resize(self, width: int, height: int) -> None:
        with self._changed:
            self.terminal.resize(width, height)
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def pause(self) -> None:
        """Stop reading after the current read."""
        self._goes_on.clear()

    def go_on(self) -> None:
        self._goes_on.set()

    def hang_up(self) -> None:
        """Close the terminal under the program."""
        os.eventfd_write(self._hang_up, 1)
        self._thread.join()
        os.close(self._fd)
        self._fd = -1

    def wait(self) -> int:
        """Wait until the program has ended and all its output is shown, and return the exit status."""
        status = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "somebody has the terminal open still"
        return status

    def close(self) -> None:
        self.go_on()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._thread.join(PATIENCE)
        os.close(self._hang_up)
        if self._fd >= 0:
            os.close(self._fd)


@contextmanager
def in_terminal(
    script: Path | str,
    size: tuple[int, int] = (80, 24),
    stdout: IO[Any] | int | None = None,
    variables: Mapping[str, str] | None = None,
    options: tuple[str, ...] = ("-W", "error"),
) -> Iterator[Program]:
    """A script on a new terminal, which is its controlling one; killed at the end if it is still there.

    Args:
        size: columns and lines.
        stdout: where its standard output goes, if not to the terminal.
        variables: of its environment, beside those that are set.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    settings = termios.tcgetattr(slave)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    names = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TMUX"}
    env = {name: value for name, value in environment().items() if name not in names}
    env |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(variables or {})}
    process = subprocess.Popen(
        [sys.executable, *options, str(script)],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )
    os.close(slave)
    program = Program(process, master, Terminal(*size))
    try:
        yield program
    finally:
        program.close()


def read_until_closed(fd: int) -> bytes:
    """Return all data of a pipe until its other end is closed everywhere."""
    data = b""
    while select.select([fd], [], [], PATIENCE)[0]:
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece
    raise TimeoutError("the pipe is still open")
