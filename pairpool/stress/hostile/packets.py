"""Packets that a worker must not send, and packets that are nearly right. Pure: dice in, bytes out."""

from __future__ import annotations

import inspect
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.pickles import BROKEN_PICKLES, broken_failures, broken_table, values_of
from pairpool.transport import protocol
from pairpool.transport.payload import BULK, EACH, SHARING, WHOLE
from pairpool.transport.protocol import (
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    InitFailedPacket,
    ReadyPacket,
    ReceivedPacket,
    ResultPacket,
    encode,
)
from pairpool.transport.stamps import Stamps
from pairpool.transport.wire import DESCRIPTORS_PER_PACKET, HEADER_SIZE, MAX_DESCRIPTORS, PACKET_LIMIT

__all__ = ["PACKET_CLASSES", "SHAPES", "Facts", "Shot", "shots"]

PACKET_CLASSES: tuple[type[Any], ...] = get_args(protocol.Packet)
"""Every class of packets."""

EDGES = (0, 1, 2, 3, 252, 253, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1)
"""Values of a field at which a check or a calculation may go wrong."""

_WIDTHS = (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, 0xFF)
_REFERENCE_LAYOUT = struct.Struct("<IIQ")
SHORT_MEMFD, FIT_MEMFD, LONG_MEMFD = "short memfd", "fitting memfd", "sparse memfd"
SEALED_MEMFD = "sealed memfd"
"""The only kind that a worker sends: its size is sealed."""


class Facts(NamedTuple):
    """The facts that a task knows of its batch: number, index of the first item, number of items."""

    batch: int
    first: int
    items: int


class Shot(NamedTuple):
    """One packet to send.

    Attributes:
        shape: the name of its kind.
        data: the packet.
        fds: the kinds of the descriptors that go with it; see `odd_fds.py`.
        forges: whether the master may accept it as a report of the attacker's own batch, with wrong values.
        memfd: the content of attached memfds.
    """

    shape: str
    data: bytes
    fds: tuple[str, ...] = ()
    forges: bool = False
    memfd: bytes = b""


Shape = Callable[[Dice, Facts], Shot]


def _noise(dice: Dice, _facts: Facts) -> Shot:
    """Random bytes, of any length."""
    size = dice.pick((1, 2, 7, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, 100, 1000, 20_000, PACKET_LIMIT - 32))
    return Shot("noise", dice.data(size), _some_fds(dice) if dice.one_in(4) else ())


def _nothing(_dice: Dice, _facts: Facts) -> Shot:
    """An empty packet, which reads like the end of file."""
    return Shot("nothing", b"")


def _values_near(dice: Dice, facts: Facts, fields: int) -> list[int]:
    return [dice.pick((*EDGES, *facts, facts.batch + 1, dice.bits())) for _ in range(fields)]


def _header(kind: type[Any], values: list[int]) -> bytes:
    """Return the header of a packet. Values that do not fit into their field are cut."""
    fitted = []
    for place, value in enumerate(values):
        for width in _WIDTHS:
            try:
                encode(kind(*([0] * place), value & width, *([0] * (len(values) - place - 1))))
            except struct.error:
                continue
            fitted.append(value & width)
            break
    return encode(kind(*fitted))


def _any_kind(dice: Dice, facts: Facts) -> Shot:
    """A packet of any kind, with odd values in all fields."""
    kind = dice.pick(PACKET_CLASSES)
    header = _header(kind, _values_near(dice, facts, len(inspect.signature(kind).parameters)))
    payload = dice.data(dice.pick((0, 0, 1, 16, 300)))
    return Shot("any kind", header + payload, _some_fds(dice) if dice.one_in(3) else (), kind is ResultPacket)


def _some_fds(dice: Dice, count: int = 0) -> tuple[str, ...]:
    count = count or dice.pick((1, 1, 2, 3, 30, DESCRIPTORS_PER_PACKET, MAX_DESCRIPTORS))
    return tuple(dice.pick(ODD_FDS) for _ in range(count))


ODD_FDS = ("null", "zero", "pipe", "socket", "directory", "epoll", "event", "own channel", SHORT_MEMFD, FIT_MEMFD)
"""Kinds of descriptors to attach."""


# --- reports that are nearly right ----------------------------------------------------------------------


def _result(facts: Facts, payload: bytes, **fields: int) -> bytes:
    """Return a report of the attacker's batch, with some fields of other values."""
    base = ResultPacket(0, BULK, facts.batch, facts.first, facts.items, size=len(payload))
    values = list(base._replace(**fields))
    return _header(ResultPacket, values) + payload


def _wrong_batch(dice: Dice, facts: Facts) -> Shot:
    """A report of a batch that is another's, that has ended, or that was never sent."""
    near = [facts.batch + step for step in (-3, -2, -1, 1, 2, 3)] + [0, 1 << 40, (1 << 64) - 1]
    batch = dice.pick([number for number in near if number >= 0])
    flags = dice.pick((0, 0, Flag.PARTIAL))
    return Shot("wrong batch", _result(facts, values_of(facts.items), batch=batch, flags=flags))


def _wrong_place(dice: Dice, facts: Facts) -> Shot:
    """A report of the right batch with another first item, or with another number of items."""
    first, count = facts.first, facts.items
    flags = dice.pick((0, Flag.PARTIAL))
    fields = dice.pick(
        (
            {"first": first + 1},
            {"first": max(0, first - 1)},
            {"first": dice.pick(EDGES)},
            {"item_count": 0},
            {"item_count": count + 1},
            {"item_count": dice.pick(EDGES)},
            {"first": first + count, "item_count": 1},
        )
    )
    items = fields.get("item_count", count)
    payload = values_of(items if items < 10_000 and dice.one_in(2) else count)
    return Shot("wrong place", _result(facts, payload, flags=flags, **fields), forges=True)


def _wrong_values(dice: Dice, facts: Facts) -> Shot:
    """A report with too few or too many values, or with values that are no list."""
    count = facts.items
    odd: tuple[Any, ...] = (
        [], [0] * (count - 1), [0] * (count + 1), [0] * (count + 5000), dict.fromkeys(range(count), 1), "x" * count,
        None, 7, (1,) * count, {*range(count)}, range(count), True, b"x" * count, [[]] * count,
    )  # fmt: skip
    flags = dice.pick((0, 0, Flag.PARTIAL))
    format = dice.pick((BULK, BULK, WHOLE))
    payload = pickle.dumps(dice.pick(odd), 5)
    if format == WHOLE:
        payload = struct.pack("<QQQ", 2, len(payload), 0) + payload
    return Shot("wrong values", _result(facts, payload, flags=flags, format=format), forges=True)


def _broken_pickle(dice: Dice, facts: Facts) -> Shot:
    """A report whose values cannot be unpickled."""
    make = dice.pick(BROKEN_PICKLES)
    return Shot("broken pickle", _result(facts, make(dice), flags=dice.pick((0, 0, Flag.PARTIAL))), forges=True)


def _broken_table(dice: Dice, facts: Facts) -> Shot:
    """A report in another format, whose table of lengths is wrong."""
    payload = broken_table(dice, facts.items)
    return Shot("broken table", _result(facts, payload, format=dice.pick((EACH, EACH, WHOLE, SHARING))), forges=True)


def _wrong_failures(dice: Dice, facts: Facts) -> Shot:
    """A report whose list of failures is wrong."""
    failures = broken_failures(dice, facts.items)
    values = values_of(facts.items)
    size = dice.pick(
        (len(failures), len(failures), len(failures), len(failures) + 1, 1, len(failures + values), 1 << 31)
    )
    flags = Flag.FAILURES | dice.pick((0, 0, 0, Flag.PARTIAL))
    return Shot("wrong failures", _result(facts, failures + values, flags=flags, failures_size=size), forges=True)


def _wrong_header(dice: Dice, facts: Facts) -> Shot:
    """A report with one odd field that is about no item: flags, format, sizes, times, number of descriptors."""
    field = dice.pick(("flags", "format", "size", "took_ns", "sharing_took_us", "descriptors", "failures_size"))
    value = dice.pick((*EDGES, 1 << dice.below(8), dice.below(256)))
    fds = _some_fds(dice) if dice.one_in(3) else ()
    return Shot("wrong header", _result(facts, values_of(facts.items), **{field: value}), fds, forges=True)


def _stamps(dice: Dice, facts: Facts) -> Shot:
    """A report with impossible times."""
    times = Stamps(dice.pick(EDGES), [dice.pick(EDGES) for _ in range(facts.items)], dice.pick(EDGES)).pack()
    took = dice.pick(EDGES)
    payload = (times if dice.one_in(2) else times[: len(times) // 2]) + values_of(facts.items)
    return Shot("stamps", _result(facts, payload, flags=Flag.STAMPED, took_ns=took), forges=True)


# --- descriptors and shared memory ------------------------------------------------------------------------


def _announced(dice: Dice, facts: Facts) -> Shot:
    """A report that announces another number of descriptors than it has."""
    announced = dice.pick((0, 1, 2, DESCRIPTORS_PER_PACKET, DESCRIPTORS_PER_PACKET + 1, 100_000, (1 << 32) - 1))
    fds = _some_fds(dice) if dice.below(3) else ()
    return Shot("announced", _result(facts, values_of(facts.items), descriptors=announced), fds, forges=True)


def _early(dice: Dice, facts: Facts) -> Shot:
    """Descriptors that travel ahead of a report that never comes."""
    batch = dice.pick((facts.batch, facts.batch, facts.batch, facts.batch + 1, 0, dice.pick(EDGES)))
    count = dice.pick((DESCRIPTORS_PER_PACKET, DESCRIPTORS_PER_PACKET, DESCRIPTORS_PER_PACKET, 0, 1, (1 << 32) - 1))
    attached = dice.pick((DESCRIPTORS_PER_PACKET, DESCRIPTORS_PER_PACKET, 1, MAX_DESCRIPTORS))
    header = _header(DescriptorsPacket, [dice.pick((0, 0, 1)), batch, count, 0])
    return Shot("early fds", header, (dice.pick(ODD_FDS),) * attached)


def _shared_memory(dice: Dice, facts: Facts) -> Shot:
    """A report in shared memory that is too short, unsealed, missing, or no memory at all."""
    values = values_of(facts.items)

    def mostly(right: int, *wrong: int) -> int:
        return right if dice.below(5) else dice.pick(wrong)

    size = mostly(len(values), 100_000, 1 << 30, 1 << 40, (1 << 64) - 1)
    capacity = mostly(1 << 20, size, 0, 4096, 1 << 40, (1 << 64) - 1)
    reference = _REFERENCE_LAYOUT.pack(mostly(0, 1, 77, (1 << 32) - 1), mostly(0, 1, 9), capacity)
    kind = dice.pick((SEALED_MEMFD,) * 6 + (FIT_MEMFD, SHORT_MEMFD, LONG_MEMFD, dice.pick(ODD_FDS)))
    fds = dice.pick(((kind,), (kind,), (kind,), (), (kind, kind)))
    flags = Flag.IN_SHM | dice.pick((0, 0, Flag.PARTIAL))
    form = dice.pick((BULK, BULK, EACH))
    data = _result(facts, reference, flags=flags, format=form, size=size)
    return Shot("shared memory", data, fds, forges=True, memfd=values)


# --- the right packet at the wrong time --------------------------------------------------------------------


def _wrong_time(dice: Dice, facts: Facts) -> Shot:
    """A packet about the life of the worker or of its descriptors, while an item runs."""
    batch = dice.pick((facts.batch, facts.batch, facts.batch + 1, 0, 1 << 40))
    header = dice.pick(
        (
            encode(ReadyPacket()),
            encode(InitFailedPacket()),
            encode(InitFailedPacket()) + b"\xff\x1b[2Jno initializer failed",
            encode(ReceivedPacket(batch)),
            encode(ReceivedPacket(batch)),
            encode(DiscardDescriptorsPacket(dice.below(3), batch)),
            encode(DiscardDescriptorsPacket(0, facts.batch)),
        )
    )
    return Shot("wrong time", header, _some_fds(dice, 1) if dice.one_in(8) else ())


def _idle(dice: Dice, facts: Facts) -> Shot:
    """A packet that changes nothing: the worker has sent no descriptors ahead of this batch."""
    return Shot("idle", encode(DiscardDescriptorsPacket(dice.below(1 << 32), facts.batch + 1 + dice.below(1 << 40))))


SHAPES: tuple[Shape, ...] = (
    _noise, _any_kind, _any_kind, _any_kind, _wrong_batch, _wrong_place, _wrong_values, _broken_pickle, _broken_table,
    _wrong_failures, _wrong_header, _stamps, _announced, _early, _shared_memory, _wrong_time, _wrong_time, _nothing,
)  # fmt: skip
"""The functions that make packets. A function that occurs twice is chosen twice as often."""


def shots(dice: Dice, facts: Facts, count: int, *, may_forge: bool) -> Iterator[Shot]:
    """Yield up to `count` packets for one attack, and perhaps some before them that change nothing.

    At most the last of them may be a report that the master accepts. After such a report, the master expects the next
    batch of this worker, and a second report could be an answer to that. A process that answers for its own worker can
    always do this, so it would show nothing.

    Args:
        may_forge: whether the master may accept a report. All items of the batch then have wrong values.
    """
    for _ in range(dice.pick((0, 0, 1, 5, 20))):
        yield _idle(dice, facts)
    shapes = (dice.pick(SHAPES),) if dice.one_in(8) else SHAPES
    for _ in range(count):
        shot = dice.pick(shapes)(dice, facts)
        if not shot.forges:
            yield shot
        elif may_forge:
            yield shot
            return
