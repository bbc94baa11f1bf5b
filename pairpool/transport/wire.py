"""The bytes of a packet: limits, the layout of headers, and the table of the kinds of packets.

Every header has the same columns (`_COLUMNS`). Each kind of packet is a class with named fields; `packet` registers
which columns hold them. The other columns of a header are zero.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "DESCRIPTORS_PER_PACKET",
    "FORMATS",
    "HEADER_SIZE",
    "INLINE_LIMIT",
    "MAX_DESCRIPTORS",
    "PACKET_LIMIT",
    "REFERENCE_SIZE",
    "Buffer",
    "PacketType",
    "ProtocolError",
    "Recall",
    "decode",
    "encode",
    "packet",
    "type_of",
]

Buffer = bytes | bytearray | memoryview

INLINE_LIMIT = 96 * 1024
"""Bytes of the largest payload that travels inside its packet. Larger payloads travel in shared memory."""

PACKET_LIMIT = 212_992
"""Bytes of the largest packet that a channel receives: the kernel's default for SO_SNDBUF."""

MAX_DESCRIPTORS = 253
"""Descriptors that one packet can carry: SCM_MAX_FD of the kernel."""

DESCRIPTORS_PER_PACKET = MAX_DESCRIPTORS - 1
"""Descriptors of a batch, function or result that travel in one packet. One more place is for the payload's memfd."""

REFERENCE_SIZE = 16
"""Bytes of a payload that refers to a buffer in shared memory."""

FORMATS = 4
"""How many formats of a payload exist; `payload.py` defines them."""

_COLUMNS = {
    "kind": "B",
    "flags": "B",
    "mode": "B",
    "format": "B",
    "function": "I",
    "number": "Q",
    "first": "Q",
    "count": "I",
    "split": "I",
    "descriptors": "I",
    "nanoseconds": "Q",
    "captures": "I",
    "microseconds": "I",
    "size": "Q",
}

HEADER_SIZE = struct.calcsize("<" + "".join(_COLUMNS.values()))


class ProtocolError(Exception):
    """A packet has an unknown kind, or a field with a value that its kind cannot have."""


class Recall(enum.Enum):
    """The fate of a packet that the sender takes back because the worker has not read it."""

    TAKE_BACK = "its items return to the queue"
    FORGET = "the sender notes that the worker does not know what the packet says"
    RESEND = "the packet is sent again, unchanged, with its payload and descriptors"
    NEVER = "the packet does not go to a worker, so it cannot be recalled"


class PacketType(NamedTuple):
    """The entry of the table for one class of packets."""

    kind: int
    recall: Recall
    encode: Callable[..., bytes]
    decode: Callable[[memoryview], tuple[Any, ...]]
    make: Callable[[Any], Any]
    is_valid: Callable[[Any, int, int], bool]


P = TypeVar("P", bound=type[Any])

_by_class: dict[type[Any], PacketType] = {}
_by_kind: dict[int, PacketType] = {}


def packet(kind: int, columns: str, *, recall: Recall) -> Callable[[P], P]:
    """Register a class of packets; a decorator.

    Args:
        columns: the column of each field, in the order of the fields and of the layout.
        recall: what happens if a packet of this kind is taken back.
    """
    names = columns.split()

    def register(cls: P) -> P:
        assert len(names) == len(cls._fields), f"{cls.__name__} needs one column for each field"
        assert names == [name for name in _COLUMNS if name in names], f"{cls.__name__} has columns out of order"
        assert kind not in _by_kind, f"{kind!r} has two classes"
        encoder = partial(_layout(["kind", *names]).pack, int(kind))
        is_valid = getattr(cls, "is_valid", _is_bare)
        entry = PacketType(kind, recall, encoder, _layout(names).unpack_from, cls._make, is_valid)
        _by_class[cls] = _by_kind[int(kind)] = entry
        return cls

    return register


def _is_bare(_packet: Any, payload: int, descriptors: int) -> bool:
    """Check a packet whose kind has no payload and no descriptors."""
    return payload == descriptors == 0


def _layout(columns: Sequence[str]) -> struct.Struct:
    """Return the layout of a header of which only these columns are used; the others are padding."""
    used = {name: code if name in columns else f"{struct.calcsize(code)}x" for name, code in _COLUMNS.items()}
    return struct.Struct("<" + "".join(used.values()))


def type_of(one: object) -> PacketType:
    """Return the entry of a packet's class in the table."""
    return _by_class[type(one)]


def encode(one: Any) -> bytes:
    """Return the header of a packet."""
    return _by_class[type(one)][2](*one)


def decode(content: memoryview, length: int, descriptors: int) -> Any:
    """Return the packet that arrived, with every field checked.

    Args:
        content: the header and the payload, perhaps followed by other bytes.
        length: bytes of the header and the payload.
        descriptors: how many came with it; -1 if the kernel dropped some.

    Raises:
        ProtocolError: the kind is unknown, or a field cannot have its value.
    """
    entry = _by_kind.get(content[0]) if length >= HEADER_SIZE else None
    if entry is not None:
        _kind, _recall, _encode, unpack, make, is_valid = entry
        one = make(unpack(content))
        if is_valid(one, length - HEADER_SIZE, descriptors):
            return one
        raise ProtocolError(
            f"an impossible packet arrived: {one} with {length - HEADER_SIZE} bytes of payload and {descriptors} "
            "descriptors"
        )
    if length < HEADER_SIZE:
        raise ProtocolError(f"a packet of {length} bytes arrived; its header alone has {HEADER_SIZE}")
    raise ProtocolError(f"a packet of unknown kind {content[0]} arrived")
