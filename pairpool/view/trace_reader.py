"""Reads trace events out of JSON files, one at a time: those of pairpool and those of other programs.

[ event, event, ... ]                             the closing bracket may be missing
{"other": ..., "traceEvents": [ event, ... ]}     what follows the events is not read
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, NoReturn, Self

__all__ = ["Event", "TraceReader"]

Event = dict[str, Any]

CHUNK = 1 << 18
EVENT_LIMIT = 1 << 24
"""Characters in which an event has to end. What is longer is taken for damage, so that memory is bounded."""

_SPACE = " \t\r\n"
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # raw_decode, without a call in between
_NO_VALUE = (StopIteration, ValueError, RecursionError)
"""How the scanner tells that no value is there, or that it does not end."""


class _CutOff(Exception):
    """The text ends, or is damaged, within a value."""


class TraceReader:
    """A trace file, whose events can be gone through more than once.

    Memory is bounded, however long the file is. Use it as a context manager.

    Attributes:
        path: the file's name.
        truncated: whether the last time through, the events ended before their closing bracket did.

    Raises:
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.truncated = False
        self._file = _open(self.path)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """The events from the first on, as they are in the file.

        Raises:
            ValueError: the file is no trace. The text says why, and names the file.
        """
        self.truncated = False
        self._file.seek(0)
        text = _Text(self._file)
        first = text.peek()
        if first == "{":
            self._find_events(text)
        elif first != "[":
            self._refuse("it is empty" if not first else "it is not JSON of trace events")
        text.at += 1
        found = False
        while (begin := text.peek(_SPACE + ",")) != "]":
            try:
                value = text.value()
            except _CutOff:
                if begin not in ("", "{") and not found:
                    self._refuse("it is not JSON of trace events")
                self.truncated = True
                break
            if isinstance(value, dict) and isinstance(value.get("ph"), str):
                found = True
                yield value
            elif not found:
                self._refuse("its JSON holds no trace events")

    def _find_events(self, text: _Text) -> None:
        """Go on to the bracket that opens the events of a JSON object."""
        text.at += 1
        try:
            while text.peek(_SPACE + ",") == '"':
                key = text.value()
                if text.peek() != ":":
                    break
                text.at += 1
                if text.peek() == "[" and key == "traceEvents":
                    return
                text.value()
        except _CutOff:
            pass  # then no events are there
        self._refuse("its JSON has no list of traceEvents")

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"{self.path} is not a trace: {reason}")


def _open(path: str) -> IO[bytes]:
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            copy: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy)  # a pipe can be read once only
            file.close()
            file = copy
        stack.pop_all()
        return file


class _Text:
    """The text of a file from `at` on, of which only a part is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.at = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""

    def _more(self) -> bool:
        """Read on; whether there was something."""
        data = self._file.read(max(CHUNK, len(self._text) - self.at))
        self._text = self._text[self.at :] + self._decoder.decode(data, not data)
        self.at = 0
        return bool(data)

    def peek(self, skipped: str = _SPACE) -> str:
        """The next character that is not `skipped`; empty at the end."""
        while True:
            text, at = self._text, self.at
            while at < len(text) and text[at] in skipped:
                at += 1
            self.at = at
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that begins here; `_CutOff` where none does, or where it does not end."""
        while True:
            try:
                value, at = _scan(self._text, self.at)
            except _NO_VALUE:
                if len(self._text) - self.at > EVENT_LIMIT or not self._more():
                    raise _CutOff from None
                continue
            if at == len(self._text) and self._more():
                continue  # a number may go on
            self.at = at
            return value
