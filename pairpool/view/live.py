"""The live view: a thread that reads a pool's status a few times a second and draws it.

    read() ─► Sampler ─► table.render ─► rich's Live ─► the terminal          a frame
    show() ─► queue ──────────────────► one print ────► the lines above it    between two frames

Facts, and what they mean here:

- Whatever holds the interpreter's lock keeps the pool's leader waiting: so frames are few, and as rare as it takes to
  keep them at `SHARE` of a core.
- A terminal that is made narrower wraps the lines that are there (all but xterm do), so the frame is higher than it was
  drawn: it is cleared by the height that it has then.
- A fork in the program copies the redirected sys.stdout but not this thread: the child gets the plain one back. It
  would copy a lock of the terminal's stream, too, if this thread held it: so no fork happens in the midst of a frame.
- A handler of logging keeps the stream that it was made with: it is moved to the redirected one meanwhile.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.style import Style
from rich.text import Text

from pairpool.lines import OutputLine
from pairpool.status import PoolStatus
from pairpool.view import table
from pairpool.view.frame import Frame
from pairpool.view.usage import Sampler

__all__ = ["LiveView"]

FRAME_EVERY = 0.25
"""Seconds between two frames, at least."""

SHARE = 0.01
"""Share of one core that drawing may take: dearer frames are rarer."""

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw on."""

QUEUE = 10_000
"""Lines that wait to be printed; then whoever has more waits, too."""

TAG = Style(color="cyan", dim=True)
TAG_OF_ERRORS = Style(color="red", dim=True)

_views: weakref.WeakSet[LiveView] = weakref.WeakSet()


class LiveView:
    """Draws a pool on a terminal until it is stopped; the last frame stays there.

    Where the output is no terminal, it writes a plain line every ten seconds and one at the end. In a notebook, frames
    are drawn in the output of the cell.

    Args:
        read: gives the status to draw; called in the view's thread.
        console: where to; standard error by default, which leaves standard output to results.
        at_end: called when the view has stopped, in its thread.

    Example:
        >>> with LiveView(pool.status):
        ...     pool.map(work, items)
    """

    def __init__(
        self,
        read: Callable[[], PoolStatus],
        console: Console | None = None,
        *,
        at_end: Callable[[], object] | None = None,
    ) -> None:
        self._read = read
        self._console = console if console is not None else Console(stderr=True)
        self._at_end = at_end
        self._owner = os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._queue: deque[OutputLine] = deque()
        self._room = threading.Condition()
        self._sampler = Sampler()
        self._frame: Frame | None = None
        self._is_over = False
        self.is_drawn = self._console.is_jupyter or (
            self._console.is_terminal and not self._console.is_dumb_terminal
        )
        """Whether there are frames, and not plain lines."""

    # --- for whoever has it ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin; from the thread that owns the terminal. Does nothing if it has begun."""
        if self._thread is None:
            _views.add(self)
            atexit.register(self.stop)
            self._thread = threading.Thread(target=self._run, name="pairpool-view", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Draw the last frame and wait until it is there; in a forked child, and the second time, nothing."""
        thread = self._thread
        if thread is None or os.getpid() != self._owner:
            return
        self._stopping.set()
        atexit.unregister(self.stop)
        if thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> LiveView:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def show(self, lines: Sequence[OutputLine]) -> None:
        """Print lines above the view, before the next frame; waits while too many wait. From any thread."""
        with self._room:
            self._room.wait_for(lambda: len(self._queue) < QUEUE or self._is_over)
            self._queue.extend(lines)
            if not self._is_over:
                return
        self._print_lines()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self.is_drawn:
                self._draw()
            else:
                self._tell()
        except BrokenPipeError:
            pass  # nobody looks any more, and the pool goes on
        except Exception:
            logging.getLogger("pairpool").exception("the live view has ended")
        finally:
            _views.discard(self)
            if self._at_end is not None:
                self._at_end()
            with self._room:
                self._is_over = True
                self._room.notify_all()
            self._print_last_lines()

    def _print_last_lines(self) -> None:
        """What came after the last frame."""
        try:
            self._print_lines()
        except BrokenPipeError:
            pass  # nobody looks any more

    def _draw(self) -> None:
        out, err = (_is_terminal(stream) for stream in (sys.stdout, sys.stderr))
        live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=out,  # what is not shown on this terminal is not drawn above the view
            redirect_stderr=err,
            vertical_overflow="crop",
        )
        with live, _redirected_handlers():
            while True:
                began = time.thread_time()
                is_last = self._stopping.is_set()
                with _drawing:
                    self._print_lines()
                    self._update(live)
                if is_last:
                    return
                self._stopping.wait(max(FRAME_EVERY, (time.thread_time() - began) / SHARE))

    def _update(self, live: Live) -> None:
        """Draw a frame in place of the last one."""
        size = self._console.size
        status = self._sampler.fill(self._read())
        ascii = not self._console.encoding.startswith("utf")
        frame = table.render(status, size.width, max(1, size.height - 1), ascii=ascii)
        last, self._frame = self._frame, frame
        if last is not None and size.width < last.width and "XTERM_VERSION" not in os.environ:
            self._clear_wrapped(last, size.width)
        live.update(frame, refresh=True)

    def _clear_wrapped(self, frame: Frame, width: int) -> None:
        """Go up by as many lines as a frame has grown by, for it was drawn on a wider terminal."""
        heights = [max(1, -(-cell_len(line) // width)) for line in frame.text.split("\n")]
        grown = sum(heights) - len(heights)
        if grown:
            control = Control()
            control.segment = Segment(f"\x1b[{grown}A\x1b[J", None, [(ControlType.CURSOR_UP, grown)])
            self._console.control(control)

    def _print_lines(self) -> None:
        """Print all that waits, at once: the view is drawn anew only once for it."""
        with self._room:
            lines = list(self._queue)
            self._queue.clear()
            self._room.notify_all()
        if not lines:
            return
        elsewhere = [line for line in lines if line.stream == "stdout" and not _is_terminal(sys.stdout)]
        if elsewhere and self.is_drawn and not self._console.is_jupyter:
            _write_plain(elsewhere)
            lines = [line for line in lines if line.stream != "stdout"]
        if lines:
            self._console.print(Text("\n").join(map(_tagged, lines)), soft_wrap=True)

    # --- where there is no terminal -------------------------------------------------------------

    def _tell(self) -> None:
        while not self._stopping.wait(LINE_EVERY):
            self._write_line()
        self._print_lines()
        self._write_line()

    def _write_line(self) -> None:
        text = table.headline_plain(self._read()) + "\n"
        file = self._console.file
        file.write(text.encode(self._console.encoding, "replace").decode(self._console.encoding))
        file.flush()


def _tagged(line: OutputLine) -> Text:
    """A line as it stands above the view; its colours are kept, other control sequences are not."""
    text = Text.from_ansi(line.text.replace("\t", "    "))
    tag = Text(f"[{line.worker}] ", style=TAG if line.stream == "stdout" else TAG_OF_ERRORS)
    return Text.assemble(tag, text)


def _write_plain(lines: Sequence[OutputLine]) -> None:
    sys.stdout.write("".join(f"[worker {line.worker}] {line.text}\n" for line in lines))
    sys.stdout.flush()


def _is_terminal(stream: Any) -> bool:
    """Whether a stream of the program shows on a terminal, or would if it were not redirected to the view."""
    if isinstance(stream, FileProxy):
        stream = stream.rich_proxied_file
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:
        return False  # it is closed


@contextmanager
def _redirected_handlers() -> Iterator[None]:
    """Have handlers of logging write above the view that write to where it is drawn."""
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    proxies = {id(one.rich_proxied_file): one for one in (sys.stdout, sys.stderr) if isinstance(one, FileProxy)}
    loggers = [logging.getLogger(), *(one for one in list(_loggers.values()) if isinstance(one, logging.Logger))]
    for handler in {id(handler): handler for logger in loggers for handler in logger.handlers}.values():
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in proxies:
            moved.append((handler, handler.stream))
            handler.setStream(proxies[id(handler.stream)])
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


_loggers = logging.Logger.manager.loggerDict

_drawing = threading.RLock()


def _make_child_whole() -> None:
    """In a forked child: what it writes is not drawn by a view that it does not have."""
    global _drawing
    _drawing = threading.RLock()
    if _views:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, FileProxy):
                setattr(sys, name, stream.rich_proxied_file)


os.register_at_fork(
    before=lambda: _drawing.acquire(), after_in_parent=lambda: _drawing.release(), after_in_child=_make_child_whole
)
