"""Carry log records from the logging of a worker to that of the master.

One packet of the socket is one record, whole or not at all, from any thread of a task. A record travels as pickled
plain data, so the master can load it without the classes of the task:

- the message has its arguments merged in;
- an exception is its formatted text;
- a value that is not plain data is its text.
"""

from __future__ import annotations

import logging
import pickle
import socket
from typing import Any

from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["RecordSender", "install", "pack", "unpack"]

NESTED = 4
"""Levels of lists and dicts in the extra attributes of a record that are kept as lists and dicts."""

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
    packed = pickle.dumps({**fields, **texts}, pickle.HIGHEST_PROTOCOL)
    if len(packed) <= limit:
        return packed
    fields = {key: value for key, value in fields.items() if key in _STANDARD}
    cut = {key: text and _cut(text, limit // 4) for key, text in texts.items()}
    return pickle.dumps({**fields, **cut}, pickle.HIGHEST_PROTOCOL)


def unpack(packed: memoryview, worker: int) -> logging.LogRecord:
    """Return the record, with the number of its worker as the attribute `worker`."""
    return logging.makeLogRecord({**pickle.loads(packed), "worker": worker})


def _plain(value: Any, nested: int) -> Any:
    """Return the value if it is plain data, else its text."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if nested and type(value) in (list, tuple):
        return type(value)(_plain(one, nested - 1) for one in value)
    if nested and type(value) is dict:
        return {_plain(key, 0): _plain(one, nested - 1) for key, one in value.items()}
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose text raises {type(error).__name__}>"


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

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sock.send(pack(record, self._limit), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the master has closed its end: the pool has ended, and this worker ends soon
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._sock.close()
        super().close()


def install(fd: int, level: int) -> None:
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
    root.addHandler(RecordSender(sock))
    root.setLevel(level)
