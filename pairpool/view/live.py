"""The live view: a thread that reads the status of a pool a few times per second and draws it.

    read() ─► Sampler ─► table.render ─► Screen, or the output of a notebook cell     a frame
    show() ─► queue ───────────────────► Screen                                       the lines above it

A thread that holds the interpreter's lock keeps the pool's leader waiting. So frames are rare: drawing takes at most
`DRAWING_CORE_SHARE` of a core.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.style import Style

from pairpool.linux.interrupts import allow_signals, defer_signals
from pairpool.output_lines import OutputLine
from pairpool.status import PoolStatus
from pairpool.view import table
from pairpool.view.notebook import Notebook
from pairpool.view.screen import Screen, writer
from pairpool.view.usage import Sampler

__all__ = ["LiveView"]

FRAME_EVERY_S = 0.25
"""Minimum time between two frames."""

DRAWING_CORE_SHARE = 0.01
"""Drawing takes at most this share of one core. Expensive frames are less frequent."""

LINE_EVERY_S = 10.0
"""Time between two lines if there is no terminal to draw on."""

END_CHECK_EVERY_S = 1.0
"""A thread that waits for the end of the view checks for it at this interval."""

MAX_QUEUED_LINES = 10_000
"""If this number of lines waits to be printed, threads with further lines wait."""

TERMINAL_GONE_ERRNOS = (errno.EPIPE, errno.EIO)
"""Errors of a pipe without a reader, and of a terminal that was closed."""

STDOUT_TAG_STYLE = Style(color="cyan", dim=True)
STDERR_TAG_STYLE = Style(color="red", dim=True)


class LiveView:
    """Draws a pool on a terminal until it is stopped. The last frame stays there.

    If the output is not a terminal, or another view has it, the view writes a plain line every ten seconds and one at
    the end. In a notebook, frames appear in the output of the cell.

    Args:
        read: returns the status to draw. The view's thread calls it.
        console: the console to draw on. The default is standard error, which leaves standard output to results.
        settle: waits until the output of tasks has been passed to `show`. `stop` calls it before the last frame.
        at_end: called in the view's thread when the view has stopped.

    Attributes:
        streams: the names of the streams (`stdout`, `stderr`) whose lines belong above the frame, once the view has
            started.

    Example:
        >>> with LiveView(pool.status):
        ...     pool.map(work, items)
    """

    def __init__(
        self,
        read: Callable[[], PoolStatus],
        console: Console | None = None,
        *,
        settle: Callable[[], object] | None = None,
        at_end: Callable[[], object] | None = None,
    ) -> None:
        self._read = read
        self._console = console if console is not None else Console(stderr=True)
        self._settle = settle
        self._at_end = at_end
        self._owner = os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._running = threading.Lock()  # held as long as the thread runs
        self._queue: deque[OutputLine] = deque()
        self._room = threading.Condition()
        self._sampler = Sampler()
        self._canvas: Screen | Notebook | None = None
        self._write = writer(self._console)
        self._tags: dict[tuple[int, str], str] = {}
        self._is_over = False
        self._has_ended = False
        self.streams: frozenset[str] = frozenset()

    # --- for the owner ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the view, in the thread that owns the terminal. Do nothing if it has started."""
        with defer_signals():
            self._start()

    def _start(self) -> None:
        if self._thread is not None:
            return
        if self._console.is_jupyter:
            self._canvas = Notebook()
        else:
            self._canvas = Screen.take(self._console)
        if self._canvas is not None:
            self.streams = self._canvas.streams
        thread = threading.Thread(target=self._run, name="pairpool-view", daemon=True)
        self._running.acquire()
        try:
            thread.start()
        except BaseException:
            self._running.release()
            if self._canvas is not None:
                self._canvas.close()
            raise
        self._thread = thread
        atexit.register(self.stop)

    def stop(self) -> None:
        """Draw the last frame and wait until it is visible. In a forked child, and the second time, do nothing.

        A signal handler may raise and end the wait. The view ends all the same.
        """
        thread = self._thread
        if thread is None or os.getpid() != self._owner:
            return
        try:
            with defer_signals():
                self._stop(thread)
        finally:  # a handler may have raised before `defer_signals` was in force
            self._stopping.set()

    def _stop(self, thread: threading.Thread) -> None:
        try:
            if self._settle is not None and not self._stopping.is_set():
                with allow_signals():
                    self._settle()
        finally:
            self._stopping.set()
        if thread is threading.current_thread():
            return
        with allow_signals():
            self._wait()
        thread.join()
        atexit.unregister(self.stop)

    def _wait(self) -> None:
        """Wait until the thread has ended. After a handler has raised in `join`, `join` returns at once."""
        while not self._has_ended:
            if self._running.acquire(timeout=END_CHECK_EVERY_S):
                self._running.release()

    def __enter__(self) -> LiveView:
        try:
            self.start()
            return self
        except BaseException:  # raised by a signal handler, perhaps after the start
            self.stop()
            raise

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def show(self, lines: Sequence[OutputLine]) -> None:
        """Print lines above the frame, before the next frame. Wait while too many lines are queued. Thread-safe."""
        with self._room:
            self._room.wait_for(lambda: len(self._queue) < MAX_QUEUED_LINES or self._is_over)
            self._queue.extend(lines)
            if not self._is_over:
                return
        self._print_lines()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._guard(self._show_pool)
            if self._at_end is not None:
                self._at_end()
            with self._room:
                self._is_over = True
                self._room.notify_all()
            self._guard(self._print_lines)
        finally:
            self._has_ended = True
            self._running.release()

    def _guard(self, action: Callable[[], object]) -> None:
        """Run `action`, and log its errors, so that the pool goes on if the view fails."""
        try:
            action()
        except Exception as error:
            if not isinstance(error, OSError) or error.errno not in TERMINAL_GONE_ERRNOS:
                logging.getLogger("pairpool").exception("the live view has ended")

    def _show_pool(self) -> None:
        if self._canvas is None:
            self._write_lines()
            return
        try:
            self._draw(self._canvas)
        finally:
            self._canvas.close()

    def _draw(self, canvas: Screen | Notebook) -> None:
        """Draw frames until the view is stopped, and then a last one."""
        ascii = not self._console.encoding.startswith("utf")
        while True:
            began = time.thread_time()
            is_last = self._stopping.is_set()
            self._print_lines()
            size = self._console.size
            status = self._sampler.fill(self._read())
            canvas.draw(table.render(status, size.width, size.height - 1, ascii=ascii))
            if is_last:
                return
            self._stopping.wait(max(FRAME_EVERY_S, (time.thread_time() - began) / DRAWING_CORE_SHARE))

    def _print_lines(self) -> None:
        """Print all queued lines at once, so that the frame is redrawn only once."""
        with self._room:
            lines = list(self._queue)
            self._queue.clear()
            self._room.notify_all()
        if lines and isinstance(self._canvas, Screen):
            self._canvas.print_lines([self._tag(line, self._canvas) + line.text for line in lines])
        elif lines:
            self._write("".join(f"[{line.worker}] {line.text}\n" for line in lines))

    def _tag(self, line: OutputLine, screen: Screen) -> str:
        key = line.worker, line.stream
        if key not in self._tags:
            self._tags[key] = screen.styled(
                f"[{line.worker}] ", STDOUT_TAG_STYLE if line.stream == "stdout" else STDERR_TAG_STYLE
            )
        return self._tags[key]

    # --- without a terminal ---------------------------------------------------------------------

    def _write_lines(self) -> None:
        """Write a line at intervals, and one at the end."""
        while not self._stopping.wait(LINE_EVERY_S):
            self._write_line()
        self._write_line()

    def _write_line(self) -> None:
        self._write(table.headline_plain(self._read()) + "\n")
