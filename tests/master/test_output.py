"""Test `Pool(capture=...)` and `Pool(log_level=...)`: the output of tasks arrives in whole lines, also if they die."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairpool import InitializerFailed, OutputLine, Pool, TaskTimeout, WorkerDied
from pairpool.master import output, output_sinks
from pairpool.master.worker_channel import RecalledPackets
from pairpool.output_lines import LINE_BYTES
from pairpool.transport.capture import STDOUT
from pairpool.transport.log_records import pack
from pairpool.transport.protocol import CapturePacket, Packet
from tests.support import output_tasks, tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.processes import all_ended
from tests.support.scripts import python, write_script
from tests.support.waiting import PATIENCE

WAYS = ["print", "os.write", "program", "puts", "thread", "fork"]
ERROR_WAYS = ["stderr", "program error"]


class Lines:
    """A callable for `Pool(capture=...)` that keeps every line."""

    def __init__(self) -> None:
        self.all: list[OutputLine] = []
        self._came = threading.Condition()

    def __call__(self, line: OutputLine) -> None:
        with self._came:
            self.all.append(line)
            self._came.notify_all()

    def wait(self, text: str, count: int = 1) -> None:
        """Wait until `count` lines of this text have arrived."""
        with self._came:
            assert self._came.wait_for(lambda: self.texts().count(text) >= count, PATIENCE), self.all

    def texts(self, stream: str = "") -> list[str]:
        return [line.text for line in self.all if stream in ("", line.stream)]


class Records(logging.Handler):
    """A handler that keeps every record of the logger `tasks` and of its descendants."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def records() -> Iterator[Records]:
    logger, handler = logging.getLogger("tasks"), Records()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def pipe_ends() -> int:
    """Return how many descriptors of this process are pipes."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself is closed by now
            found += os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
    return found


def end(pool: Pool) -> None:
    pool.close()
    pool.join()


# --- what is captured ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("start_method")
class TestEveryWay:
    def test_the_output_of_every_way_to_write_is_captured(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(capture=lines)
        assert pool.map(output_tasks.write_every_way, range(4), chunksize=1) == list(range(4))
        end(pool)
        assert Counter(lines.texts("stdout")) == Counter(f"{way} {x}" for way in WAYS for x in range(4))
        assert Counter(lines.texts("stderr")) == Counter(f"{way} {x}" for way in ERROR_WAYS for x in range(4))

    def test_lines_say_who_wrote_them(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(capture=lines)
        pids = pool.map(output_tasks.say, map(str, range(20)), chunksize=1)
        numbers = {worker.pid: worker.number for worker in pool.status().workers}
        end(pool)
        assert sorted((int(line.text), line.pid) for line in lines.all) == list(enumerate(pids))
        assert all(numbers[line.pid] == line.worker for line in lines.all)
        assert {line.stream for line in lines.all} == {"stdout"}

    def test_the_output_of_initializers_is_captured(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(initializer=output_tasks.say_at_start, initargs=("hello",), capture=lines)
        pool.map(tasks.square, range(10))
        lines.wait("hello", 4)
        pool.terminate()
        assert lines.texts("stdout") == lines.texts("stderr") == ["hello", "hello"]

    def test_the_output_of_a_failing_initializer_is_captured(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(1, initializer=output_tasks.say_and_fail, initargs=("last words",), capture=lines)
        with pytest.raises(InitializerFailed):
            pool.apply(tasks.square, (1,))
        pool.terminate()
        assert lines.texts("stdout") == lines.texts("stderr") == ["last words"]

    def test_the_output_of_replacement_workers_is_captured(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(maxtasksperchild=1, capture=lines)
        pids = pool.map(output_tasks.say, map(str, range(12)), chunksize=1)
        end(pool)
        assert len(set(pids)) == 12
        assert sorted((int(line.text), line.pid) for line in lines.all) == list(enumerate(pids))

    def test_the_output_of_workers_added_later_is_captured(
        self, make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate
    ) -> None:
        pool = make_pool(1, capture=lines)
        pool.resize(3)
        say = functools.partial(output_tasks.say_and_hold, reports.path, gate.path)
        result = pool.map_async(say, ["a", "b", "c"], chunksize=1)
        assert len(set(reports.take(3))) == 3
        gate.let(3)
        result.get(PATIENCE)
        end(pool)
        assert {line.worker for line in lines.all} == {0, 1, 2}

    def test_a_task_that_writes_much_does_not_wait_for_the_master(
        self, make_pool: MakePool, lines: Lines, reports: Reports
    ) -> None:
        pool = make_pool(1, capture=lines)
        stream = pool.imap(functools.partial(output_tasks.say_much_and_tell, reports.path), [100_000])
        assert reports.next() == "done"  # the task has written 10 MB, and no thread has driven the pool
        assert next(stream) == 100_000
        end(pool)
        assert [int(line.text[:6]) for line in lines.all] == list(range(100_000))
        assert {len(line.text) for line in lines.all} == {99}

    def test_an_open_pool_can_be_captured(
        self, make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate, capfd: pytest.CaptureFixture[str]
    ) -> None:
        pool = make_pool(2)
        pool.map(output_tasks.say, ["before"])
        say = functools.partial(output_tasks.say_and_hold, reports.path, gate.path)
        busy = pool.map_async(say, ["early", "early"], chunksize=1)
        reports.take(2)
        pool._engine.start_capture(output_sinks.each_line(lines))
        pool._engine.start_capture(output_sinks.each_line(lines))
        gate.let(2)
        busy.get(PATIENCE)
        pids = pool.map(output_tasks.say, ["a"] * 10, chunksize=1)
        pool.resize(3)
        result = pool.map_async(say, ["late"] * 3, chunksize=1)
        reports.take(3)
        gate.let(3)
        result.get(PATIENCE)
        end(pool)
        assert lines.texts() == ["a"] * 10 + ["late"] * 3
        assert [line.pid for line in lines.all[:10]].sort() == pids.sort()
        assert capfd.readouterr().out == "before\nearly\nearly\n"


def test_lines_of_different_workers_do_not_mix(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(2, capture=lines)
    pool.map(output_tasks.say_numbers, range(4), chunksize=1)
    end(pool)
    expected = [f"{who} says {number} {'=' * (number % 60)}" for who in range(4) for number in range(2000)]
    assert sorted(lines.texts()) == sorted(expected)
    for who in range(4):
        mine = [line for line in lines.texts() if line.startswith(f"{who} ")]
        assert mine == expected[2000 * who : 2000 * (who + 1)]


def test_threads_of_one_task_lose_nothing(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(1, capture=lines)
    pool.apply(output_tasks.say_from_threads, (3,))
    end(pool)
    written = "".join(sorted("".join(lines.texts())))
    expected = "".join(f"{who} says {number} {'=' * (number % 60)}" for who in range(3) for number in range(2000))
    assert written == "".join(sorted(expected))


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b"no end", ["no end"]),
        (b"\xff\x00\x80\n\xc3", ["\ufffd\0\ufffd", "\ufffd"]),
        (b"10%\r50%\r100%\nnext\n", ["100%", "next"]),
        (b"x" * (3 * LINE_BYTES) + b"\n", ["x" * LINE_BYTES] * 3),
        ("ünï €\n".encode(), ["ünï €"]),
    ],
)
def test_unusual_output(make_pool: MakePool, lines: Lines, written: bytes, found: list[str]) -> None:
    pool = make_pool(1, capture=lines)
    pool.apply(output_tasks.write_bytes, (written,))
    end(pool)
    assert lines.texts() == found


def test_output_of_c_without_a_line_end(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(1, capture=lines)
    pool.apply(output_tasks.write_c, (b"one\ntwo",))
    end(pool)
    assert lines.texts() == ["one", "two"]


# --- streams of Python --------------------------------------------------------------------------------


def test_streams_use_utf8_and_line_buffering(make_pool: MakePool) -> None:
    assert make_pool(1, capture=True).apply(output_tasks.stream_settings) == [("utf-8", True)] * 2


def test_output_is_captured_although_the_program_had_replaced_stdout(make_pool: MakePool, lines: Lines) -> None:
    memory = io.StringIO()
    with contextlib.redirect_stdout(memory):
        pool = make_pool(1, capture=lines)
        pool.apply(output_tasks.say, ("through",))
        end(pool)
    assert lines.texts() == ["through"]
    assert memory.getvalue() == ""


def test_a_stream_that_an_initializer_has_replaced_stays(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(1, initializer=output_tasks.put_own_stream, capture=lines)
    assert pool.apply(output_tasks.print_to_own_stream, ("mine",)) == "mine\n"
    assert pool.apply(output_tasks.print_redirected, ("redirected",)) == "redirected\n"
    pool._engine.start_capture(output_sinks.each_line(lines))
    assert pool.apply(output_tasks.print_to_own_stream, ("too",)) == "mine\ntoo\n"
    end(pool)
    assert lines.all == []


def test_a_late_capture_leaves_a_stream_that_an_initializer_has_replaced(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(1, initializer=output_tasks.put_own_stream)
    assert pool.apply(output_tasks.print_to_own_stream, ("mine",)) == "mine\n"
    pool._engine.start_capture(output_sinks.each_line(lines))
    assert pool.apply(output_tasks.print_to_own_stream, ("too",)) == "mine\ntoo\n"
    pool.apply(output_tasks.write_bytes, (b"taken\n",))
    end(pool)
    assert lines.texts() == ["taken"]


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "direct"])
def test_capture_in_a_program_without_standard_streams(tmp_path: Path, start_method: str) -> None:
    """Run a program without stdin, stdout and stderr, like a daemon, whose tasks write to these streams."""
    script = write_script(
        tmp_path,
        f"""
        import logging, os, sys
        from pairpool import Pool
        from tests.support import output_tasks
        if __name__ == "__main__":
            assert sys.stdout is None and sys.stderr is None
            file = open({str(tmp_path / "log")!r}, "a")
            def keep(line):
                file.write(f"{{line.stream}} {{line.text}}\\n")
            with Pool(1, start_method={start_method!r}, capture=keep, log_level="INFO") as pool:
                pool.apply(output_tasks.write_every_way, (1,))
            with Pool(1, start_method={start_method!r}, capture=True) as pool:
                pool.apply(output_tasks.write_every_way, (1,))
            file.close()
        """,
    )
    command = [sys.executable, str(script)]
    finished = python("-c", f"import os; os.closerange(0, 3); os.execv({sys.executable!r}, {command!r})")
    assert finished.returncode == 0
    expected = [f"stdout {way} 1" for way in WAYS] + [f"stderr {way} 1" for way in ERROR_WAYS]
    assert Counter((tmp_path / "log").read_text().splitlines()) == Counter(expected)


# --- the end of a worker, and of the pool -------------------------------------------------------------


@pytest.mark.usefixtures("start_method")
class TestLastLines:
    @pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
    @pytest.mark.parametrize("line_end", ["", "\n"])
    def test_the_last_line_of_a_worker_that_dies(
        self, make_pool: MakePool, lines: Lines, how: str, line_end: str
    ) -> None:
        pool = make_pool(1, capture=lines)
        with pytest.raises(WorkerDied):
            pool.apply(output_tasks.say_and_die, (how, "last words", line_end))
        lines.wait("last words")
        assert pool.apply(output_tasks.say, ("the next",)) > 0
        end(pool)
        assert lines.texts() == ["last words", "the next"]

    def test_the_last_line_of_c_code_that_dies(self, make_pool: MakePool, lines: Lines) -> None:
        pool = make_pool(1, capture=lines)
        with pytest.raises(WorkerDied):
            pool.apply(output_tasks.put_c_and_die, ("last words",))
        lines.wait("last words")

    def test_the_last_line_of_a_task_over_its_time_limit(
        self, make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate
    ) -> None:
        pool = make_pool(1, capture=lines)
        with pytest.raises(TaskTimeout):
            pool.apply(output_tasks.say_and_hold, (reports.path, gate.path, "slow"), task_timeout=0.2)
        lines.wait("slow")

    def test_terminate_hands_over_what_was_written(
        self, make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate
    ) -> None:
        pool = make_pool(2, capture=lines)
        say = functools.partial(output_tasks.say_and_hold, reports.path, gate.path)
        pool.map_async(say, ["one", "two"], chunksize=1)
        reports.take(2)
        pool.terminate()
        assert sorted(lines.texts()) == ["one", "two"]

    def test_the_end_of_a_with_block_hands_over_what_was_written(
        self, lines: Lines, reports: Reports, gate: Gate, start_method: str
    ) -> None:
        with Pool(1, start_method=start_method, capture=lines) as pool:
            pool.apply_async(output_tasks.say_and_hold, (reports.path, gate.path, "word"))
            reports.next()
        assert lines.texts() == ["word"]


def test_close_waits_until_written_lines_are_handed_over(
    make_pool: MakePool, reports: Reports, gate: Gate, tmp_path: Path
) -> None:
    """The sink is slow. Meanwhile a task that has written goes on."""
    seen: list[str] = []
    found: list[list[str]] = []

    with Gate(tmp_path / "sink") as sink_gate:

        def keep(line: OutputLine) -> None:
            tasks.wait_for(sink_gate.path)
            seen.append(line.text)

        def close() -> None:
            pool.close()
            found.append(list(seen))

        pool: Pool = make_pool(1, capture=keep)
        result = pool.apply_async(output_tasks.say_and_hold, (reports.path, gate.path, "word"))
        reports.next()
        closer = threading.Thread(target=close)
        closer.start()
        closer.join(0.1)
        sink_gate.let()
        closer.join(PATIENCE)
        assert found == [["word"]]
        gate.let()
        result.get(PATIENCE)
        pool.join()


def test_a_collector_reads_all_that_is_there_when_it_is_closed(lines: Lines, records: Records) -> None:
    collector = output.Collector(output_sinks.each_line(lines), streams=True, level=logging.INFO)
    packets = collector.attach(3, 4711, streams=True, log=True)
    for (_header, outlet), text in zip(packets, (b"one\nnot ended", b"two"), strict=False):
        os.write(outlet.fd.fileno(), text)
    record = logging.makeLogRecord({"name": "tasks", "msg": "three", "levelno": logging.INFO})
    os.write(packets[2][1].fd.fileno(), pack(record))
    collector.close()  # the other ends are still open
    collector.close()
    assert lines.all == [
        OutputLine(3, 4711, "stdout", "one"),
        OutputLine(3, 4711, "stdout", "not ended"),
        OutputLine(3, 4711, "stderr", "two"),
    ]
    assert [record.getMessage() for record in records.all] == ["three"]


@pytest.mark.parametrize("start_method", ["fork", "direct"])
def test_the_end_of_a_pool_does_not_wait_for_an_escaped_process(
    make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate, start_method: str
) -> None:
    pool = make_pool(1, start_method=start_method, capture=lines)
    pool.apply(output_tasks.leave_a_daemon, (reports.path, gate.path, "not ended"))
    daemon = int(reports.next())
    began = time.monotonic()
    pool.terminate()
    assert time.monotonic() - began < PATIENCE / 2
    assert lines.texts() == ["not ended"]
    gate.let()
    assert all_ended([daemon])


def test_workers_that_die_leave_no_descriptor(make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(2, capture=lines, log_level="INFO")
    pool.resize(2)
    ends, everything = pipe_ends(), len(os.listdir("/proc/self/fd"))
    for number in range(30):
        with pytest.raises(WorkerDied):
            pool.apply(output_tasks.say_and_die, ("kill", str(number), "\n"))
        lines.wait(str(number))
    pool._repopulate_pool()
    pool.map(output_tasks.say, ["after"] * 4, chunksize=1)
    pool._engine.settle_output()
    assert pipe_ends() == ends
    assert len(os.listdir("/proc/self/fd")) <= everything + 2  # a spare zygote has two
    pool.terminate()


@pytest.mark.usefixtures("start_method")
def test_a_worker_has_only_its_own_pipes(make_pool: MakePool, reports: Reports, gate: Gate) -> None:
    """If a worker had the master's ends or those of other workers, a pipe would stay open after its worker's end."""
    inherited = output_tasks.pipes()
    plain = make_pool(1)
    others = len(
        plain.apply(output_tasks.pipes) - inherited
    )  # pipes of libraries: libuv makes some in every forked child
    pool = make_pool(1, capture=True)
    pool.apply(tasks.square, (1,))
    pool.resize(3)
    results = [pool.apply_async(output_tasks.pipes_and_hold, (reports.path, gate.path)) for _worker in range(3)]
    assert len(set(reports.take(3))) == 3
    gate.let(3)
    found = [result.get(PATIENCE) - inherited for result in results]
    assert [len(pipes) for pipes in found] == [2 + others] * 3
    assert len(set.union(*found)) == 3 * (2 + others)


def test_unread_packets_are_taken_back_with_their_descriptors(
    make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate
) -> None:
    """Recall batches while the socket of a busy worker also has the packets that start a capture."""
    pool = make_pool(1)
    hold = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    reports.next()
    queued = [pool.apply_async(output_tasks.say, (str(number),)) for number in range(3)]
    pool._engine.start_capture(output_sinks.each_line(lines))
    worker = pool._engine.workers.members[0]
    before = pipe_ends()
    for result in queued[:2]:
        assert result.cancel()
    assert pipe_ends() == before

    def recall() -> bool:
        pool._engine.queue.put_back(worker.recall())
        return True

    for _round in range(3):
        assert pool._engine._ask(recall)
    gate.let()
    hold.get(PATIENCE)
    queued[2].get(PATIENCE)
    pool.apply(output_tasks.say, ("more",))
    end(pool)
    assert lines.texts() == ["2", "more"]


@pytest.mark.parametrize("lost", [False, True])
def test_no_batch_overtakes_the_start_of_a_capture(
    make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate, capfd: pytest.CaptureFixture[str], lost: bool
) -> None:
    """A worker reads the batches behind a capture packet while the master has recalled that packet.

    1. The master recalls the capture packet.
    2. The worker reads all batches behind it. It must not run them yet.
    3. The master sends the capture packet again, with or without its descriptor.
    4. The worker runs the batches, and their output goes where the packet says.
    """
    pool = make_pool(1)
    hold = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    reports.next()
    pool._engine.start_capture(output_sinks.each_line(lines))
    said = [pool.apply_async(output_tasks.write_every_way, (number,)) for number in range(3)]
    worker = pool._engine.workers.members[0]

    def take_back() -> tuple[Packet, list[int]]:
        packet, _payload, fds = worker.worker_end.receive(wait=False)
        return packet, fds

    def send_again() -> bool:
        packet, fds = taken
        recalled = RecalledPackets([], [])
        worker._undo_sending(packet, memoryview(b""), None if lost else fds, recalled)
        assert [not outgoing.fds for outgoing in recalled.resend] == [lost]
        worker.send_again(recalled)
        return True

    taken = pool._engine.inquire(take_back)
    assert taken[0] == CapturePacket(STDOUT)
    gate.let()
    hold.get(PATIENCE)
    while select.select([worker.worker_end], [], [], 0)[0]:
        time.sleep(0.001)  # until the worker has read the rest
    pool._engine.inquire(send_again)
    assert [one.get(PATIENCE) for one in said] == list(range(3))
    end(pool)
    if lost:
        for fd in taken[1]:
            os.close(fd)
    taken_here, printed = lines.texts("stdout"), capfd.readouterr().out.splitlines()
    assert Counter(printed if lost else taken_here) == Counter(f"{way} {x}" for way in WAYS for x in range(3))
    assert (taken_here if lost else printed) == []
    assert Counter(lines.texts("stderr")) == Counter(f"{way} {x}" for way in ERROR_WAYS for x in range(3))


def test_capture_packets_that_a_killed_worker_has_not_read_leak_nothing(
    make_pool: MakePool, lines: Lines, reports: Reports, gate: Gate
) -> None:
    pool = make_pool(1)
    hold = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    pid = int(reports.next().split()[0])
    pool._engine.start_capture(output_sinks.each_line(lines))
    before = pipe_ends()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        hold.get(PATIENCE)
    assert pool.apply(output_tasks.say, ("the next",)) != pid
    lines.wait("the next")
    assert pipe_ends() == before
    assert len(pool._engine.supervisor.collector._sources) == 2  # type: ignore[union-attr]


# --- sinks --------------------------------------------------------------------------------------------


def test_by_default_lines_are_printed_with_the_number_of_their_worker(
    make_pool: MakePool, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool(1, capture=True)
    pool.apply(output_tasks.write_every_way, (7,))
    end(pool)
    out, err = capsys.readouterr()
    assert "[worker 0] print 7\n" in out
    assert "[worker 0] program 7\n" in out
    assert sorted(err.splitlines()) == ["[worker 0] program error 7", "[worker 0] stderr 7"]


def test_lines_go_to_the_present_stdout(make_pool: MakePool) -> None:
    pool = make_pool(1, capture=True)
    found = []
    for text in ("one", "two"):
        with contextlib.redirect_stdout(io.StringIO()) as memory:
            pool.apply(output_tasks.say, (text,))
            pool._engine.settle_output()
        found.append(memory.getvalue())
    with contextlib.redirect_stdout(None):
        pool.apply(output_tasks.say, ("nowhere",))
        pool._engine.settle_output()
    assert found == ["[worker 0] one\n", "[worker 0] two\n"]


def test_each_write_has_whole_lines(make_pool: MakePool) -> None:
    """Each write has one or several whole lines, so that the program's own output does not come between."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    with contextlib.redirect_stdout(Stream()):
        pool = make_pool(2, capture=True)
        pool.map(output_tasks.say_numbers, range(4), chunksize=1)
        end(pool)
    assert all(text.endswith("\n") and text.startswith("[worker ") for text in writes)
    assert sum(text.count("\n") for text in writes) == 8000


def test_the_sink_can_be_replaced_at_any_time(make_pool: MakePool, lines: Lines) -> None:
    other = Lines()
    pool = make_pool(1, capture=lines)
    pool.apply(output_tasks.say, ("one",))
    lines.wait("one")
    pool._engine.start_capture(output_sinks.each_line(other))
    pool.apply(output_tasks.say, ("two",))
    end(pool)
    assert (lines.texts(), other.texts()) == (["one"], ["two"])


def test_the_exception_of_a_callable_is_logged_once(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(line: OutputLine) -> None:
        seen.append(line.text)
        raise SystemExit("on purpose")

    pool = make_pool(2, capture=fail)
    pool.map(output_tasks.say, map(str, range(20)), chunksize=1)
    end(pool)
    assert sorted(map(int, seen)) == list(range(20))
    assert [record.name for record in caplog.records] == ["pairpool"]
    assert "sink" in caplog.text
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("gone", ["pipe", "disk"])
def test_a_stream_that_takes_no_more_text_is_logged_in_one_line(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    """stdout fails, as after `| head`. The lines of stderr are not lost."""
    if gone == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    stream = os.fdopen(writer, "w", closefd=False)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()) as memory:
        pool = make_pool(1, capture=True)
        for number in range(3):
            pool.apply(output_tasks.write_every_way, (number,))
        end(pool)
    os.close(writer)
    with contextlib.suppress(OSError):
        stream.close()
    assert sum("stderr" in line for line in memory.getvalue().splitlines()) == 3
    assert len(caplog.records) == 1
    assert re.fullmatch(r"what tasks write to stdout is lost from here on: \w.*", caplog.records[0].getMessage())
    assert caplog.records[0].exc_info is None


def test_a_callable_may_use_the_pool(make_pool: MakePool) -> None:
    results: list[int] = []
    pool: Pool = make_pool(2, capture=lambda line: results.append(pool.apply(tasks.square, (int(line.text),))))
    pool.map(output_tasks.say, map(str, range(10)), chunksize=1)
    pool._engine.settle_output()
    assert sorted(results) == [x * x for x in range(10)]


def test_a_callable_may_end_the_pool(make_pool: MakePool) -> None:
    """The collector's thread, which calls the callable, cannot wait for its own end. It hands over the rest."""
    ended = threading.Event()

    def act(line: OutputLine) -> None:
        if line.text == "0":
            pool.terminate()
            ended.set()

    pool = make_pool(1, capture=act)
    pool.map_async(output_tasks.say, ["0", "1"], chunksize=1)
    assert ended.wait(PATIENCE)
    pool.join()
    with pytest.raises(ValueError, match="not running"):
        pool.map(tasks.square, [1])


def test_a_slow_sink_delays_tasks_and_loses_nothing(make_pool: MakePool, gate: Gate) -> None:
    """Tasks that write wait for a stopped sink, as for a full pipe. All others go on."""
    seen: list[str] = []

    def keep(line: OutputLine) -> None:
        if not seen:
            tasks.wait_for(gate.path)
        seen.append(line.text)

    pool = make_pool(2, capture=keep)
    result = pool.apply_async(output_tasks.say_numbers, (1,))
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
    gate.let()
    result.get(PATIENCE)
    end(pool)
    assert len(seen) == 2000


# --- log records --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("start_method")
class TestRecords:
    def test_levels(self, make_pool: MakePool, records: Records) -> None:
        pool = make_pool(2, log_level=logging.INFO)
        logging.getLogger("tasks").setLevel(logging.NOTSET)
        logging.getLogger("tasks.levels").setLevel(logging.INFO)
        pool.map(output_tasks.log_every_level, range(10))
        end(pool)
        logging.getLogger("tasks.levels").setLevel(logging.NOTSET)
        expected = [f"{level} {x}" for level in ("info", "warning") for x in range(10)]
        assert sorted(record.getMessage() for record in records.all) == sorted(expected)
        assert {record.levelname for record in records.all} == {"INFO", "WARNING"}

    def test_a_record_names_its_worker_and_its_code(self, make_pool: MakePool, records: Records) -> None:
        pool = make_pool(2, log_level="warning")
        pids = pool.map(functools.partial(output_tasks.log_as, "tasks.deep.down"), map(str, range(20)), chunksize=1)
        numbers = {worker.pid: worker.number for worker in pool.status().workers}
        end(pool)
        assert sorted((int(record.getMessage()), record.process) for record in records.all) == list(enumerate(pids))
        for record in records.all:
            assert record.worker == numbers[record.process]
            assert (record.name, record.funcName) == ("tasks.deep.down", "log_as")
            assert record.filename == "output_tasks.py"

    def test_records_of_initializers_and_of_dead_workers_arrive(self, make_pool: MakePool, records: Records) -> None:
        pool = make_pool(1, initializer=output_tasks.log_at_start, initargs=("hello",), log_level="INFO")
        with pytest.raises(WorkerDied):
            pool.apply(output_tasks.log_and_die, ("last words",))
        pool.apply(tasks.square, (1,))
        end(pool)
        assert [record.getMessage() for record in records.all] == ["hello", "last words", "hello"]

    def test_inherited_handlers_do_nothing_in_workers(
        self, make_pool: MakePool, records: Records, tmp_path: Path
    ) -> None:
        logger = logging.getLogger("tasks.own")
        handler = logging.FileHandler(tmp_path / "log")
        logger.addHandler(handler)
        logger.propagate = False
        pool = make_pool(1, log_level="INFO", capture=True)
        pool.apply(output_tasks.log_as, ("tasks.own", "once"))
        pool.apply(output_tasks.log_as, ("tasks.other", "twice"))
        end(pool)
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = True
        assert (tmp_path / "log").read_text() == "once\n"
        assert [record.getMessage() for record in records.all] == ["twice"]


def test_exceptions_are_formatted(make_pool: MakePool, records: Records) -> None:
    pool = make_pool(1, log_level="INFO")
    pool.apply(output_tasks.log_exception)
    end(pool)
    (record,) = records.all
    assert (record.getMessage(), record.exc_info) == ("it failed", None)
    text = logging.Formatter("%(message)s").format(record)
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
    assert text.endswith("ValueError: deliberate")


def test_extra_attributes(make_pool: MakePool, records: Records) -> None:
    pool = make_pool(1, log_level="INFO")
    pool.apply(output_tasks.log_extra)
    end(pool)
    (record,) = records.all
    assert record.getMessage() == "100 % sure"
    assert record.plain == {"a": [1, 2.5, None]}
    assert record.odd == "peculiar text"
    assert record.worse == "<Unspeakable, whose text raises RuntimeError>"
    assert record.deep == [[[["[[1]]"]]]]


@pytest.mark.parametrize("size", [10, 60_000, 100_000, 200_000, 5_000_000])
def test_large_records_are_cut(make_pool: MakePool, records: Records, size: int) -> None:
    pool = make_pool(1, log_level="INFO")
    pool.apply(output_tasks.log_large, (size,))
    end(pool)
    (record,) = records.all
    message = record.getMessage()
    assert message.startswith("<ä")
    assert message.endswith("ä>")
    if size <= 60_000:
        assert len(message) == size + 2
        assert len(record.large) == size
    else:
        assert "bytes cut" in message
        assert 40_000 < len(message.encode()) < 200_000


def test_records_of_many_threads(make_pool: MakePool, records: Records) -> None:
    pool = make_pool(2, log_level="INFO")
    pool.map(output_tasks.log_from_threads, [4, 4], chunksize=1)
    end(pool)
    found = Counter(record.getMessage() for record in records.all)
    assert found == {f"{who} {number}": 2 for who in range(4) for number in range(500)}


def test_records_do_not_mix_with_output(make_pool: MakePool, records: Records, lines: Lines) -> None:
    pool = make_pool(1, log_level="INFO", capture=lines)
    pool.apply(output_tasks.log_as, ("tasks", "logged"))
    pool.apply(output_tasks.say, ("printed",))
    end(pool)
    assert lines.texts() == ["printed"]
    assert [record.getMessage() for record in records.all] == ["logged"]


def test_log_records_alone_leave_the_output_as_it_is(
    make_pool: MakePool, records: Records, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool(1, log_level="INFO")
    pool.apply(output_tasks.write_bytes, (b"printed\n",))
    end(pool)
    assert capfd.readouterr().out == "printed\n"
    assert records.all == []


def test_a_handler_that_raises_does_not_stop_the_others(
    make_pool: MakePool, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "bad":
            raise RuntimeError("a filter that fails")
        return True

    records.addFilter(refuse)
    pool = make_pool(1, log_level="INFO")
    for text in ("good", "bad", "bad", "good"):
        pool.apply(output_tasks.log_as, ("tasks", text))
    end(pool)
    assert [record.getMessage() for record in records.all] == ["good", "good"]
    assert [record.message for record in caplog.records if record.name == "pairpool"] == [
        "logger 'tasks', given a worker's record, raised an exception; output goes on"
    ]


# --- arguments and limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("capture", [None, 1, "yes", []])
def test_capture_must_be_a_bool_or_callable(capture: Any) -> None:
    with pytest.raises(TypeError, match="capture must be"):
        Pool(1, capture=capture)


@pytest.mark.parametrize(
    ("level", "error"), [("LOUD", ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)]
)
def test_log_level_must_be_a_level(level: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="log_level must be"):
        Pool(1, log_level=level)


def test_a_pool_that_needs_too_many_descriptors_says_so(tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        """
        import os, resource
        from pairpool import Pool
        from tests.support import output_tasks
        def leave(count):
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + count, 4096))
        leave(36)
        with Pool(4) as pool:
            pool.map(abs, range(10))
        try:
            Pool(4, capture=True, log_level="INFO")
        except OSError as error:
            print(error)
        with Pool(4) as pool:
            pool.resize(4)
            leave(6)
            try:
                pool._engine.start_capture(print)
            except OSError as error:
                print(error)
            print(pool.map(abs, range(3)))
        """,
    )
    finished = python(script)
    assert finished.returncode == 0, finished.stderr
    opened, captured, result = finished.stdout.splitlines()
    assert "a pool of 4 workers needs about 44 descriptors, but RLIMIT_NOFILE allows" in opened
    assert "the output of 4 workers needs about 8 descriptors" in captured
    assert result == "[0, 1, 2]"


def test_a_worker_works_without_capture_if_there_is_no_pipe(
    make_pool: MakePool, lines: Lines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, capture=lines)

    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe2", refuse)
        with pytest.raises(WorkerDied):
            pool.apply(tasks.exit_now)
        assert pool.apply(tasks.square, (3,)) == 9
    assert "cannot be captured: [Errno 24] Too many open files" in caplog.text


def test_a_pool_without_capture_has_no_thread(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.map(tasks.square, range(10))
    assert threading.active_count() == 1
    assert "pairpool-output" not in {thread.name for thread in threading.enumerate()}


def test_a_program_that_ends_with_its_pool_open(tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        """
        from pairpool import Pool
        from tests.support import output_tasks
        pool = Pool(1, capture=True)
        pool.apply(output_tasks.say, ("written",))
        pool.apply(output_tasks.write_bytes, (b"not ended",))
        """,
    )
    finished = python(script)
    assert finished.stdout == "[worker 0] written\n[worker 0] not ended\n"
    assert finished.returncode == 0, finished.stderr
