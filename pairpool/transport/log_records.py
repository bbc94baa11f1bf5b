"""Log records on their way from a worker's logging to the master's.

A packet of the socket is one record: whole or not at all, from whichever thread of a task. It is pickled plain data, so
that the master can load it whatever classes the task knows: the message has its arguments merged in, an exception
is its formatted text, and values of other types than plain ones are their texts.
"""

from __future__ import annotations

import logging
import pickle
import socket
from typing import Any

from pairpool.transport.wire import PACKET_LIMIT

__all__ = ["RecordSender", "install", "pack", "unpack"]

NESTED = 4
"""Levels of lists and dicts in a record's extra attributes that stay what they are."""

_MERGED = frozenset(("args", "exc_info", "exc_text", "message", "msg", "stack_info"))
_STANDARD = frozenset(vars(logging.makeLogRecord({})))
_UNSENT = 32  # bytes of a send buffer that a packet may not use

_formatter = logging.Formatter()


def pack(record: logging.LogRecord, limit: int = PACKET_LIMIT) -> bytes:
    """A record as at most `limit` bytes; of one that is larger, the texts are cut, and extra attributes dropped.

    Raises whatever merging its message raises.
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
    """The record, with the number of its worker as the attribute `worker`."""
    record = logging.makeLogRecord(pickle.loads(packed))
    record.worker = worker
    return record


def _plain(value: Any, nested: int) -> Any:
    """The value if it is plain data, else its text."""
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
    """The text, with what is beyond `limit` bytes of it taken out of its midst."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return text
    half = (limit - 64) // 2
    start, end = encoded[:half].decode("utf-8", "ignore"), encoded[-half:].decode("utf-8", "ignore")
    return f"{start} [... {len(encoded) - 2 * half:,} bytes cut ...] {end}"


class RecordSender(logging.Handler):
    """Sends each record to the master; waits while the socket is full.

    Args:
        sock: its end of the pair, which it owns.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._limit = min(PACKET_LIMIT, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _UNSENT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sock.send(pack(record, self._limit), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the master has closed its end: the pool is over, and so will be this worker
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._sock.close()
        super().close()


def install(fd: int, level: int) -> None:
    """Have all records of this process from `level` on sent through the socket `fd`, and handled nowhere else.

    Handlers that were inherited would write into the program's own files and streams, beside the program; loggers that
    kept their records to themselves pass them on now, and do so again in the master.
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
