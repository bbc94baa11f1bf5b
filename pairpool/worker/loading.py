"""Unpickle the items of a batch. An item that fails to load fails alone."""

from __future__ import annotations

import time
from typing import Any

from pairpool.scoreboard.board import Word
from pairpool.transport import received_fds
from pairpool.transport.failures import Failure, Fault, describe_failure, missing_module
from pairpool.transport.payload import EACH, SHARING, each_item, load_all, load_item, load_shared
from pairpool.transport.protocol import BatchPacket
from pairpool.transport.serializer import Serializer
from pairpool.worker.payloads import Payloads

__all__ = ["LoadedItems", "Missing", "load_items"]


class Missing:
    """Stands in a batch for an item that is not to be run."""


class LoadedItems:
    """The items of a batch.

    Attributes:
        items: in order.
        has_missing: whether `Missing` can be among them.
        failures: of the items that could not be loaded.
        sharing_took_ns: how long it took to load what several items have in common.
    """

    __slots__ = ("_serializer", "_words", "failures", "has_missing", "items", "sharing_took_ns")

    def __init__(self, words: memoryview, serializer: Serializer) -> None:
        self._words = words
        self._serializer = serializer
        self.items: Any = ()
        self.has_missing = False
        self.failures: list[Failure] = []
        self.sharing_took_ns = 0

    def load(self, packet: BatchPacket, content: memoryview) -> None:
        """Load the items from the payload of their packet."""
        if packet.format in (EACH, SHARING):
            self._load_each(packet, content)
            return
        try:
            self.items = load_all(packet.format, content)
        except BaseException as error:  # plain data fails to load only if memory or numpy is missing: all items fail
            failure = describe_failure(self._serializer, 0, Fault.ARGUMENT, error)
            self.failures += [failure._replace(offset=offset) for offset in range(packet.item_count)]
            self.items, self.has_missing = [Missing] * packet.item_count, True

    def _load_each(self, packet: BatchPacket, content: memoryview) -> None:
        words, with_descriptors = self._words, packet.descriptors
        items: list[Any] = []
        self.items, self.has_missing = items, True
        shared, entries = None, each_item(content)
        missing: dict[int, str | None] = {}  # modules in which something was not found, by the identity of the error
        if packet.format == SHARING:
            began = time.monotonic_ns()
            shared, entries = load_shared(
                content, lambda pickled, error: missing.update({id(error): missing_module(pickled, error)})
            )
            self.sharing_took_ns += time.monotonic_ns() - began
        for offset, (pickled, buffers, place) in enumerate(entries):
            words[Word.ITEM] = packet.first + offset
            item: Any = Missing
            if pickled:
                try:
                    if with_descriptors:
                        received_fds.begin(place)
                    item = load_item(pickled, buffers, shared)
                    if with_descriptors:
                        received_fds.settle()
                except BaseException as error:
                    received_fds.undo()
                    module = missing[id(error)] if id(error) in missing else missing_module(pickled, error)
                    self.failures.append(describe_failure(self._serializer, offset, Fault.ARGUMENT, error, module))
            items.append(item)


def load_items(
    packet: BatchPacket,
    payload: memoryview,
    fds: list[int],
    words: memoryview,
    serializer: Serializer,
    payloads: Payloads,
) -> LoadedItems | None:
    """Return the items of a batch, or None if their descriptors were lost."""
    loaded = LoadedItems(words, serializer)
    if payloads.use(packet, payload, fds, lambda content: loaded.load(packet, content)):
        return loaded
    return None
