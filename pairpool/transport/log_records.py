"""Carry log records from the logging of a worker to that of the master.

One packet of the socket is one record, whole or not at all, from any thread of a task. A record travels as JSON of
plain data. So the master needs no class of the task, and a packet from a hostile task runs no code in the master:

- the message has its arguments merged in;
- an exception is its formatted text;
- a value that is not plain data is its text;
- JSON has no bytes, tuples, dicts with other keys than texts, and huge ints: `_tagged` wraps them.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any

from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["BadRecord", "RecordSender", "install", "pack", "unpack"]

NESTED = 4
"""Levels of lists and dicts in the extra attributes of a record that are kept as lists and dicts."""

MAX_NAME_CHARS = 1_000
"""Characters of the longest name of a logger that the master accepts."""

BIG_INT_BITS = 10_000
"""Python refuses to write longer ints in decimal digits."""

_MERGED = frozenset(("args", "exc_info", "exc_text", "message", "msg", "stack_info"))
_STANDARD = frozenset(vars(logging.makeLogRecord({})))
_RESERVED_BYTES = 32  # of a send buffer: a packet cannot use them

_formatter = logging.Formatter()


def pack(record: logging.LogRecord, limit: int = PACKET_LIMIT) -> bytes:
    """Return a record as at most `limit` bytes. If it is larger, its texts are cut and its extra attributes dropped.

    Raises what merging the message with its arguments raises.
    """
    exc_text = record.exc_text
    if record.exc_info and not exc_text:
        exc_text = _formatter.formatException(record.exc_info)
    texts = {"msg": record.getMessage(), "exc_text": exc_text, "stack_info": record.stack_info}
    fields = {key: _plain(value, NESTED) for key, value in vars(record).items() if key not in _MERGED}
    packed = _dump({**fields, **texts})
    if len(packed) <= limit:
        return packed
    fields = {key: value for key, value in fields.items() if key in _STANDARD}
    packed = _dump({**fields, **{key: text and _cut(text, limit // 4) for key, text in texts.items()}})
    if len(packed) <= limit:
        return packed
    # JSON writes a control character with 6 bytes.
    return _dump({**fields, **{key: text and _cut(text, limit // 24) for key, text in texts.items()}})


class BadRecord(Exception):
    """A packet that is not a log record. The text says why."""


def unpack(packed: memoryview, worker: int) -> logging.LogRecord:
    """Return the record, with the number of its worker as the attribute `worker`.

    Raises:
        BadRecord: the packet is not a record, or logging cannot handle the record.
    """
    try:
        fields = _load(packed.tobytes().decode("utf-8", "surrogatepass"))
    except Exception as error:
        raise BadRecord(f"a packet is not a record: {error}") from None
    for name, types, is_needed in _CHECKED:
        if name in fields or is_needed:
            value = fields.get(name)
            if not isinstance(value, types):
                raise BadRecord(f"a record has {type(value).__name__} as its {name}")
    if len(fields.get("name") or "") > MAX_NAME_CHARS:
        raise BadRecord(f"the name of a record has more than {MAX_NAME_CHARS} characters")
    fields = {key: value for key, value in fields.items() if key not in ("args", "exc_info")}
    return logging.makeLogRecord({**fields, "worker": worker})


_CHECKED = (
    ("name", (str, type(None)), False),
    ("levelno", (int,), True),
    ("msg", (str,), True),
    ("exc_text", (str, type(None)), False),
    ("stack_info", (str, type(None)), False),
)
"""Fields whose types logging relies on outside a handler's own protection, and whether a record must have them."""


def _plain(value: Any, nested: int) -> Any:
    """Return the value if it is plain data, else its text."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if nested and type(value) in (list, tuple):
        return type(value)([_plain(one, nested - 1) for one in value])
    if nested and type(value) is dict:
        return {_plain(key, 0): _plain(one, nested - 1) for key, one in value.items()}
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose text raises {type(error).__name__}>"


# --- JSON -----------------------------------------------------------------------------------------------

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


def _dump(fields: Mapping[Any, Any]) -> bytes:
    return _encode({str(key): _tagged(value) for key, value in fields.items()}).encode("utf-8", "surrogatepass")


def _load(text: str) -> dict[str, Any]:
    """Return the fields. Raise any `Exception` if the text is not what `_dump` writes."""
    fields = _decoder.decode(text)
    if type(fields) is not dict:
        raise TypeError(f"it holds {type(fields).__name__}")
    return {key: value if type(value) in _AS_IT_IS else _untagged(value) for key, value in fields.items()}


def _tagged(value: Any) -> Any:
    """Return plain data in a form that JSON keeps. A dict with one key names the type of its value."""
    kind = type(value)
    if kind is list:
        return [_tagged(one) for one in value]
    if kind is tuple:
        return {"tuple": [_tagged(one) for one in value]}
    if kind is dict:
        return {"dict": [[_tagged(key), _tagged(one)] for key, one in value.items()]}
    if kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if kind is int and value.bit_length() > BIG_INT_BITS:
        return {"int": hex(value)}
    return value


def _untagged(value: Any) -> Any:
    if type(value) is list:
        return [_untagged(one) for one in value]
    if type(value) is dict:
        ((tag, inner),) = value.items()
        return _FROM_TAG[tag](inner)
    return value


_FROM_TAG: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda inner: tuple(map(_untagged, inner)),
    "dict": lambda inner: {_untagged(key): _untagged(one) for key, one in inner},
    "bytes": lambda inner: inner.encode("latin-1"),
    "int": lambda inner: int(inner, 16),
}

_AS_IT_IS = (str, int, float, bool, type(None))

_decoder = json.JSONDecoder()


def _cut(text: str, limit: int) -> str:
    """Return the text with at most `limit` bytes; the middle of a longer text is left out."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return text
    half = (limit - 64) // 2
    start, end = encoded[:half].decode("utf-8", "ignore"), encoded[-half:].decode("utf-8", "ignore")
    return f"{start} [... {len(encoded) - 2 * half:,} bytes cut ...] {end}"


class RecordSender(logging.Handler):
    """Sends each record to the master, and waits while the socket is full.

    Args:
        sock: the worker's end of the pair; owned by the handler.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._limit = min(PACKET_LIMIT, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _RESERVED_BYTES)
        self._inode = os.fstat(sock.fileno()).st_ino
        self._is_broken = False
        self._poller = select.poll()
        self._poller.register(sock, 0)  # hang-ups and closed descriptors are always reported

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sock.send(pack(record, self._limit), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            self._is_broken = True  # the pool has ended, or a task has shut down the socket: this worker ends soon
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._sock.close()
        super().close()

    def is_intact(self) -> bool:
        """Return False if a task has shut down the socket or closed its descriptor.

        A task that removes and closes this handler, as `logging.basicConfig(force=True)` does, has decided about its
        own records: that is no damage. A shutdown of the sending direction alone shows at the next record, or when the
        master has closed its end.
        """
        fd = self._sock.fileno()
        if fd < 0:
            return True
        return not self._is_broken and not self._poller.poll(0) and os.fstat(fd).st_ino == self._inode


def install(fd: int, level: int) -> RecordSender:
    """Send all records of this process from `level` on through the socket `fd`, and handle them nowhere else.

    Inherited handlers are dropped, because they would write into the files and streams of the program at the same time
    as the program. Loggers that did not propagate their records do so here. In the master, the setting of its own
    logger applies.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    sock.setblocking(True)
    root = logging.getLogger()
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    sender = RecordSender(sock)
    root.addHandler(sender)
    root.setLevel(level)
    return sender
