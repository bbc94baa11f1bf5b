"""The tasks of a hostile campaign, which run in the workers: attacks, and the innocent tasks beside them."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
import time
from typing import Any, NamedTuple

from pairpool.scoreboard.board import NOTHING, State, Word
from pairpool.stress.hostile.acts import ACTS
from pairpool.stress.hostile.boards import OTHERS, SCRIBBLES
from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.odd_fds import OddFds
from pairpool.stress.hostile.packets import Facts, Shot, shots
from pairpool.stress.hostile.reach import Reach, reach
from pairpool.stress.hostile.record import Record
from pairpool.transport.fd import Fd

__all__ = ["Orders", "attack", "attack_or_work", "echo", "open_file", "tell", "work"]

MAX_SHOTS = 12
"""Packets of one attack, at most."""

FLOOD_SHOTS = 400
"""Packets of a flood, which does not wait until the master has read them. They count as one."""

READ_LIMIT_S = 0.05
"""Seconds that an attack waits until the master has read its packet."""

READ_LOOK_S = 0.00003
"""Seconds between two looks whether it has."""

LINGER_S = 0.002
"""Seconds for which an attack stays when it has done its deeds."""

BOARDS_PER_ATTACK = 4

_record: tuple[int, Record] | None = None


def work(item: int) -> tuple[int, int]:
    """Do the work of an innocent task. Its result depends on the item alone."""
    return item, item * item + 7


def echo(data: bytes) -> bytes:
    """Return the argument, reversed."""
    return data[::-1]


def tell(fd: Fd, item: int) -> int:
    """Write the item to the beginning of a file that came with the arguments. A second run changes nothing."""
    os.pwrite(fd.fileno(), b"%d" % item, 0)
    return item


def open_file(item: int) -> Any:
    """Return an open file that contains the item."""
    file = os.fdopen(os.memfd_create("innocent"), "w+b")
    file.write(b"%d" % item)
    file.flush()
    file.seek(0)
    return file


class Orders(NamedTuple):
    """The part of an attack's order that is the same for all attacks of a round.

    Attributes:
        seed: determines all deeds of an attack, together with its number.
        first: the number of the first attack of the round. The record needs it.
        front: `packets`, `own board` or `any board`.
    """

    seed: int
    first: int
    front: str


def attack(number: int, orders: Orders, *, may_forge: bool = True) -> str:
    """Attack the pool that runs this task.

    Args:
        may_forge: whether the attacker is alone in its batch, so that a forged report harms no other item.
    """
    record = _open_record(orders.first)
    dice = Dice(orders.seed, number)
    record.note(number, "began")
    found = reach()
    try:
        if orders.front == "packets":
            _send_packets(record, number, dice, found, may_forge=may_forge)
        else:
            _scribble(record, number, dice, found, only_own=orders.front == "own board")
    finally:
        record.end(number)
    return f"attack {number} returned"


def attack_or_work(item: int, orders: Orders, attacks: dict[int, int]) -> Any:
    """Run the attack whose number `attacks` has for this item, or work."""
    if item in attacks:
        return attack(attacks[item], orders, may_forge=False)
    return work(item)


def _open_record(first: int) -> Record:
    global _record
    if _record is None or _record[0] != first:
        _record = first, Record.attach(first)
    return _record[1]


# --- the scoreboard -------------------------------------------------------------------------------------


def _scribble(record: Record, number: int, dice: Dice, found: Reach, *, only_own: bool) -> None:
    weights = {name: weight for name, (_scribble, weight) in SCRIBBLES.items() if not (only_own and name in OTHERS)}
    for _ in range(1 + dice.below(BOARDS_PER_ATTACK)):
        name = _weighted(dice, weights)
        record.note(number, name, boards=1)
        SCRIBBLES[name][0](dice, found)
        if dice.one_in(4):
            time.sleep(LINGER_S)
    if dice.one_in(20):
        _act(record, number, dice, found)


def _weighted(dice: Dice, weights: dict[str, int]) -> str:
    left = dice.below(sum(weights.values()))
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    raise AssertionError


def _act(record: Record, number: int, dice: Dice, found: Reach) -> None:
    name = _weighted(dice, {name: weight for name, (_act, weight) in ACTS.items()})
    record.note(number, name)
    try:
        ACTS[name][0](dice, found)
    except OSError:
        pass  # an earlier deed has closed the channel


# --- packets --------------------------------------------------------------------------------------------


def _send_packets(record: Record, number: int, dice: Dice, found: Reach, *, may_forge: bool) -> None:
    """Send packets. Most attacks send them from the task itself, some from a child that the task forks."""
    if dice.one_in(16):
        _act(record, number, dice, found)
    in_child = dice.one_in(16)
    pid = os.fork() if in_child else 0
    if pid == 0:
        try:
            _shoot(record, number, dice, found, may_forge=may_forge)
        finally:
            if in_child:
                os._exit(0)
    else:
        os.waitpid(pid, 0)
    if dice.one_in(8):
        _act(record, number, dice, found)
    elif dice.one_in(4):
        time.sleep(LINGER_S)


def _shoot(record: Record, number: int, dice: Dice, found: Reach, *, may_forge: bool) -> None:
    facts = Facts(found.batch, found.first, min(found.items, 5000))
    is_flood = dice.one_in(64)
    count = FLOOD_SHOTS if is_flood else 1 + dice.below(MAX_SHOTS)
    for sent, shot in enumerate(shots(dice, facts, count, may_forge=may_forge)):
        record.note(number, shot.shape, packets=not is_flood or not sent)
        if shot.forges and dice.below(3):
            _claim_to_report(found)
        if not _send(found.channel, shot) or not (is_flood or _is_read(found.channel)):
            return
    if is_flood:
        _is_read(found.channel)


def _claim_to_report(found: Reach) -> None:
    """Show on the scoreboard what a worker shows when it sends a report. Otherwise the master refuses the report."""
    found.words[Word.ITEM] = NOTHING
    found.words[Word.STATE] = State.SENDING


def _send(channel: socket.socket, shot: Shot) -> bool:
    """Send a packet. Return whether the channel still works."""
    odd = OddFds(channel, shot.memfd)
    try:
        fds = [odd.get(kind) for kind in shot.fds]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        channel.sendmsg([shot.data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except (BlockingIOError, OverflowError):
        return True
    except OSError:
        return False
    finally:
        odd.close()
    return True


def _is_read(channel: socket.socket) -> bool:
    """Wait until the master has read all packets. Return False if it does not read them."""
    deadline = time.monotonic() + READ_LIMIT_S
    while True:
        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(channel.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        except OSError:
            return False
        if not waiting:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(READ_LOOK_S)
