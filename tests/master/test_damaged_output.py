"""A task damages its output in any way: the outputs of other tasks arrive, and no other item fails."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pairpool import OutputLine
from pairpool.linux import pidfds
from tests.support import damaging_tasks
from tests.support.damaging_tasks import DAMAGES, LOG_DAMAGES
from tests.support.pools import MakePool
from tests.support.waiting import PATIENCE


class Records(logging.Handler):
    """Keeps the messages of the logger `tasks`."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def records() -> Iterator[Records]:
    logger, handler = logging.getLogger("tasks"), Records()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if "direction" not in kind])
def test_the_output_of_other_tasks_arrives(
    make_pool: MakePool, records: Records, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    lines: list[OutputLine] = []
    pool = make_pool(1, capture=lines.append, log_level="INFO")
    for _time in range(3):
        pid = pool.apply_async(damaging_tasks.damage, (kind,)).get(PATIENCE)
        if "shutdown" in kind or "socket" in kind:
            await_end(pid)  # the worker ends after the task, because nothing can mend the socket
        found = pool.map_async(damaging_tasks.print_and_log, range(20)).get(PATIENCE)
        assert found == [x * x for x in range(20)]
    pool.close()
    pool.join()
    assert Counter(line.text for line in lines if line.stream == "stdout") == {f"line {x}": 3 for x in range(20)}
    assert Counter(text for text in records.texts if text != "odd") == {f"record {x}": 3 for x in range(20)}
    warnings = [record.getMessage() for record in caplog.records if record.name == "pairpool"]
    assert len(warnings) == (kind in LOG_DAMAGES), warnings
    assert all("log records are dropped" in text for text in warnings)


def test_a_worker_whose_task_has_shut_down_one_direction_is_replaced(make_pool: MakePool, records: Records) -> None:
    """The worker notices it at the next record, or before that if the master has closed its end."""
    pool = make_pool(1, log_level="INFO")
    pid = pool.apply(damaging_tasks.damage, ("shutdown of one direction",))
    assert pool.apply(damaging_tasks.print_and_log, (99,)) == 99 * 99
    await_end(pid)
    pool.map(damaging_tasks.print_and_log, range(20))
    pool.close()
    pool.join()
    assert {text for text in records.texts if text != "record 99"} == {f"record {x}" for x in range(20)}


def await_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert pidfds.wait_ended(handle, PATIENCE)
    finally:
        os.close(handle)


def test_names_of_records_make_no_loggers(make_pool: MakePool, records: Records) -> None:
    pool = make_pool(1, log_level="INFO")
    pool.map(log_under_many_names, range(3))
    pool.close()
    pool.join()
    assert len(records.texts) == 300
    assert not [name for name in logging.root.manager.loggerDict if name.startswith("tasks.many")]


def log_under_many_names(x: int) -> None:
    for number in range(100):
        logging.getLogger(f"tasks.many.{x}.{number}").warning("%d %d", x, number)


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_handlers_and_hooks_that_raise_do_not_end_the_output(
    make_pool: MakePool, records: Records, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    """The handler raises, the filter of the warning about that raises, and the hook of the program raises, too."""

    def fail(*_args: Any) -> bool:
        raise raised("on purpose")

    records.addFilter(lambda record: fail() if record.getMessage() == "record 3" else True)
    own = logging.getLogger("pairpool")
    own.addFilter(fail)
    monkeypatch.setattr("sys.excepthook", fail)
    lines: list[str] = []
    try:
        pool = make_pool(1, capture=lambda line: lines.append(line.text), log_level="INFO")
        for _time in range(2):
            pool.map(damaging_tasks.print_and_log, range(10))
        pool.close()
        pool.join()
    finally:
        own.removeFilter(fail)
    assert Counter(lines) == {f"line {x}": 2 for x in range(10)}
    assert Counter(records.texts) == {f"record {x}": 2 for x in range(10) if x != 3}
