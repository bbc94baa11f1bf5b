"""A frame at the foot of a terminal, and whatever else is written there above it.

    sys.stdout ──► Stream ─┐            what the program and tasks have written
    sys.stderr ──► Stream ─┤► Screen ─► a line that is not ended yet, or an empty one: here stands the cursor
    lines of tasks ────────┤            the frame
    frames ────────────────┘

Facts, and what they mean here:

- Who writes to the terminal without asking (a program that was started, a forked child, somebody at the keyboard,
  `input` with its prompt) writes at the cursor. So it stands above the frame, and each frame begins with clearing what
  is below it: a line that others write stays, and the frame is whole again. Below the frame, it would be the lines of
  others that are cleared. Their line may not be ended, and nobody knows where in it the cursor is: it is saved and
  restored, with no scrolling in between, which it would not follow.
- A terminal that is made narrower wraps the lines that are there, but the cursor stays with its line: what is to be
  cleared is below it still.
- tmux keeps what is cleared from the first cell of the screen on, for one to scroll back to. So nothing is.
- A lock that a thread holds when the program forks, a stream's own included, is held in the child for ever. So the
  terminal is written to by its descriptor, and a child's streams are the plain ones.
- A master that is killed puts nothing back. So the terminal is as it was after every single write, and the cursor is
  hidden only within one, where it would be seen to jump.
- A terminal may take nothing for as long as it likes (Ctrl-S). Who writes waits then, as without a view; nobody else.
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

from pairpool.output_lines import LONGEST
from pairpool.view.frame import Frame
from pairpool.view.text import clean, passable

__all__ = ["Screen", "writer"]

BELOW = "\x1b[K\r\n\x1b[J"
"""Clear what is right of the cursor and below it, and go to the next row."""

INDEX, SAVE, RESTORE = "\x1bD", "\x1b7", "\x1b8"
"""Down one row in the same column, scrolling at the last one; and where the cursor is."""

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CUT, WRAP = "\x1b[?7l", "\x1b[?7h"
"""What becomes of a line that is too long: a frame keeps its height if the terminal was made narrower just now."""

_taken: dict[object, Screen] = {}
_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


class Screen:
    """The terminal that a console writes to, for one view; from any thread.

    While it is open, `sys.stdout` and `sys.stderr` write above the frame if they are on the same terminal, and so do
    handlers of logging that hold them.

    Attributes:
        streams: names of those that do.
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
        self._unended: dict[int, str] = {}  # what each thread has written since its last end of a line
        self._shown = ""  # of the last of these
        self._is_open = True
        self._undo = ExitStack()
        self.streams = frozenset(name for name in ("stdout", "stderr") if _device(getattr(sys, name)) == device)

    @classmethod
    def take(cls, console: Console) -> Screen | None:
        """The terminal of a console; None if it is none, or one that another view, here or in a parent, is drawn on."""
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
            self._undo.enter_context(_replaced(name, Stream(self, stream)))
        self._undo.enter_context(_redirected_handlers())

    def styled(self, text: str, style: Style) -> str:
        """A text with the control sequences of its style."""
        return self._render(Text(text, style))

    def _render(self, thing: Text | Frame) -> str:
        with self._pen.capture() as captured:
            self._pen.print(thing, end="", soft_wrap=True)
        return captured.get()

    def draw(self, frame: Frame) -> None:
        """Have this frame in place of the last one."""
        drawn = CUT + self._render(frame).removesuffix("\n").replace("\n", "\r\n") + WRAP if frame.lines else ""
        with self._lock:
            self._frame, self._width, self._height = drawn, frame.width, len(frame.lines)
            if self._visible() == self._shown:
                self._write(HIDE_CURSOR + self._below())
            else:
                self._print("")

    def print_lines(self, lines: Sequence[str]) -> None:
        """Have these lines above the frame. Of control sequences, those for colours are kept."""
        with self._lock:
            self._print("".join(f"{passable(line, self._has_colours)}\r\n" for line in lines))

    def write(self, text: str) -> bool:
        """What the program itself writes, above the frame; False if there is none any more."""
        with self._lock:
            if not self._is_open:
                return False
            me = threading.get_ident()
            *lines, rest = (self._unended.pop(me, "") + text).split("\n")
            rest = _last_version(rest)
            if len(rest) > LONGEST:
                lines.append(rest)
            elif rest:
                self._unended[me] = rest
            if lines:
                self.print_lines([_last_version(line).rstrip("\r") for line in lines])
            return True

    def flush(self) -> None:
        """Show what was written of a line that is not ended yet; where there is none, it does not wait for a frame."""
        if not self._unended and not self._shown:
            return
        with self._lock:
            if self._is_open and self._visible() != self._shown:
                self._print("")

    def close(self) -> None:
        """Leave the last frame where it is, and the terminal and the streams as they were."""
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
        """Go to where a line can begin: over the one that is shown, else below whatever others have not ended.

        As many spaces as a row has columns but for one end in the next row, unless the cursor is in the first column.
        """
        begin = "" if self._shown else " " * (self._console.width - 1)
        return f"{HIDE_CURSOR}{begin}\r{BELOW}\x1b[A"

    def _visible(self) -> str:
        """The line that is not ended, on one row."""
        text = next(reversed(self._unended.values()), "")
        text = clean(passable(text.rstrip("\r"), False))
        width = self._console.width
        return set_cell_size(text, width - 1) if cell_len(text) >= width else text

    def _below(self) -> str:
        """The frame, and back to where the cursor is; not one that is too large since the last resize."""
        size = self._console.size
        fits = 0 < self._height < size.height and self._width <= size.width
        rows = self._height if fits else 1
        return f"{INDEX * rows}\x1b[{rows}A{SAVE}{BELOW}{self._frame if fits else ''}{RESTORE}{SHOW_CURSOR}"


class Stream:
    """Stands for `sys.stdout` or `sys.stderr` while a screen is open; before and after that it is the same."""

    def __init__(self, screen: Screen, file: Any) -> None:
        self.screen: Screen | None = screen
        self.file = file
        _streams.add(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.screen is None or not self.screen.write(text):
            self.file.write(text)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.screen is not None:
            self.screen.flush()
        self.file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _make_child_whole() -> None:
    """In a forked child: it writes to the terminal itself, for it has no view, and its parent's keeps its lock."""
    for stream in list(_streams):
        stream.screen = None
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.file)


os.register_at_fork(after_in_child=_make_child_whole)


def writer(console: Console) -> Callable[[str], None]:
    """A function that writes to where a console does, and leaves nothing in a buffer."""
    file, encoding = console.file, console.encoding
    fd = None if isinstance(file, Stream) else _fileno(file)

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
    """The descriptor of one of Python's own text streams; what others do with theirs is not known."""
    try:
        return file.fileno() if isinstance(file, io.TextIOWrapper) else None
    except (OSError, ValueError):
        return None  # it writes into memory, or is closed


def _device(file: Any) -> object:
    """What tells whether two streams show on the same terminal; None for one that shows on none."""
    if isinstance(file, Stream):
        file = file.file
    fd = _fileno(file)
    if fd is None:
        return file
    try:
        return os.fstat(fd).st_rdev if os.isatty(fd) else None
    except OSError:
        return None


def _last_version(line: str) -> str:
    """What follows the last carriage return that something follows: progress bars write lines over."""
    return line[line.rstrip("\r").rfind("\r") + 1 :]


@contextmanager
def _replaced(name: str, stream: Stream) -> Iterator[None]:
    setattr(sys, name, stream)
    try:
        yield
    finally:
        if getattr(sys, name) is stream:  # and nothing that somebody has put there meanwhile
            setattr(sys, name, stream.file)


@contextmanager
def _redirected_handlers() -> Iterator[None]:
    """Have handlers of logging, which keep the stream that they were made with, write to the one in its place."""
    moved: list[tuple[logging.StreamHandler[Any], Stream]] = []
    stands_for = {id(one.file): one for one in (sys.stdout, sys.stderr) if isinstance(one, Stream)}
    loggers = [logging.getLogger(), *(one for one in list(_loggers.values()) if isinstance(one, logging.Logger))]
    for handler in {id(handler): handler for logger in loggers for handler in logger.handlers}.values():
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in stands_for:
            moved.append((handler, stands_for[id(handler.stream)]))
    for handler, stream in moved:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler, stream in moved:
            if handler.stream is stream:
                handler.setStream(stream.file)


_loggers = logging.Logger.manager.loggerDict
