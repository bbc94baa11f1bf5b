"""Write the events of a pool to a file, in the trace event format that Chrome and Perfetto read.

    [
    {"ph":"M",...,"name":"process_name","args":{"name":"my pool","pairpool":"0.1.0",...}},       the pool, and its start
    {"ph":"X","ts":12.345,"dur":0.678,"pid":4711,"tid":3,"cat":"item","name":"f","args":{...}}   one event per line

Facts about the format and its readers, and the consequences:

- The closing bracket may be missing. So the file that a killed master leaves is a valid trace. Each event writes the
  comma and the line end before itself, so that the file is strict JSON as soon as the bracket is there.
- Perfetto accepts no data after the bracket, not even a line end. So nothing follows it.
- Perfetto drops the inner one of two spans of a track that overlap without being nested. So times are cut to fit.
- Perfetto takes thread 0 for the main thread of the process, or for thread 1. So worker n is thread n + 1.
- Older readers know only the short escapes of JSON before the keys that they need. So times come first, texts come
  last, and characters outside ASCII are written as UTF-8.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from pairpool.trace_events import LostItem, RanBatch

__all__ = ["TraceWriter"]

LONG_ITEM_NS = 1_000_000
"""The trace has the argument of an item that took at least this time."""

LONG_UNPICKLING_NS = 50_000
"""Unpickling that took longer than this is a span of its own."""

MAX_TEXT_CHARS = 500
"""Longer errors and arguments are cut to this length."""

MAX_QUOTED_NAMES = 4096
"""Number of functions whose quoted names are kept. Further names are quoted each time."""

_quote = json.JSONEncoder(ensure_ascii=False).encode


class TraceWriter:
    """Writes the trace of one pool (a `Trace`). One thread at a time may use it. In a forked child it writes nothing.

    Every call is one write(2) without a buffer. So the file holds all events that were reported before the master was
    killed. If a write fails, the trace ends there, with one warning, and the pool goes on.

    Args:
        path: the file. Its old content is lost.
        name: the name of the pool.
        pid: the process id of the master.
        created: when the pool was opened, in monotonic ns, as all times here. It is the zero of the trace.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str, pid: int, created: int) -> None:
        self._path = os.fspath(path)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._owner = os.getpid()
        self._pid = pid
        self._zero = created
        self._lanes: dict[int, str] = {}
        self._until: dict[int, int] = {}
        self._calls: dict[int, str] = {}
        self._names: dict[str, str] = {}
        package = sys.modules.get("pairpool")  # not imported, because it stands above this module in the house
        about = {
            "name": _clean(name),
            "pairpool": getattr(package, "__version__", ""),
            "started": round(time.time() - (time.monotonic_ns() - created) / 1e9, 6),
        }
        self._write([f'[\n{{"ph":"M","pid":{pid},"name":"process_name","args":{_quote(about)}}}'])

    @property
    def is_open(self) -> bool:
        """Tell whether this process still writes."""
        return self._fd >= 0 and os.getpid() == self._owner

    def worker_began(self, number: int, pid: int, began: int, replaced: int) -> None:
        """Write that a worker started.

        Args:
            number: the worker's place in the pool, from 0.
            pid: the process id of the worker.
            began: when the worker started.
            replaced: how many workers had this place before.
        """
        if self.is_open:
            args = {"pid": pid, "replaced": replaced} if replaced else {"pid": pid}
            self._write([*self._introduce(number), self._instant(number, began, "worker began", args)])

    def worker_ended(self, number: int, pid: int, when: int, reason: str, *, died: bool) -> None:
        """Write that a worker `died`, or was retired. `reason` says why, in words."""
        if self.is_open:
            name = "worker died" if died else "worker retired"
            args = {"pid": pid, "reason": _short(reason)}
            self._write([*self._introduce(number), self._instant(number, when, name, args)])

    def batch(self, run: RanBatch) -> None:
        """Write the spans of a batch and of its items."""
        starts = run.starts
        if not self.is_open or not starts:
            return
        out = self._introduce(run.worker)
        lane = self._lanes[run.worker]
        began, ended = self._fit(run.worker, run.began, run.ended)
        names = [run.functions] if isinstance(run.functions, str) else run.functions
        args = f'{{"call":{run.call},"first":{run.first},"items":{len(starts)}}}'
        title = f'{self._name(names[0])[:-1]} ×{len(starts)}"'
        out.append(self._span(began, ended, f'{lane},"cat":"batch","name":{title},"args":{args}'))
        at = min(max(began, starts[0]), ended)
        if at - began > LONG_UNPICKLING_NS:
            out.append(self._span(began, at, f'{lane},"cat":"io","name":"load"'))
        heads = [f'{lane},"cat":"item","name":{self._name(name)},"args":{{"call":{run.call},"item":' for name in names]
        if len(heads) == 1:
            heads *= len(starts)
        zero = self._zero
        for offset, (head, end) in enumerate(zip(heads, (*starts[1:], ended), strict=True)):
            end = at if end < at else min(end, ended)
            span = end - at
            more = _details(offset, span, run) if run.failed or span >= LONG_ITEM_NS else ""
            index = run.first + offset
            out.append(f',\n{{"ph":"X","ts":{(at - zero) / 1000:.3f},"dur":{span / 1000:.3f},{head}{index}{more}}}}}')
            at = end
        self._write(out)

    def lost(self, lost: LostItem) -> None:
        """Write the span of an item whose worker died."""
        if not self.is_open:
            return
        out = self._introduce(lost.worker)
        began, ended = self._fit(lost.worker, lost.began, lost.ended)
        args = f'{{"call":{lost.call},"item":{lost.item},"lost":true,"error":{_quote(_short(lost.error))}}}'
        head = f'{self._lanes[lost.worker]},"cat":"item","name":{self._name(lost.function)}'
        out.append(self._span(began, ended, f'{head},"args":{args}'))
        self._write(out)

    def call_began(self, number: int, kind: str, function: str, total: int | None, when: int) -> None:
        """Write that a call began: a `map`, an `imap` or another `kind`, of `total` items if that is known."""
        if self.is_open:
            self._calls[number] = name = _quote(_clean(f"{kind} {function}"))
            self._write([self._call("b", number, name, when, {"total": total})])

    def call_ended(self, number: int, when: int, done: int, failed: int) -> None:
        """Write that a call ended, with `done` items. The items that `failed` are among them."""
        if self.is_open and number in self._calls:
            name = self._calls.pop(number)
            self._write([self._call("e", number, name, when, {"done": done, "failed": failed})])

    def close(self) -> None:
        """End the trace. Later events are not written. In a forked child this closes only the descriptor."""
        if self.is_open:
            self._write(["\n]"])
        self._close_file()

    # --- events as text ---

    def _introduce(self, worker: int) -> list[str]:
        """Return the events that name the worker's lane. They are written once for each worker."""
        if worker in self._lanes:
            return []
        self._lanes[worker] = lane = f'"pid":{self._pid},"tid":{worker + 1}'
        return [
            f',\n{{"ph":"M",{lane},"name":"thread_name","args":{{"name":"worker {worker}"}}}}',
            f',\n{{"ph":"M",{lane},"name":"thread_sort_index","args":{{"sort_index":{worker}}}}}',
        ]

    def _fit(self, worker: int, began: int, ended: int) -> tuple[int, int]:
        """Return begin and end of a span, cut so that it does not overlap earlier spans of the worker."""
        began = max(began, self._until.get(worker, 0))
        self._until[worker] = ended = max(ended, began)
        return began, ended

    def _span(self, began: int, ended: int, rest: str) -> str:
        ts, dur = (began - self._zero) / 1000, (ended - began) / 1000
        return f',\n{{"ph":"X","ts":{ts:.3f},"dur":{dur:.3f},{rest}}}'

    def _instant(self, worker: int, when: int, name: str, args: Mapping[str, object]) -> str:
        ts = (when - self._zero) / 1000
        head = f'{{"ph":"i","ts":{ts:.3f},{self._lanes[worker]},"s":"t","cat":"worker","name":"{name}"'
        return f',\n{head},"args":{_quote(args)}}}'

    def _call(self, phase: str, number: int, name: str, when: int, args: Mapping[str, object]) -> str:
        ts = (when - self._zero) / 1000
        head = f'{{"ph":"{phase}","ts":{ts:.3f},"pid":{self._pid},"tid":{self._pid},"id":{number}'
        return f',\n{head},"cat":"call","name":{name},"args":{_quote(args)}}}'

    def _name(self, function: str) -> str:
        """Return the name in quotes."""
        name = self._names.get(function)
        if name is None:
            name = _quote(_clean(function))
            if len(self._names) < MAX_QUOTED_NAMES:
                self._names[function] = name
        return name

    # --- to the file ---

    def _write(self, events: list[str]) -> None:
        data = "".join(events).encode()
        try:
            while data:  # a regular file accepts all bytes at once, unless the disk is full
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._close_file()
            logging.getLogger("pairpool").warning("the trace %s ends here: %s", self._path, error)

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _details(offset: int, span: int, run: RanBatch) -> str:
    """Return the further arguments of an item's event: its error, and its argument if the item was long."""
    out = ""
    if offset in run.failed:
        out += f',"error":{_quote(_short(run.failed[offset]))}'
    if run.argument_of is not None and span >= LONG_ITEM_NS:
        out += f',"argument":{_quote(_short(run.argument_of(offset)))}'
    return out


def _clean(text: str) -> str:
    """Return `text` with lone surrogates spelt out, because UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(text: str) -> str:
    """Return `text` in at most `MAX_TEXT_CHARS` characters."""
    return _clean(text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…")
