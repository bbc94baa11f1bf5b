"""The state of a batch in its worker: since when it runs, its limit, and the partial reports that were requested."""

from __future__ import annotations

__all__ = ["BatchRun"]


class BatchRun:
    """The part of a batch that concerns its run in a worker.

    Attributes:
        worker: number of the worker that got the batch last.
        running_since: monotonic seconds at which the batch became the one that its worker runs.
        limit: index of the first item that the worker must not begin; 0 for no limit.
        limit_set_at: monotonic seconds at which the limit was set.
        report_requests: partial reports that were requested since the worker reported last.
        first_report_request: monotonic seconds of the first of these requests.
        next_report_request: monotonic seconds before which no other report is requested.
        sent_from, sent_until: indices of the items that the worker got last; the second is exclusive.
        returns: how often workers have sent the batch back without an item that was run.
        unexplained_deaths: how many workers have died of this batch without a sign of the item that they were at.
    """

    __slots__ = (
        "first_report_request",
        "limit",
        "limit_set_at",
        "next_report_request",
        "report_requests",
        "returns",
        "running_since",
        "sent_from",
        "sent_until",
        "unexplained_deaths",
        "worker",
    )

    def __init__(self) -> None:
        self.worker: int | None = None
        self.running_since = 0.0
        self.limit = 0
        self.limit_set_at = 0.0
        self.report_requests = 0
        self.first_report_request = 0.0
        self.next_report_request = 0.0
        self.sent_from = self.sent_until = 0
        self.returns = 0
        self.unexplained_deaths = 0

    def assigned_to(self, worker: int | None, first: int, count: int) -> None:
        """Note the number of the worker that gets the batch, and the items that it gets."""
        self.worker = worker
        self.sent_from, self.sent_until = first, first + count

    def started(self, now: float) -> None:
        """Note that the worker runs this batch from `now` on."""
        self.running_since = now

    def set_limit(self, index: int, now: float) -> None:
        """Note that the worker was told not to begin the item at `index` nor any later one."""
        self.limit = index
        self.limit_set_at = now

    def clear_limit(self) -> None:
        self.limit = 0

    def report_requested(self, now: float, next_at: float) -> None:
        """Note that a partial report was requested, and that no other request is due before `next_at`."""
        if not self.report_requests:
            self.first_report_request = now
        self.next_report_request = next_at
        self.report_requests += 1

    def returned_like(self, earlier: BatchRun) -> None:
        """Note that these items were sent back without being run, as `earlier`, which had another number."""
        self.returns = earlier.returns + 1
        self.unexplained_deaths = earlier.unexplained_deaths

    def count_unexplained_death(self) -> None:
        """Note that a worker has died of this batch without a sign of the item that it was at."""
        self.unexplained_deaths += 1

    def reported(self) -> None:
        """Note that the worker has answered the requests."""
        self.report_requests = 0
