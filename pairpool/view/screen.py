"""Draw a frame at the bottom of a terminal, and show all other output above the frame.

    sys.stdout ──► ScreenStream ─┐            the output of the program and of tasks
    sys.stderr ──► ScreenStream ─┤► Screen ─► a line that has not ended, or an empty line, with the cursor
    lines of tasks ──────────────┤            the frame
    frames ──────────────────────┘

Facts about terminals, and the consequences:

- Some writers do not go through the screen: a program that was started, a forked child, a person at the keyboard,
  `input` with its prompt. They write at the cursor.
  1. So the cursor stands above the frame, and each frame first clears everything below the cursor. Their line stays,
     and the next frame is whole. With the cursor below the frame, their lines would be cleared.
  2. Their line may not have ended, and the column of the cursor is not known. So the cursor is saved and restored.
     Nothing scrolls between the two, because the saved position does not scroll.
- A terminal that is made narrower wraps its lines, but the cursor stays with its line. So the frame is still below the
  cursor.
- tmux keeps text that is cleared from the first cell of the screen on in its history. So the screen is never cleared
  from there.
- A lock that a thread holds during a fork stays locked in the child for ever, and streams have locks. So the screen
  writes to the descriptor of the terminal, and a child gets the plain streams back.
- A killed master restores nothing. So every single write leaves the terminal in its normal state, and hides the cursor
  only within the write, in which it moves.
- A terminal can stop taking output for any time (Ctrl-S). Then only the threads that write wait, as without a view.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text

from pairpool.output_lines import LINE_BYTES
from pairpool.view.frame import Frame
from pairpool.view.text import clean, passable

__all__ = ["Screen", "writer"]

CLEAR_BELOW = "\x1b[K\r\n\x1b[J"
"""Clear the rest of the row and all rows below, and go to the next row."""

INDEX, SAVE, RESTORE = "\x1bD", "\x1b7", "\x1b8"
"""Go down one row in the same column, scrolling at the last row. Save and restore the position of the cursor."""

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CUT, WRAP = "\x1b[?7l", "\x1b[?7h"
"""Cut or wrap long lines. A frame is cut, so that it keeps its height if the terminal has just been made narrower."""

_taken: dict[object, Screen] = {}
_streams: weakref.WeakSet[ScreenStream] = weakref.WeakSet()


class Screen:
    """The terminal of a console, used by one view. Any thread may call it.

    While the screen is open, `sys.stdout` and `sys.stderr` write above the frame if they are on the same terminal.
    Logging handlers that hold one of these streams do so too.

    Attributes:
        streams: the names of the streams that write above the frame.
    """

    def __init__(self, console: Console, device: object) -> None:
        self._device = device
        self._console = console
        self._write = writer(console)
        self._has_colours = console.color_system is not None and not console.no_color
        self._pen = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system=console.color_system,  # type: ignore[arg-type]  # the names that it takes
            no_color=console.no_color,
            legacy_windows=False,
        )
        self._lock = threading.RLock()
        self._frame = ""
        self._width = self._height = 0  # of the frame
        self._unended: dict[int, str] = {}  # by thread: its output since its last line end
        self._shown = ""  # the newest of these, as it is on the terminal
        self._is_open = True
        self._undo = ExitStack()
        self.streams = frozenset(name for name in ("stdout", "stderr") if _device(getattr(sys, name)) == device)

    @classmethod
    def take(cls, console: Console) -> Screen | None:
        """Return the screen of a console; None if it is not a terminal, or if a view here or in a parent has it."""
        file = console.file
        device = _device(file)
        if not (console.is_terminal and console.is_interactive) or device is None:
            return None
        screen = cls(console, device)
        if _taken.setdefault(device, screen) is not screen:
            return None
        screen._redirect()
        return screen

    def _redirect(self) -> None:
        for name in self.streams:
            stream = getattr(sys, name)
            stream.flush()
            self._undo.enter_context(_replaced(name, ScreenStream(self, stream)))
        self._undo.enter_context(_redirected_handlers())

    def styled(self, text: str, style: Style) -> str:
        """Return the text with the control sequences of its style."""
        return self._render(Text(text, style))

    def _render(self, thing: Text | Frame) -> str:
        with self._pen.capture() as captured:
            self._pen.print(thing, end="", soft_wrap=True)
        return captured.get()

    def draw(self, frame: Frame) -> None:
        """Replace the last frame by this one."""
        drawn = CUT + self._render(frame).removesuffix("\n").replace("\n", "\r\n") + WRAP if frame.lines else ""
        with self._lock:
            self._frame, self._width, self._height = drawn, frame.width, len(frame.lines)
            if self._visible() == self._shown:
                self._write(HIDE_CURSOR + self._below())
            else:
                self._print("")

    def print_lines(self, lines: Sequence[str]) -> None:
        """Print lines above the frame. Only control sequences for colours are kept."""
        with self._lock:
            self._print("".join(f"{passable(line, self._has_colours)}\r\n" for line in lines))

    def write(self, text: str) -> bool:
        """Print a text of the program above the frame. Return False if the screen is closed."""
        with self._lock:
            if not self._is_open:
                return False
            me = threading.get_ident()
            *lines, rest = (self._unended.pop(me, "") + text).split("\n")
            rest = _last_version(rest)
            if len(rest) > LINE_BYTES:
                lines.append(rest)
            elif rest:
                self._unended[me] = rest
            if lines:
                self.print_lines([_last_version(line).rstrip("\r") for line in lines])
            return True

    def flush(self) -> None:
        """Show the part of a line that has not ended. Without such a line, do not wait for the lock of the frame."""
        if not self._unended and not self._shown:
            return
        with self._lock:
            if self._is_open and self._visible() != self._shown:
                self._print("")

    def close(self) -> None:
        """Leave the last frame in place, and restore the terminal and the streams."""
        with self._lock:
            self._is_open = False
            _taken.pop(self._device, None)
            self._undo.close()
            above = "\r\n".join(passable(text, self._has_colours) for text in self._unended.values())
            below = f"{self._frame}\r\n" if self._frame else ""
            clear = self._clear()
            self._frame = self._shown = ""
            self._unended.clear()
            self._write(f"{clear}{above}\r\n{below}{SHOW_CURSOR}")

    def _print(self, text: str) -> None:
        clear = self._clear()
        self._shown = self._visible()
        self._write(clear + text + self._shown + self._below())

    def _clear(self) -> str:
        """Go to the start of a line: of the unended line that is shown, else below an unended line of other writers.

        The spaces are one fewer than the columns of a row. They end in the next row, unless the cursor was in the first
        column.
        """
        begin = "" if self._shown else " " * (self._console.width - 1)
        return f"{HIDE_CURSOR}{begin}\r{CLEAR_BELOW}\x1b[A"

    def _visible(self) -> str:
        """Return the line that has not ended, cut to one row."""
        text = next(reversed(self._unended.values()), "")
        text = clean(passable(text.rstrip("\r"), False))
        width = self._console.width
        return set_cell_size(text, width - 1) if cell_len(text) >= width else text

    def _below(self) -> str:
        """Draw the frame and return to the cursor. Leave out a frame that no longer fits since the last resize."""
        size = self._console.size
        fits = 0 < self._height < size.height and self._width <= size.width
        rows = self._height if fits else 1
        return f"{INDEX * rows}\x1b[{rows}A{SAVE}{CLEAR_BELOW}{self._frame if fits else ''}{RESTORE}{SHOW_CURSOR}"


class ScreenStream:
    """Replaces `sys.stdout` or `sys.stderr` while a screen is open. Without a screen it passes everything on."""

    def __init__(self, screen: Screen, file: Any) -> None:
        self._screen: Screen | None = screen
        self.file = file
        _streams.add(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._screen is None or not self._screen.write(text):
            self.file.write(text)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._screen is not None:
            self._screen.flush()
        self.file.flush()

    def detach(self) -> None:
        """Write to the plain stream from now on."""
        self._screen = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _put_in_sys(name: str, stream: object) -> None:
    """Make `stream` the `sys.stdout` or `sys.stderr` of the program."""
    setattr(sys, name, stream)


def _restore_streams_in_child() -> None:
    """Give a forked child the plain streams. It has no view, and the lock of the parent's screen may be held."""
    for stream in list(_streams):
        stream.detach()
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is stream:
                _put_in_sys(name, stream.file)


os.register_at_fork(after_in_child=_restore_streams_in_child)


def writer(console: Console) -> Callable[[str], None]:
    """Return a function that writes to the output of a console, without a buffer."""
    file, encoding = console.file, console.encoding
    fd = None if isinstance(file, ScreenStream) else _fileno(file)

    def write(text: str) -> None:
        data = text.encode(encoding, "replace")
        if fd is None:
            file.write(data.decode(encoding))
            file.flush()
            return
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                select.select([], [fd], [])

    return write


def _fileno(file: Any) -> int | None:
    """Return the descriptor of one of Python's own text streams; None for other streams, which may change the text."""
    try:
        return file.fileno() if isinstance(file, io.TextIOWrapper) else None
    except (OSError, ValueError):
        return None  # it writes to memory, or is closed


def _device(file: Any) -> object:
    """Return the identity of a stream's terminal; None if it is not on a terminal."""
    if isinstance(file, ScreenStream):
        file = file.file
    fd = _fileno(file)
    if fd is None:
        return file
    try:
        return os.fstat(fd).st_rdev if os.isatty(fd) else None
    except OSError:
        return None


def _last_version(line: str) -> str:
    """Return the text after the last inner carriage return, because progress bars overwrite their line."""
    return line[line.rstrip("\r").rfind("\r") + 1 :]


@contextmanager
def _replaced(name: str, stream: ScreenStream) -> Iterator[None]:
    _put_in_sys(name, stream)
    try:
        yield
    finally:
        if getattr(sys, name) is stream:  # nobody has replaced it in the meantime
            _put_in_sys(name, stream.file)


@contextmanager
def _redirected_handlers() -> Iterator[None]:
    """Let logging handlers, which keep the stream that they were made with, write to its replacement."""
    moved: list[tuple[logging.StreamHandler[Any], ScreenStream]] = []
    by_file = {id(one.file): one for one in (sys.stdout, sys.stderr) if isinstance(one, ScreenStream)}
    loggers = [logging.getLogger(), *(one for one in list(_loggers.values()) if isinstance(one, logging.Logger))]
    for handler in {id(handler): handler for logger in loggers for handler in logger.handlers}.values():
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in by_file:
            moved.append((handler, by_file[id(handler.stream)]))
    for handler, stream in moved:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler, stream in moved:
            if handler.stream is stream:
                handler.setStream(stream.file)


_loggers = logging.Logger.manager.loggerDict
