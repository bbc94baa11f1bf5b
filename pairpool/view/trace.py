"""A pool's life as a file of trace events, written as it goes, in the format that Chrome and Perfetto read.

    [
    {"ph":"M",...,"name":"process_name","args":{"name":"my pool","pairpool":"0.1.0",...}},        what pool, and when
    {"ph":"X","ts":12.345,"dur":0.678,"pid":4711,"tid":3,"cat":"item","name":"f","args":{...}}    one event a line
    ]

Facts about the format and its readers, and what they mean here:

- The closing bracket may be missing, so what a killed master has left is a trace. Each event brings the comma and
  the line end before it, and so the file is strict JSON once the bracket is there, too. Nothing follows that: Perfetto
  takes no more data, not even a line end.
- Spans of one track that overlap must be nested, else Perfetto drops the inner one. Times are cut to fit.
- Thread 0 is taken for the process's main thread, or for thread 1. Worker n is thread n + 1.
- Older readers know only the short escapes of JSON, before the keys that they need. So times come first and texts last,
  and what is not ASCII is written as UTF-8.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["TraceWriter"]

LONG_ITEM = 1_000_000
"""Items that took so many ns have their argument written."""

LONG_IO = 50_000
"""Unpickling and pickling that took so many ns is shown as spans of its own."""

TEXT_LIMIT = 500
"""Characters of an error or an argument that are kept."""

NAMES_KEPT = 4096
"""Functions whose quoted names are kept; with more, they are quoted anew."""

_quote = json.JSONEncoder(ensure_ascii=False).encode


class TraceWriter:
    """Writes the trace of one pool. One thread at a time may use it; in a forked child it writes nothing.

    Every call is one write(2) without a buffer, so what was told before the master was killed is in the file.
    When writing fails, which one warning tells, the trace ends there and the pool goes on.

    Args:
        path: the file; what it held is lost.
        name: the pool's name.
        pid: process id of the master.
        created: when the pool was opened, in monotonic ns as all times here: the zero of the trace.

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
        package = sys.modules.get("pairpool")  # not imported: it is on the floor above all others
        about = {
            "name": _clean(name),
            "pairpool": getattr(package, "__version__", ""),
            "started": round(time.time() - (time.monotonic_ns() - created) / 1e9, 6),
        }
        self._write([f'[\n{{"ph":"M","pid":{pid},"name":"process_name","args":{_quote(about)}}}'])

    @property
    def is_open(self) -> bool:
        """Whether this process still writes."""
        return self._fd >= 0 and os.getpid() == self._owner

    def worker_began(self, number: int, pid: int, began: int, replaced: int) -> None:
        """A worker was started.

        Args:
            number: its place in the pool, from 0.
            pid: its process id.
            began: when, in monotonic ns.
            replaced: how many workers had this place before.
        """
        if self.is_open:
            args = {"pid": pid, "replaced": replaced} if replaced else {"pid": pid}
            self._write([*self._begin(number), self._instant(number, began, "worker began", args)])

    def worker_ended(self, number: int, pid: int, when: int, reason: str, *, died: bool) -> None:
        """A worker ended: it `died`, or was retired. `reason` says of what, in words."""
        if self.is_open:
            name = "worker died" if died else "worker retired"
            args = {"pid": pid, "reason": _short(reason)}
            self._write([*self._begin(number), self._instant(number, when, name, args)])

    def batch(
        self,
        worker: int,
        call: int,
        functions: str | Sequence[str],
        first: int,
        began: int,
        ended: int,
        stamps: Sequence[int],
        items_ended: int,
        failed: Mapping[int, str],
        arguments: Callable[[int], str] | None = None,
    ) -> None:
        """A worker ran a batch to its end.

        Args:
            worker: its number.
            call: number of the call.
            functions: name of the function, or of each item's.
            first: index of the first item in its call.
            began: when the worker took the batch up, in monotonic ns.
            ended: when it was done with it.
            stamps: when each item was begun. It ended when the next began.
            items_ended: when the last one ended.
            failed: by offset in the batch, the errors of the items that failed.
            arguments: gives a short text of an item's argument, by its offset. It is asked for long items only, and
                must not raise.
        """
        if not self.is_open or not stamps:
            return
        out = self._begin(worker)
        lane = self._lanes[worker]
        began = max(began, self._until.get(worker, 0))
        self._until[worker] = ended = max(ended, began)
        names = [functions] if isinstance(functions, str) else functions
        args = f'{{"call":{call},"first":{first},"items":{len(stamps)}}}'
        title = f'{self._name(names[0])[:-1]} ×{len(stamps)}"'
        out.append(self._span(began, ended, f'{lane},"cat":"batch","name":{title},"args":{args}'))
        at = min(max(began, stamps[0]), ended)
        if at - began > LONG_IO:
            out.append(self._span(began, at, f'{lane},"cat":"io","name":"load"'))
        heads = [f'{lane},"cat":"item","name":{self._name(name)},"args":{{"call":{call},"item":' for name in names]
        if len(heads) == 1:
            heads *= len(stamps)
        zero = self._zero
        for offset, (head, end) in enumerate(zip(heads, (*stamps[1:], items_ended), strict=True)):
            end = at if end < at else min(end, ended)
            span = end - at
            more = _details(offset, span, failed, arguments) if failed or span >= LONG_ITEM else ""
            out.append(
                f',\n{{"ph":"X","ts":{(at - zero) / 1000:.3f},"dur":{span / 1000:.3f},{head}{first + offset}{more}}}}}'
            )
            at = end
        if ended - at > LONG_IO:
            out.append(self._span(at, ended, f'{lane},"cat":"io","name":"save"'))
        self._write(out)

    def lost(self, worker: int, call: int, function: str, index: int, began: int, ended: int, error: str) -> None:
        """A worker died while it ran this item, which began and ended then, and this `error` came of it."""
        if not self.is_open:
            return
        began = max(began, self._until.get(worker, 0))
        self._until[worker] = ended = max(ended, began)
        args = f'{{"call":{call},"item":{index},"lost":true,"error":{_quote(_short(error))}}}'
        out = self._begin(worker)
        head = f'{self._lanes[worker]},"cat":"item","name":{self._name(function)}'
        out.append(self._span(began, ended, f'{head},"args":{args}'))
        self._write(out)

    def call_began(self, number: int, kind: str, function: str, total: int | None, when: int) -> None:
        """A call was made: a `map`, an `imap` or another `kind`, of `total` items where that is known."""
        if self.is_open:
            self._calls[number] = name = _quote(_clean(f"{kind} {function}"))
            self._write([self._call("b", number, name, when, {"total": total})])

    def call_ended(self, number: int, when: int, done: int, failed: int) -> None:
        """A call that had begun ended, with so many items `done`, those that `failed` included."""
        if self.is_open and number in self._calls:
            name = self._calls.pop(number)
            self._write([self._call("e", number, name, when, {"done": done, "failed": failed})])

    def close(self) -> None:
        """End the trace: what is told later is not written. In a forked child only its descriptor is closed."""
        if self.is_open:
            self._write(["\n]"])
        self._let_go()

    # --- events as text ---

    def _begin(self, worker: int) -> list[str]:
        """The events that name a worker's lane, the first time."""
        if worker in self._lanes:
            return []
        self._lanes[worker] = lane = f'"pid":{self._pid},"tid":{worker + 1}'
        return [
            f',\n{{"ph":"M",{lane},"name":"thread_name","args":{{"name":"worker {worker}"}}}}',
            f',\n{{"ph":"M",{lane},"name":"thread_sort_index","args":{{"sort_index":{worker}}}}}',
        ]

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
        """The name in quotes."""
        name = self._names.get(function)
        if name is None:
            name = _quote(_clean(function))
            if len(self._names) < NAMES_KEPT:
                self._names[function] = name
        return name

    # --- to the file ---

    def _write(self, events: list[str]) -> None:
        data = "".join(events).encode()
        try:
            while data:  # a regular file takes all at once, unless the disk is full
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._let_go()
            logging.getLogger("pairpool").warning("the trace %s ends here: %s", self._path, error)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _details(offset: int, span: int, failed: Mapping[int, str], arguments: Callable[[int], str] | None) -> str:
    """What is told of an item beside its times: its error, and its argument where it took long."""
    out = ""
    if offset in failed:
        out += f',"error":{_quote(_short(failed[offset]))}'
    if arguments is not None and span >= LONG_ITEM:
        out += f',"argument":{_quote(_short(arguments(offset)))}'
    return out


def _clean(text: str) -> str:
    """`text` as UTF-8 can hold it: lone surrogates are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(text: str) -> str:
    return _clean(text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…")
