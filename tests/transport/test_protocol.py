"""Each kind of packet keeps its fields, has a behaviour on recall, and is checked when it arrives."""

from __future__ import annotations

import types
import typing
from typing import Any, NamedTuple

import pytest

from pairpool.transport import protocol, wire
from pairpool.transport.channel import Channel
from pairpool.transport.protocol import (
    BatchPacket,
    CapturePacket,
    DescriptorsPacket,
    Flag,
    FunctionPacket,
    Mode,
    ReadyPacket,
    ResultPacket,
    SharePacket,
    SpawnedPacket,
    TextPacket,
    encode,
    recall_of,
)
from pairpool.transport.wire import HEADER_SIZE, REFERENCE_SIZE, ProtocolError, Recall

TYPES: tuple[Any, ...] = typing.get_args(protocol.Packet)
BATCH = BatchPacket(0, Mode.MAP, 0, function=3, batch=7, first=100, item_count=50, size=5)
RESULT = ResultPacket(0, 0, batch=7, first=100, item_count=50, size=5)


def decode(packet: Any, payload: int = 0, descriptors: int = 0) -> Any:
    content = encode(packet) + bytes(payload)
    return wire.decode(memoryview(content), len(content), descriptors)


def test_every_kind_is_listed_once() -> None:
    assert isinstance(protocol.Packet, types.UnionType)
    registered = [entry.make.__self__ for entry in wire._by_kind.values()]  # type: ignore[attr-defined]
    assert set(registered) == set(TYPES)
    assert len(registered) == len(TYPES)


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_field_arrives(cls: Any) -> None:
    packet = cls(*range(1, len(cls._fields) + 1))
    content = memoryview(encode(packet))
    assert len(content) == HEADER_SIZE
    entry = wire.type_of(packet)
    assert (content[0], entry.make(entry.decode(content))) == (entry.kind, packet)


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_kind_has_a_behaviour_on_recall(cls: Any) -> None:
    recall = recall_of(cls(*range(len(cls._fields))))
    assert isinstance(recall, Recall)
    if recall is Recall.RESEND:
        assert "size" not in cls._fields, "a payload in shared memory is freed by a recall"


def test_a_kind_without_a_behaviour_on_recall_is_refused() -> None:
    with pytest.raises(TypeError, match="recall"):
        wire.packet(99, "")  # type: ignore[call-arg]


def test_two_classes_with_one_number_are_refused() -> None:
    class Second(NamedTuple):
        pass

    with pytest.raises(AssertionError, match="two classes"):
        wire.packet(12, "", recall=Recall.NEVER)(Second)


@pytest.mark.parametrize(
    ("packet", "payload", "descriptors"),
    [
        (BATCH, 5, 0),
        (BATCH._replace(flags=Flag.IN_SHM, size=1 << 20), REFERENCE_SIZE, 0),
        (BATCH._replace(flags=Flag.IN_SHM, size=1 << 20), REFERENCE_SIZE, 1),
        (BATCH._replace(descriptors=3), 5, 3),
        (BATCH._replace(descriptors=255), 5, 3),
        (BATCH._replace(descriptors=252), 5, 252),
        (BATCH._replace(descriptors=3), 5, -1),
        (RESULT, 5, 0),
        (RESULT._replace(flags=Flag.FAILURES, failures_size=5), 5, 0),
        (RESULT._replace(item_count=0, size=0), 0, 0),
        (CapturePacket(3, 10), 0, 1),
        (CapturePacket(1), 0, 0),
        (DescriptorsPacket(3, 7, 252), 0, 252),
        (SharePacket(1 << 40, 4096), 0, 1),
        (SpawnedPacket(1, 0, 4711), 0, 3),
        (TextPacket(), 10, 4),
    ],
)
def test_possible_packets_are_accepted(packet: Any, payload: int, descriptors: int) -> None:
    assert decode(packet, payload, descriptors) == packet


@pytest.mark.parametrize(
    ("packet", "payload", "descriptors"),
    [
        (BATCH, 4, 0),
        (BATCH, 6, 0),
        (BATCH, 5, 1),
        (BATCH._replace(flags=Flag.PARTIAL), 5, 0),
        (BATCH._replace(mode=3), 5, 0),
        (BATCH._replace(format=4), 5, 0),
        (BATCH._replace(function=0), 5, 0),
        (BATCH._replace(batch=0), 5, 0),
        (BATCH._replace(item_count=0), 5, 0),
        (BATCH._replace(flags=Flag.IN_SHM), 5, 0),
        (BATCH._replace(descriptors=3), 5, 2),
        (RESULT._replace(flags=Flag.SPIN), 5, 0),
        (RESULT._replace(flags=Flag.FAILURES), 5, 0),
        (RESULT._replace(failures_size=5), 5, 0),
        (RESULT._replace(flags=Flag.FAILURES, failures_size=6), 5, 0),
        (RESULT._replace(flags=Flag.STAMPED), 5, 0),
        (FunctionPacket(Flag.FAILURES, 3), 0, 0),
        (CapturePacket(4), 0, 1),
        (CapturePacket(1), 0, 2),
        (DescriptorsPacket(3, 7, 200), 0, 200),
        (SharePacket(1 << 40, 4096), 0, 0),
        (SpawnedPacket(1, 0, 0), 0, 3),
        (ReadyPacket(), 1, 0),
        (ReadyPacket(), 0, 1),
        (ReadyPacket(), 0, -1),
    ],
)
def test_impossible_packets_are_refused(packet: Any, payload: int, descriptors: int) -> None:
    with pytest.raises(ProtocolError, match=f"an impossible packet arrived: {type(packet).__name__}"):
        decode(packet, payload, descriptors)


def test_an_unknown_kind_is_refused() -> None:
    content = bytearray(encode(ReadyPacket()))
    content[0] = 99
    with pytest.raises(ProtocolError, match="a packet of unknown kind 99 arrived"):
        wire.decode(memoryview(content), len(content), 0)


@pytest.mark.parametrize("size", [1, HEADER_SIZE - 1])
def test_a_packet_without_a_whole_header_is_refused(size: int) -> None:
    near, far = Channel.pair()
    near.send_packet([encode(ReadyPacket())[:size]], [near.fileno()])
    near.send(TextPacket(), b"next")
    with pytest.raises(ProtocolError, match=f"a packet of {size} bytes arrived"):
        far.receive()
    assert bytes(far.receive()[1]) == b"next"
    near.close()
    far.close()


def test_the_master_can_undo_every_kind_that_it_takes_back() -> None:
    """A kind that is not sent again needs a branch in `WorkerChannel._undo`; add it here, too."""
    undone = (Recall.TAKE_BACK, Recall.FORGET)
    kinds = {cls for cls in TYPES if recall_of(cls(*range(len(cls._fields)))) in undone}
    assert kinds == {BatchPacket, FunctionPacket, SharePacket, DescriptorsPacket}
