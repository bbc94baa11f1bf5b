"""The trace file: what the writer writes is what the reader reads, whatever happens to either."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pairpool
from pairpool.trace_events import LostItem, RanBatch
from pairpool.view import trace_reader
from pairpool.view.trace import TraceWriter
from pairpool.view.trace_reader import TraceReader
from tests.support.scripts import ROOT
from tests.support.waiting import PATIENCE

HOSTILE = "a\"b\\c\nd\te<&>'\x00\x7f\u2028é✖𝒳"
MS = 1_000_000


def events_of(path: Path) -> list[dict[str, Any]]:
    with TraceReader(path) as reader:
        events = list(reader.events())
        assert not reader.truncated
    assert events == json.loads(path.read_bytes())  # a closed trace is strict JSON
    return events


def spans(events: list[dict[str, Any]], cat: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["cat"] == cat]


def ns(event: dict[str, Any]) -> tuple[int, int]:
    """Begin and end."""
    return round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)


def make_trace(path: Path) -> None:
    """A small trace that has all there is."""
    writer = TraceWriter(path, name="pool é", pid=10, created=1000)
    writer.worker_began(0, 11, 2000, 0)
    writer.call_began(1, "map", "f", 3, 2000)
    writer.batch(RanBatch(0, 1, "f", 0, 3000, 7000, [4000, 5000], {1: "ValueError: é"}))
    writer.lost(LostItem(0, 1, "f", 2, 9000, 9500, "WorkerDied"))
    writer.worker_ended(0, 11, 9500, "SIGKILL", died=True)
    writer.worker_began(0, 12, 9900, 1)
    writer.call_ended(1, 9999, 3, 2)
    writer.close()


# --- what is written ---


def test_a_batch_is_a_span_with_spans_of_its_items(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    writer = TraceWriter(path, name="mine", pid=4711, created=5 * MS)
    began = 10 * MS
    stamps = [began + 100_000, began + 101_500, began + 3 * MS]
    asked = []

    def argument(offset: int) -> str:
        asked.append(offset)
        return f"<{offset}>"

    writer.batch(RanBatch(2, 7, "work", 40, began, began + 4 * MS, stamps, {1: "ValueError: no"}, argument))
    writer.close()
    events = events_of(path)
    assert asked == [1, 2]  # the others were shorter than a millisecond
    (batch,) = spans(events, "batch")
    assert (batch["ts"], batch["dur"], batch["pid"], batch["tid"]) == (5000, 4000, 4711, 3)
    assert batch["name"] == "work ×3"
    assert batch["args"] == {"call": 7, "first": 40, "items": 3}
    assert [(item["ts"], item["dur"], item["name"], item["args"]) for item in spans(events, "item")] == [
        (5100, 1.5, "work", {"call": 7, "item": 40}),
        (5101.5, 2898.5, "work", {"call": 7, "item": 41, "error": "ValueError: no", "argument": "<1>"}),
        (8000, 1000, "work", {"call": 7, "item": 42, "argument": "<2>"}),
    ]
    (load,) = spans(events, "io")
    assert (load["name"], load["ts"], load["dur"]) == ("load", 5000, 100)


def test_the_head_names_pool_version_and_time(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    before = time.time()
    TraceWriter(path, name="mine", pid=4711, created=time.monotonic_ns() - 10**9).close()
    (head,) = events_of(path)
    assert (head["ph"], head["name"], head["pid"]) == ("M", "process_name", 4711)
    assert head["args"]["name"] == "mine"
    assert head["args"]["pairpool"] == pairpool.__version__
    assert before - 1.1 < head["args"]["started"] < time.time() - 0.9


def test_workers_have_named_lanes_and_instants(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_trace(path)
    events = events_of(path)
    lanes = [(event["tid"], event["name"], event["args"]) for event in events[1:] if event["ph"] == "M"]
    assert lanes == [(1, "thread_name", {"name": "worker 0"}), (1, "thread_sort_index", {"sort_index": 0})]
    assert [(event["name"], event["ts"], event["args"]) for event in events if event["ph"] == "i"] == [
        ("worker began", 1, {"pid": 11}),
        ("worker died", 8.5, {"pid": 11, "reason": "SIGKILL"}),
        ("worker began", 8.9, {"pid": 12, "replaced": 1}),
    ]
    begin, end = (event for event in events if event["ph"] in "be")
    assert begin["id"] == end["id"] == 1
    assert begin["name"] == end["name"] == "map f"
    assert begin["cat"] == end["cat"]
    assert (begin["args"], end["args"]) == ({"total": 3}, {"done": 3, "failed": 2})
    assert spans(events, "item")[-1]["args"] == {"call": 1, "item": 2, "lost": True, "error": "WorkerDied"}


def test_items_may_have_functions_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    writer = TraceWriter(path, name="", pid=1, created=0)
    writer.batch(RanBatch(0, 1, ["f", "g"], 0, 0, 3, [1, 2], {}))
    writer.batch(RanBatch(0, 2, ["h"], 0, 10, 13, [11], {}))
    writer.close()
    assert [event["name"] for event in spans(events_of(path), "item")] == ["f", "g", "h"]


def test_hostile_texts_stay_within_their_event(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    writer = TraceWriter(path, name=HOSTILE, pid=1, created=0)
    writer.worker_ended(0, 1, 1, HOSTILE, died=False)
    writer.call_began(1, HOSTILE, HOSTILE, None, 1)
    writer.batch(RanBatch(0, 1, HOSTILE, 0, 0, 3 * MS, [1], {0: HOSTILE}, lambda _: HOSTILE))
    writer.batch(RanBatch(0, 1, "\udc80", 0, 5 * MS, 8 * MS, [5 * MS], {0: "\ud800"}, lambda _: "\udfff"))
    writer.lost(LostItem(0, 1, HOSTILE, 0, 9 * MS, 10 * MS, "x" * 10_000))
    writer.close()
    events = events_of(path)
    assert events[0]["args"]["name"] == HOSTILE
    one, two, three = spans(events, "item")
    assert one["name"] == one["args"]["error"] == one["args"]["argument"] == HOSTILE
    assert (two["name"], two["args"]["error"]) == ("\\udc80", "\\ud800")
    assert len(three["args"]["error"]) == 500
    lines = path.read_bytes().decode().split("\n")  # valid UTF-8, an event a line
    assert len(lines) == len(events) + 2
    assert (lines[0], lines[-1]) == ("[", "]")


BATCHES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.integers(0, 3 * MS), min_size=1, max_size=5),
        st.integers(0, 200_000),
        st.text(max_size=5),
        st.dictionaries(st.integers(0, 4), st.text(max_size=5), max_size=2),
    ),
    max_size=10,
)


@settings(deadline=None)
@given(BATCHES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, batches: list[Any]) -> None:
    path = tmp_path_factory.mktemp("trace") / "run.json"
    writer = TraceWriter(path, name="p", pid=1, created=0)
    clocks = dict.fromkeys(range(4), 0)
    expected = []
    for number, (worker, lengths, load, name, failed) in enumerate(batches):
        began = clocks[worker]
        stamps = [began + load + sum(lengths[:n]) for n in range(len(lengths))]
        clocks[worker] = stamps[-1] + lengths[-1]
        writer.batch(RanBatch(worker, number, name, 3, began, clocks[worker], stamps, failed, str))
        for n, begin in enumerate(stamps):
            expected.append((worker + 1, name, number, 3 + n, begin, begin + lengths[n], failed.get(n)))
    writer.close()
    found = []
    for event in spans(events_of(path), "item"):
        args = event["args"]
        found.append((event["tid"], event["name"], args["call"], args["item"], *ns(event), args.get("error")))
    assert found == expected


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3 * MS)] * 2, st.lists(st.integers(0, 3 * MS), min_size=1, max_size=4))))
def test_spans_of_a_lane_are_nested_whatever_the_clocks_say(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("trace") / "run.json"
    writer = TraceWriter(path, name="p", pid=1, created=0)
    for began, ended, stamps in batches:
        writer.batch(RanBatch(0, 1, "f", 0, began, ended, stamps, {}))
        writer.lost(LostItem(0, 1, "f", 0, began, ended, ""))
    writer.close()
    open_until: list[int] = []
    for event in events_of(path):  # in the order of the file, a parent comes before its children
        if event["ph"] == "X":
            begin, end = ns(event)
            assert end >= begin >= 0
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert all(end <= outer for outer in open_until)
            open_until.append(end)


# --- when things go wrong ---


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/run\.json"):
        TraceWriter(tmp_path / "no" / "run.json", name="", pid=1, created=0)


def test_a_full_disk_ends_the_trace_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        writer = TraceWriter("/dev/full", name="", pid=1, created=0)
        assert not writer.is_open
        writer.worker_began(0, 1, 1, 0)
        writer.batch(RanBatch(0, 1, "f", 0, 0, 3, [1], {}))
        writer.close()
    (record,) = caplog.records
    assert record.name == "pairpool"
    assert record.getMessage() == "the trace /dev/full ends here: [Errno 28] No space left on device"


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    writer = TraceWriter(path, name="", pid=1, created=0)
    before = path.read_bytes()
    pid = os.fork()
    if pid == 0:
        writer.worker_began(0, 1, 1, 0)
        writer.batch(RanBatch(0, 1, "f", 0, 0, 3, [1], {}))
        writer.lost(LostItem(0, 1, "f", 0, 0, 4, ""))
        writer.call_began(1, "map", "f", 1, 1)
        writer.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.read_bytes() == before
    writer.worker_began(0, 1, 1, 0)
    writer.close()
    assert len(events_of(path)) == 4


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    writer = TraceWriter(path, name="", pid=1, created=0)
    writer.close()
    before = path.read_bytes()
    writer.worker_began(0, 1, 1, 0)
    writer.close()
    assert path.read_bytes() == before
    assert before.endswith(b"\n]")  # Perfetto takes no data after it


KILLED = """
import sys
from pairpool.trace_events import RanBatch
from pairpool.view.trace import TraceWriter

writer = TraceWriter(sys.argv[1], name="killed", pid=1, created=0)
for n in range(100):
    writer.batch(RanBatch(0, 1, "f", n, 10 * n, 10 * n + 8, [10 * n + 1], {}))
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_was_told_survives_the_death_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    with TraceReader(path) as reader:
        events = list(reader.events())
        assert reader.truncated
    assert [event["args"]["item"] for event in spans(events, "item")] == list(range(100))


# --- what is read ---


def test_a_trace_that_is_cut_off_anywhere_gives_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_trace(path)
    whole = path.read_bytes()
    events = events_of(path)
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with TraceReader(path) as reader:
            found = list(reader.events())
            assert reader.truncated
        assert found == events[: len(found)]
        assert len(found) == whole[:length].count(b"}}")


def test_events_can_be_gone_through_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_trace(path)
    with TraceReader(path) as reader:
        assert list(reader.events()) == list(reader.events())


EVENT = '{"ph": "X", "ts": 1}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"traceEvents": [{EVENT}]}}',
        f'  {{"version": 12345, "x": [{{"traceEvents": 1}}, null], "traceEvents" : [ {EVENT} , ], "after": 1}}',
        f"\ufeff[\n\n{EVENT}\n]\n",
        f"[{EVENT}, null, 3]",
        f'[{EVENT[:-1]},\n "args": {{"a": [1, 2, {{}}], "b": "]}}"}} }}]',
    ],
)
def test_other_programs_traces_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with TraceReader(path) as reader:
        for chunk in (*range(1, 100), 1 << 18):  # wherever a part that is read may end
            monkeypatch.setattr(trace_reader, "CHUNK_BYTES", chunk)
            (event,) = reader.events()
            assert not reader.truncated
            assert (event["ph"], event["ts"]) == ("X", 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n ", "it is empty"),
        (b"hello", "it is not JSON of trace events"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "it is not JSON of trace events"),
        (b"[hello", "it is not JSON of trace events"),
        (b"[" * 100_000, "it is not JSON of trace events"),
        (b"[1, 2]", "its JSON holds no trace events"),
        (b'[{"a": 1}]', "its JSON holds no trace events"),
        (b'{"a": 1}', "its JSON has no list of traceEvents"),
        (b'{"traceEvents": 1}', "its JSON has no list of traceEvents"),
        (b'{"traceEv', "its JSON has no list of traceEvents"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "its JSON has no list of traceEvents"),
        (b"{", "its JSON has no list of traceEvents"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(data)
    with TraceReader(path) as reader, pytest.raises(ValueError, match="is not a trace: ") as caught:
        list(reader.events())
    assert str(caught.value) == f"{path} is not a trace: {reason}"


def test_damage_within_is_where_the_events_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_reader, "MAX_EVENT_CHARS", 1000)
    monkeypatch.setattr(trace_reader, "CHUNK_BYTES", 100)
    path = tmp_path / "run.json"
    path.write_text(f"[{EVENT},\0\0\0" + f",{EVENT}" * 1000 + "]")
    with TraceReader(path) as reader:
        assert len(list(reader.events())) == 1
        assert reader.truncated


def test_a_pipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_trace(path)
    read, write = os.pipe()
    os.write(write, path.read_bytes())
    os.close(write)
    with TraceReader(f"/dev/fd/{read}") as reader:
        os.close(read)
        assert list(reader.events()) == list(reader.events()) == events_of(path)
