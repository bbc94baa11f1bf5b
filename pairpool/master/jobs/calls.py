"""The job of single calls: calls that were submitted one after the other and share batches."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from pairpool.master.jobs.base import Batch, Job, SingleCall, Target
from pairpool.master.jobs.call_options import DEFAULTS, CallOptions
from pairpool.transport.payload import Encoded
from pairpool.transport.serializer import Serializer

__all__ = ["Calls"]


class Calls(Job):
    """Single calls that were submitted one after the other. Each call has a result object of its own.

    Attributes:
        drop_reason: why some calls have an outcome although they have not ended; None if there are none. Such calls
            do not run again.
    """

    kind = "apply"

    def __init__(self, mode: int, options: CallOptions = DEFAULTS) -> None:
        super().__init__(None, mode, options)
        self._waiting: deque[tuple[Target, SingleCall]] = deque()
        self._next = 0
        self.drop_reason: BaseException | None = None

    # --- calls that were not handed out ---------------------------------------------------------

    def add(self, target: Target, call: SingleCall) -> None:
        """Append a call whose outcome goes to `target`."""
        target.submitted_to(self)
        self._waiting.append((target, call))

    def has(self, target: Target) -> bool:
        """Return whether a call with this target waits or was handed out."""
        return any(one is target for one, _ in self._waiting) or any(
            target in (batch.targets or ()) for batch in self.open.values()
        )

    @property
    def waiting(self) -> int:
        """The number of calls that were not handed out."""
        return len(self._waiting)

    def withdraw(self, target: Target) -> int | None:
        """Take back a call that was not handed out.

        Return the number of its function, or None if there is no such call.
        """
        for entry in self._waiting:
            if entry[0] is target:
                self._waiting.remove(entry)
                return entry[1][0]
        return None

    def withdraw_from(self, first: int) -> tuple[list[Target], Counter[int]]:
        """Take back all waiting calls but the first `first`.

        Return their targets, and how many of them use each function.
        """
        taken = [self._waiting.pop() for _ in range(len(self._waiting) - first)]
        return [target for target, _ in reversed(taken)], Counter(item[0] for _, item in taken)

    def drop_settled(self, reason: BaseException) -> None:
        """Note that some calls got the outcome `reason` before they have ended."""
        self.drop_reason = reason

    def withdraw_settled(self) -> Counter[int]:
        """Take back all waiting calls that already have an outcome. Return how many of them use each function."""
        settled = Counter(item[0] for target, item in self._waiting if target.has_outcome)
        if settled:
            self._waiting = deque(entry for entry in self._waiting if not entry[0].has_outcome)
        return settled

    def uses(self) -> Counter[int]:
        """Count the calls that have not ended by the number of their function."""
        waiting = Counter(item[0] for _target, item in self._waiting)
        return sum((batch.uses() for batch in self.open.values()), waiting)

    # --- out ------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        return self._next + len(self._waiting)

    handed_in = total

    @property
    def has_more(self) -> bool:
        return bool(self._waiting) or bool(self.again)

    def has_at_least(self, count: int) -> bool:
        return len(self._waiting) >= count

    def take_fresh(self, workers: int, at_most: int) -> Batch | None:
        waiting = len(self._waiting)
        if not waiting:
            return None
        size = min(waiting, self.size(waiting, workers, at_most))
        taken = [self._waiting.popleft() for _ in range(size)]
        batch = Batch(self, self._next, [item for _, item in taken], [target for target, _ in taken])
        self._next += size
        return batch

    def encode(self, batch: Batch, serializer: Serializer) -> Encoded:
        return serializer.encode_calls(batch.items, batch.unpicklable.__setitem__, by_value=batch.by_value)

    # --- back -----------------------------------------------------------------------------------

    def is_settled(self, batch: Batch, offset: int) -> bool:
        assert batch.targets is not None
        return self.cancelled or batch.targets[offset].has_outcome

    def accept(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        assert batch.targets is not None
        for offset, target in enumerate(batch.targets):
            error = failed.get(offset) if failed else None
            if error is None:
                target.set_outcome(True, values[offset])
            else:
                target.set_outcome(False, error)

    def cancel(self, reason: BaseException) -> None:
        targets = [target for batch in self.open.values() for target in batch.targets or ()]
        targets += [target for target, _ in self._waiting]
        super().cancel(reason)
        self._waiting.clear()
        for target in targets:
            target.set_outcome(False, reason)
