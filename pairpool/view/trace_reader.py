"""Read trace events from JSON files of pairpool and of other programs, one event at a time.

[ event, event, ... ]                             the closing bracket may be missing
{"other": ..., "traceEvents": [ event, ... ]}     the text after the events is not read
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

CHUNK_BYTES = 1 << 18
MAX_EVENT_CHARS = 1 << 24
"""An event that is longer than this counts as damage, so that memory is bounded."""

_SPACE = " \t\r\n"
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # as raw_decode, with one call less
_NO_VALUE = (StopIteration, ValueError, RecursionError)
"""The scanner raises these if there is no value, or if the value does not end."""


class _CutOff(Exception):
    """The text ends within a value, or is damaged there."""


class TraceReader:
    """A trace file, whose events can be read more than once. Use it as a context manager.

    The memory is bounded, whatever the length of the file.

    Attributes:
        path: the name of the file.
        truncated: whether the closing bracket was missing when the events were last read.

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
        """Yield the events from the first one on, in the order of the file.

        Raises:
            ValueError: the file is not a trace. The text says why, and names the file.
        """
        self.truncated = False
        self._file.seek(0)
        text = _Text(self._file)
        first = text.peek()
        if first == "{":
            self._find_events(text)
        elif first != "[":
            self._refuse("it is empty" if not first else "it is not JSON of trace events")
        text.skip_char()
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
        """Move to the bracket that opens the events of a JSON object."""
        text.skip_char()
        try:
            while text.peek(_SPACE + ",") == '"':
                key = text.value()
                if text.peek() != ":":
                    break
                text.skip_char()
                if text.peek() == "[" and key == "traceEvents":
                    return
                text.value()
        except _CutOff:
            pass  # the object ends without events
        self._refuse("its JSON has no list of traceEvents")

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"{self.path} is not a trace: {reason}")


def _open(path: str) -> IO[bytes]:
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            copy: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy)  # a pipe can be read only once
            file.close()
            file = copy
        stack.pop_all()
        return file


class _Text:
    """The text of a file from the current place on. Only a part of it is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._at = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""

    def _more(self) -> bool:
        """Read the next part; return False at the end of the file."""
        data = self._file.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._text = self._text[self._at :] + self._decoder.decode(data, not data)
        self._at = 0
        return bool(data)

    def skip_char(self) -> None:
        """Move past the next character."""
        self._at += 1

    def peek(self, skipped: str = _SPACE) -> str:
        """Move to the next character that is not among `skipped`, and return it; empty at the end."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in skipped:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Return the value that begins here. Raise `_CutOff` if there is none, or if it does not end."""
        while True:
            try:
                value, at = _scan(self._text, self._at)
            except _NO_VALUE:
                if len(self._text) - self._at > MAX_EVENT_CHARS or not self._more():
                    raise _CutOff from None
                continue
            if at == len(self._text) and self._more():
                continue  # the value may be a number that goes on
            self._at = at
            return value
