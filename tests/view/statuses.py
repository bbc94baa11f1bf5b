"""Artificial statuses: of a busy pool, and of pools with extreme values everywhere."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus

__all__ = ["make_call", "make_failure", "make_status", "make_worker", "odd_statuses"]


def make_worker(number: int, seconds: float | None = None, **changes: Any) -> WorkerStatus:
    """Return an idle worker, or one that has run item 10 + `number` of `work` for `seconds`."""
    is_busy = seconds is not None
    fields: dict[str, Any] = {
        "number": number,
        "pid": 4000 + number,
        "state": "running" if is_busy else "idle",
        "function": "work" if is_busy else "",
        "item": 10 + number if is_busy else None,
        "seconds": seconds or 0.0,
        "done": 100 + number,
        "failed": 0,
        "replaced": 0,
    }
    return WorkerStatus(**{**fields, **changes})


def make_call(**changes: Any) -> CallStatus:
    fields: dict[str, Any] = {
        "function": "work",
        "kind": "map",
        "total": 200,
        "done": 50,
        "failed": 0,
        "seconds": 10.0,
    }
    return CallStatus(**{**fields, **changes})


def make_failure(**changes: Any) -> FailureStatus:
    fields: dict[str, Any] = {
        "seconds": 3.0,
        "worker": 1,
        "function": "work",
        "item": 7,
        "error": "ValueError: no such thing",
    }
    return FailureStatus(**{**fields, **changes})


def make_status(workers: tuple[WorkerStatus, ...] | int = 2, **changes: Any) -> PoolStatus:
    """Return the status of a running pool, by default with busy workers."""
    if isinstance(workers, int):
        workers = tuple(make_worker(number, 1.0 + number) for number in range(workers))
    fields: dict[str, Any] = {
        "name": "pool-1",
        "pid": 4711,
        "state": "RUN",
        "start_method": "fork",
        "processes": len(workers),
        "uptime": 65.0,
        "calls": 0,
        "workers": workers,
    }
    return PoolStatus(**{**fields, **changes})


# --- whatever may come --------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(
        st.one_of(st.characters(), st.sampled_from("\x1b[]\n\t\r\u202e\u200d\u0301\ud83d字😀⠿❤\ufe0f")), max_size=12
    ),
    st.sampled_from(["", "[bold red]x[/]", "[/]", "\x1b[2J\x1b[31m", "字" * 500, "x" * 2000, "e\u0301" * 300, "مرحبا"]),
)
COUNTS = st.one_of(st.integers(0, 10), st.integers(0, 2**64 - 1))
TIMES = st.one_of(st.floats(0, 100), st.floats(0, 1e12))
NUMBERS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e308]))

WORKERS = st.builds(
    WorkerStatus,
    number=st.integers(0, 5000),
    pid=st.sampled_from([0, 1, 4194304]),
    state=st.sampled_from(["starting", "idle", "loading", "running", "saving", "sending", "empty"]),
    function=TEXTS,
    item=st.one_of(st.none(), COUNTS),
    seconds=TIMES,
    done=COUNTS,
    failed=COUNTS,
    replaced=COUNTS,
    argument=TEXTS,
    progress=NUMBERS,
    total=NUMBERS,
    note=TEXTS,
    cpu=st.one_of(st.none(), st.floats(0, 1e9)),
    rss=st.one_of(st.none(), COUNTS),
)
CALLS = st.builds(
    CallStatus,
    function=TEXTS,
    kind=st.sampled_from(["map", "imap", "apply"]),
    total=st.one_of(st.none(), st.just(0), COUNTS),
    done=COUNTS,
    failed=COUNTS,
    seconds=TIMES,
)
FAILURES = st.builds(
    FailureStatus, seconds=TIMES, worker=st.one_of(st.none(), COUNTS), function=TEXTS, item=COUNTS, error=TEXTS
)

odd_statuses = st.builds(
    PoolStatus,
    name=TEXTS,
    pid=COUNTS,
    state=st.sampled_from(["RUN", "CLOSE", "TERMINATE"]),
    start_method=st.sampled_from(["fork", "forkserver", "direct"]),
    processes=COUNTS,
    uptime=TIMES,
    calls=COUNTS,
    workers=st.lists(WORKERS, max_size=6).map(tuple),
    done=COUNTS,
    failed=COUNTS,
    pending=COUNTS,
    rates=st.lists(COUNTS, max_size=60).map(tuple),
    running=st.lists(CALLS, max_size=3).map(tuple),
    failures=st.lists(FAILURES, max_size=3).map(tuple),
    remark=TEXTS,
)
