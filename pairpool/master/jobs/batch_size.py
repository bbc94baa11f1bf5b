"""Compute how many items go into a batch: by time, not by count. Without clock and I/O.

1. The first batch has one item.
2. Batches grow while they are shorter than the target time.
3. A batch that is longer makes the next ones smaller at once.
4. If the length of the input is known, the last batches become smaller, so that all workers end together (guided
   self-scheduling, Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987).
"""

from __future__ import annotations

__all__ = ["SHORT_NS", "TARGET_NS", "Sizer"]

TARGET_NS = 1_000_000
"""The time that a batch should take: about twenty times the cost of a packet and its answer."""

BATCH_OVERHEAD_NS = 10_000
"""The time that a batch takes in addition to the time of its items."""

MIN_TAPERED_NS = 100_000
"""The shortest batches at the end of an input. Shorter ones would cost more in packets than workers lose by idling."""

SHORT_NS = 5_000_000
"""A worker gets a second batch behind the one it runs only while batches are shorter than this."""

LONG_TARGET_NS = 2_500_000
"""The time that a batch should take if no caller waits for the first results and items are tiny.

While all cores are busy, the kernel lets the master wait for about 3 ms before it can send more."""

LONG_TARGET_UP_TO_ITEM_NS = 500_000
"""The longest items for which `LONG_TARGET_NS` holds. A hand-back costs less than shorter batches would."""

TINY_ITEM_NS = 20_000
"""The longest items that count as tiny. A worker does not sleep in one, so workers beyond the cores are useless."""

MASTER_PER_BATCH_NS = 50_000
"""The time that the master needs for a batch and its results. It bounds the number of workers that are kept busy."""

LONE_START_NS = 200_000
"""The time for which one worker alone runs the first of many items. Waking others for one item each takes longer."""

MANY_ITEMS = 64
"""The number of items that counts as many."""

SPREAD_DOUBLES_AFTER_NS = 10_000_000
"""After this long without a result, the number of workers that may try a call's first items doubles."""

MAX_BATCH_ITEMS = 1 << 15
MAX_BATCH_BYTES = 1 << 20
"""Pickled bytes that a batch of several items should not exceed; larger payloads use a payload buffer."""

UNBOUNDED = 1 << 30

LOOKAHEAD_BATCHES = 6
"""Batches per worker that a stream may be ahead of its reader."""

LOOKAHEAD_NS = 100_000_000
"""The time of the items that a stream may be ahead of its reader: in the workers, or in the input."""

LOOKAHEAD_BYTES = 64 << 20
"""Pickled bytes of the items that a stream may be ahead of its reader. Each pickle is a copy of an item."""

BUSY_BATCHES = 2
"""Batches that keep a worker busy: the one that it runs, and the next."""

MIN_TIMES_SHARING = 4
"""A batch should take at least this many times the time that loading its shared large objects takes."""


class Sizer:
    """Compute the size of a call's next batch from the batches that came back.

    Args:
        chunksize: a fixed size; None for automatic sizes.
        first_results_awaited: whether a caller waits for the first results, and not only for all results.
    """

    __slots__ = (
        "_began",
        "_bytes",
        "_first_results_awaited",
        "_item_ns",
        "_may_grow",
        "_sharing_ns",
        "_size",
        "chunksize",
    )

    def __init__(self, chunksize: int | None = None, *, first_results_awaited: bool = True) -> None:
        self.chunksize = chunksize
        self._first_results_awaited = first_results_awaited
        self._size = 1
        self._item_ns = 0.0
        self._bytes = 0.0
        self._began = 0
        self._sharing_ns = 0
        self._may_grow = chunksize is None

    @property
    def grows(self) -> bool:
        """Whether batches will soon be much larger than the next one. Then few of this size should be sent."""
        return self._may_grow and 4 * self._bytes * self._size <= MAX_BATCH_BYTES

    @property
    def item_ns(self) -> float:
        """Nanoseconds per item of the last batch; 0 before any batch came back."""
        return self._item_ns

    @property
    def is_known(self) -> bool:
        """Whether any batch has come back."""
        return self._item_ns > 0

    def is_short(self) -> bool:
        """Whether a batch of the present size is known to be short."""
        return 0 < self._item_ns * (self.chunksize or self._size) <= SHORT_NS

    def learn(self, count: int, nanoseconds: int, sharing_ns: int = 0) -> None:
        """Learn that a batch of `count` items took this long in its worker, unpickling and pickling included.

        Args:
            sharing_ns: the part of this time for loading large objects that several items contain.
        """
        if count < 1:
            return
        self._sharing_ns = sharing_ns
        nanoseconds = max(0, nanoseconds - sharing_ns)
        self._item_ns = max(1.0, nanoseconds / count)
        target = (
            TARGET_NS if self._first_results_awaited or self._item_ns > LONG_TARGET_UP_TO_ITEM_NS else LONG_TARGET_NS
        )
        target = max(target, MIN_TIMES_SHARING * sharing_ns)
        fitting = max(1, int(target / self._item_ns))
        if fitting < self._size:
            self._size = fitting
        elif count >= self._size:  # a batch that was tapered or split says nothing about larger ones
            self._size = min(self._size * (16 if nanoseconds * 8 < target else 2), fitting, MAX_BATCH_ITEMS)
        marginal = max(nanoseconds - BATCH_OVERHEAD_NS, nanoseconds // 10) / count
        self._may_grow = (
            self.chunksize is None and 4 * self._size * marginal <= target and 4 * self._size <= MAX_BATCH_ITEMS
        )

    def learn_bytes(self, count: int, size: int) -> None:
        """Learn that `count` items took `size` bytes, on their way out or back."""
        self._bytes = max(self._bytes * 0.75, size / count)

    def next(self, remaining: int | None, workers: int) -> int:
        """Return the number of items of the next batch, of `remaining` items (None: unknown) that `workers` share."""
        if self.chunksize is not None:
            return self.chunksize
        size = self._size
        if self._bytes * size > MAX_BATCH_BYTES:
            size = max(1, int(MAX_BATCH_BYTES / self._bytes))
        if remaining is not None and remaining < 2 * size * workers:
            least = int(max(MIN_TAPERED_NS, self._sharing_ns) / self._item_ns) if self._item_ns else 1
            size = min(size, remaining, max(1, least, -(-remaining // (2 * workers))))
        return size

    def spread(self, cores: int, now: int, *, many: bool) -> int:
        """Return the number of workers among which the items should be spread. Short items need only as many as cores.

        Args:
            now: monotonic ns.
            many: whether enough items are left that one worker may first find out their duration.
        """
        few = 2 * cores
        if not self.is_known:
            self._began = self._began or now
            waited = now - self._began
            return 1 if many and waited < LONE_START_NS else few << min(32, waited // SPREAD_DOUBLES_AFTER_NS)
        batch = self._item_ns * (self.chunksize or self._size)
        if self._item_ns < TINY_ITEM_NS and batch <= SHORT_NS:
            return 1 if many and self.grows else few
        return max(few, int(batch / MASTER_PER_BATCH_NS)) if batch <= SHORT_NS else UNBOUNDED

    def lookahead(self, workers: int, input_item_ns: float) -> int:
        """Return how many items of a stream may be under way or wait for its reader.

        Args:
            input_item_ns: nanoseconds that the input needs to make an item; 0 if they are not known.
        """
        size = self.next(None, workers)
        most = LOOKAHEAD_BATCHES * workers * size
        in_time = int(LOOKAHEAD_NS / max(input_item_ns, self._item_ns / workers, 1.0))
        if self.chunksize is not None:
            busy = BUSY_BATCHES * workers * size
        elif input_item_ns > self._item_ns:
            busy = BUSY_BATCHES * workers
        else:
            busy = LOOKAHEAD_BATCHES * workers
        in_memory = max(BUSY_BATCHES * workers * size, int(LOOKAHEAD_BYTES / max(self._bytes, 1.0)))
        return min(most, max(busy, in_time), in_memory)
