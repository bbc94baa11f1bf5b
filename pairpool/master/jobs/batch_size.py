"""How many items go into a batch: by time, not by count. Arithmetic only: no clock, no I/O.

The sizes start at 1, grow while batches prove shorter than the target, shrink at once when they prove longer, and taper
off towards the end of an input whose length is known, so that the last batches end together (guided self-scheduling,
Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987).
"""

from __future__ import annotations

__all__ = ["SHORT_NS", "TARGET_NS", "Sizer"]

TARGET_NS = 1_000_000
"""A batch should take about this long: some twenty times what a packet and its answer cost."""

OVERHEAD_NS = 10_000
"""What a batch takes whatever it holds."""

LEAST_NS = 100_000
"""Towards the end of an input, batches get no shorter than this: workers idle no longer than a packet would cost."""

SHORT_NS = 5_000_000
"""A worker gets a second batch behind the one it runs only while batches are shorter than this."""

LONG_TARGET_NS = 2_500_000
"""How long where nobody waits for the first results and items are tiny: with all cores at work, the kernel lets the
master wait for about 3 ms before it can send more."""

LONG_FOR_NS = 500_000
"""Items up to which batches are long then: to hand one back costs less than what shorter batches would."""

TINY_NS = 20_000
"""Items up to which no worker sleeps in one, so that more workers than cores are of no use."""

FEED_NS = 50_000
"""What the master needs to send a batch and to take in its results, which bounds how many workers it can keep busy."""

PATIENCE_NS = 200_000
"""For so long, one worker alone tries the first of many items; to wake the others for one item each takes longer."""

MANY_FROM = 64
"""Items that count as many."""

PROBE_NS = 10_000_000
"""After this long without a result, the number of workers that may try a call's first items doubles."""

MAX_ITEMS = 1 << 15
MAX_BYTES = 1 << 20
"""Pickled bytes that a batch of several items should not exceed; larger payloads use a payload buffer."""

MANY = 1 << 30

LOOKAHEAD_BATCHES = 6
"""Batches for each worker that a stream may be ahead of its reader."""

LOOKAHEAD_NS = 100_000_000
"""Nanoseconds that the items which a stream is ahead of its reader may take: in the workers, or to be made."""

LOOKAHEAD_BYTES = 64 << 20
"""Pickled bytes of the items that a stream is ahead of its reader: each is a copy of what the input gave."""

BUSY_BATCHES = 2
"""Batches that keep a worker busy: the one that it runs, and the next."""

SHARING_FACTOR = 4
"""A batch should take at least so many times what it takes to load the large objects that its items share."""


class Sizer:
    """The size of a call's next batch, learnt from those that came back.

    Args:
        chunksize: a size to keep to, whatever is learnt; None for automatic sizes.
        hurried: whether somebody waits for the first results; if not, there is no hurry but for all.
    """

    __slots__ = ("_began", "_bytes", "_hurried", "_item_ns", "_may_grow", "_sharing_ns", "_size", "chunksize")

    def __init__(self, chunksize: int | None = None, *, hurried: bool = True) -> None:
        self.chunksize = chunksize
        self._hurried = hurried
        self._size = 1
        self._item_ns = 0.0
        self._bytes = 0.0
        self._began = 0
        self._sharing_ns = 0
        self._may_grow = chunksize is None

    @property
    def grows(self) -> bool:
        """Whether batches will soon be much larger than the next: then there is no point in many of this size."""
        return self._may_grow and 4 * self._bytes * self._size <= MAX_BYTES

    @property
    def item_ns(self) -> float:
        """What an item of the last batch took; 0 before any came back."""
        return self._item_ns

    @property
    def is_known(self) -> bool:
        """Whether any batch has come back."""
        return self._item_ns > 0

    def is_short(self) -> bool:
        """Whether a batch of the present size is known to be short."""
        return 0 < self._item_ns * (self.chunksize or self._size) <= SHORT_NS

    def learn(self, count: int, nanoseconds: int, sharing_ns: int = 0) -> None:
        """A batch of `count` items took this long in its worker, unpickling and pickling included.

        Args:
            sharing_ns: the part of it that was spent on loading large objects that several items contain.
        """
        if count < 1:
            return
        self._sharing_ns = sharing_ns
        nanoseconds = max(0, nanoseconds - sharing_ns)
        self._item_ns = max(1.0, nanoseconds / count)
        target = TARGET_NS if self._hurried or self._item_ns > LONG_FOR_NS else LONG_TARGET_NS
        target = max(target, SHARING_FACTOR * sharing_ns)
        fitting = max(1, int(target / self._item_ns))
        if fitting < self._size:
            self._size = fitting
        elif count >= self._size:  # what was tapered or split says nothing about larger ones
            self._size = min(self._size * (16 if nanoseconds * 8 < target else 2), fitting, MAX_ITEMS)
        marginal = max(nanoseconds - OVERHEAD_NS, nanoseconds // 10) / count
        self._may_grow = self.chunksize is None and 4 * self._size * marginal <= target and 4 * self._size <= MAX_ITEMS

    def learn_bytes(self, count: int, size: int) -> None:
        """`count` items took `size` bytes, on their way out or back."""
        self._bytes = max(self._bytes * 0.75, size / count)

    def next(self, remaining: int | None, workers: int) -> int:
        """How many items to take next, of `remaining` (None: unknown) that `workers` share."""
        if self.chunksize is not None:
            return self.chunksize
        size = self._size
        if self._bytes * size > MAX_BYTES:
            size = max(1, int(MAX_BYTES / self._bytes))
        if remaining is not None and remaining < 2 * size * workers:
            least = int(max(LEAST_NS, self._sharing_ns) / self._item_ns) if self._item_ns else 1
            size = min(size, remaining, max(1, least, -(-remaining // (2 * workers))))
        return size

    def spread(self, cores: int, now: int, *, many: bool) -> int:
        """Among how many workers it pays to spread the items: short ones need no more than the cores do.

        Args:
            now: monotonic ns.
            many: there are so many items left that one worker may find out how long they are.
        """
        few = 2 * cores
        if not self.is_known:
            self._began = self._began or now
            waited = now - self._began
            return 1 if many and waited < PATIENCE_NS else few << min(32, waited // PROBE_NS)
        batch = self._item_ns * (self.chunksize or self._size)
        if self._item_ns < TINY_NS and batch <= SHORT_NS:
            return 1 if many and self.grows else few
        return max(few, int(batch / FEED_NS)) if batch <= SHORT_NS else MANY

    def lookahead(self, workers: int, made_ns: float) -> int:
        """How many items of a stream may be under way or wait for its reader.

        Args:
            made_ns: what the input needs to make an item, in nanoseconds; 0 where that is not known.
        """
        size = self.next(None, workers)
        most = LOOKAHEAD_BATCHES * workers * size
        in_time = int(LOOKAHEAD_NS / max(made_ns, self._item_ns / workers, 1.0))
        if self.chunksize is not None:
            busy = BUSY_BATCHES * workers * size
        elif made_ns > self._item_ns:
            busy = BUSY_BATCHES * workers
        else:
            busy = LOOKAHEAD_BATCHES * workers
        in_memory = max(BUSY_BATCHES * workers * size, int(LOOKAHEAD_BYTES / max(self._bytes, 1.0)))
        return min(most, max(busy, in_time), in_memory)
