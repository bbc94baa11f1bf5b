"""`pairpool timeline`: the picture, the messages, and the exit status."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairpool import cli
from pairpool.trace_events import LostItem, RanBatch
from pairpool.view import survey, timeline_rows
from pairpool.view.survey import Survey, SurveyLane, core_usage, coverage
from pairpool.view.timeline import draw
from pairpool.view.timeline_rows import Canvas
from pairpool.view.timescale import length_text, ticks
from pairpool.view.trace import TraceWriter
from pairpool.view.trace_reader import TraceReader
from tests.support.scripts import ROOT
from tests.support.waiting import PATIENCE

SECOND = 10**9
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "]]>a\"b\\c\nd<&>'\x00\x1b\ufffe\ud800é✖"


def write(path: Path, name: str = "mine") -> TraceWriter:
    return TraceWriter(path, name=name, pid=1, created=0)


def put(writer: TraceWriter, worker: int, begin: float, end: float, function: str = "f", error: str = "") -> None:
    """Write one item that took the whole time of its batch, in seconds."""
    first, last = round(begin * SECOND), round(end * SECOND)
    errors = {0: error} if error else {}
    writer.batch(RanBatch(worker, 1, function, 7, first, last, [first], errors, lambda _: "<arg>"))


def picture(path: Path, **options: Any) -> tuple[str, ElementTree.Element]:
    """Return the picture of a trace as text and as parsed XML."""
    with TraceReader(path) as reader:
        svg, _ = draw(reader, **{"width": 1000, **options})
    return svg, ElementTree.fromstring(svg.encode())


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def titles(root: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in root.iter(f"{SVG}title")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


# --- the numbers ---


def lane(
    work: list[tuple[float, float]], started: list[float], gone: list[float], closed: float = math.inf
) -> SurveyLane:
    made = SurveyLane("", started=array("d", started), gone=array("d", gone), closed=closed)
    for begin, end in work:
        made.add_work(begin, end)
    return made


def test_coverage_is_exact() -> None:
    assert coverage([(1.0, 2.0), (2.5, 8.0), (-5.0, 0.5), (9.5, 20.0)], 0.0, 10.0, 5) == [1.5, 1.5, 2.0, 2.0, 0.5]
    assert coverage([(3.0, 3.0), (12.0, 13.0)], 0.0, 10.0, 2) == [0.0, 0.0]
    assert coverage([(-math.inf, math.inf)], 0.0, 10.0, 2) == [5.0, 5.0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 100)), max_size=20), st.integers(1, 50))
def test_coverage_adds_up(spans: list[tuple[float, float]], parts: int) -> None:
    covered = coverage([(begin, begin + length) for begin, length in spans], -10.0, 33.0, parts)
    whole = sum(max(0.0, min(33.0, begin + length) - max(-10.0, begin)) for begin, length in spans)
    assert sum(covered) == pytest.approx(whole)
    assert all(-1e-9 <= part <= len(spans) * 43.0 / parts + 1e-9 for part in covered)


def test_usage_of_workers_that_are_there_all_the_time() -> None:
    used = core_usage([lane([(0.0, 10.0)], [], []), lane([(5.0, 10.0)], [], [])], 0.0, 10.0, 2)
    assert used.shares == (0.5, 1.0)
    assert used.average == 0.75


def test_usage_counts_from_the_first_worker_to_a_retirement_but_not_to_a_death() -> None:
    died = lane([(2.0, 4.0), (6.0, 8.0)], [2.0, 6.0], [4.0, 8.0])
    assert core_usage([died], 0.0, 10.0, 5).shares == (0.0, 1.0, 0.0, 1.0, 0.0)
    assert core_usage([died], 0.0, 10.0, 5).average == 0.5
    retired = lane([(2.0, 4.0), (6.0, 8.0)], [2.0, 6.0], [4.0, 8.0], closed=8.0)
    assert core_usage([retired], 0.0, 10.0, 5).average == pytest.approx(4 / 6)
    assert core_usage([lane([], [20.0], [])], 0.0, 10.0, 1).average == 0.0


def test_usage_counts_nested_and_overlapping_spans_once() -> None:
    assert core_usage([lane([(1.0, 2.0), (0.0, 5.0), (3.0, 7.0), (0.0, 1.0)], [], [])], 0.0, 10.0, 1).average == 0.7


def test_the_memory_of_a_survey_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_SPANS", 100)
    long = lane([(2.0 * number, 2.0 * number + 1 + number % 2) for number in range(10_000)], [], [])
    assert len(long.begins) == len(long.ends) == len(long.busy) < 100
    used = core_usage([long], 0.0, 20_000.0, 10)
    assert used.average == pytest.approx(0.75)
    assert used.shares == pytest.approx([0.75] * 10, abs=0.01)


def test_a_survey_of_a_trace(path: Path) -> None:
    writer = write(path)
    writer.worker_began(1, 11, SECOND, 0)
    put(writer, 1, 2, 4)
    put(writer, 0, 2, 3, "g")
    writer.lost(LostItem(1, 1, "f", 8, 5 * SECOND, 6 * SECOND, "WorkerDied"))
    writer.worker_ended(1, 11, 6 * SECOND, "SIGKILL", died=True)
    writer.worker_began(1, 12, 7 * SECOND, 1)
    writer.worker_ended(1, 12, 9 * SECOND, "closed", died=False)
    writer.worker_began(0, 10, SECOND, 0)
    writer.worker_ended(0, 10, 3 * SECOND, "SIGKILL", died=True)
    writer.close()
    with TraceReader(path) as reader:
        found = Survey(reader.events())
    assert (found.is_ours, found.name, found.begin, found.end) == (True, "mine", 0.0, 9e6)
    assert found.functions == {"f": 3e6, "g": 1e6}
    first, second = found.lanes.values()
    assert (first.label, second.label) == ("worker 0", "worker 1")
    assert list(second.work()) == [(2e6, 4e6, 2e6), (5e6, 6e6, 1e6)]
    assert list(second.lives()) == [(1e6, 6e6), (7e6, 9e6)]
    assert (second.opened, second.closed) == (1e6, 9e6)
    assert (first.opened, first.closed) == (1e6, math.inf)


# --- tasks to pixels ---


def no_title() -> str:
    return ""


def test_short_tasks_are_merged_and_long_ones_are_not() -> None:
    canvas = Canvas(lanes=2, width=100.0)
    for n in range(1000):
        canvas.add(0, n / 100, (n + 1) / 100, 3, n == 250, no_title)
    canvas.add(1, 50.0, 60.0, 4, True, no_title)
    (run,) = canvas.runs()
    assert (run.lane, run.left, run.right, run.colour, run.level) == (0, 0.0, 10.0, 3, timeline_rows.OPACITY_LEVELS)
    assert list(canvas.failures()) == [(0, 2.0, 3.0)]
    ((bar,), others) = canvas.bars()
    assert (bar.lane, bar.left, bar.right, bar.colour, bar.failed, others) == (1, 50.0, 60.0, 4, True, [])


def test_a_column_has_the_colour_that_took_most_time_and_the_strength_of_all() -> None:
    canvas = Canvas(lanes=1, width=10.0)
    canvas.add(0, 3.0, 3.2, 1, False, no_title)
    canvas.add(0, 3.3, 3.6, 2, False, no_title)
    canvas.add(0, 5.0, 5.0, 1, False, no_title)  # took no time, and is seen
    runs = [(run.left, run.right, run.colour, run.level) for run in canvas.runs()]
    assert runs == [(3.0, 4.0, 2, 2), (5.0, 6.0, 1, 1)]


def test_what_is_outside_is_cut_off() -> None:
    canvas = Canvas(lanes=1, width=10.0)
    canvas.add(0, -50.0, 3.0, 1, False, no_title)
    canvas.add(0, 7.0, 50.0, 1, False, no_title)
    canvas.add(0, 11.0, 50.0, 1, False, no_title)
    canvas.add(0, -9.0, -1.0, 1, False, no_title)
    titled, _ = canvas.bars()
    assert sorted((bar.left, bar.right) for bar in titled) == [(0.0, 3.0), (7.0, 10.0)]
    assert not list(canvas.runs())


def test_the_longest_tasks_are_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_rows, "MAX_BARS", 10)
    monkeypatch.setattr(timeline_rows, "MAX_TITLED_BARS", 4)
    canvas = Canvas(lanes=1, width=1000.0)
    for n in range(40):
        canvas.add(0, 20.0 * n, 20.0 * n + 3 + (n * 7 % 40) / 10, 1, False, no_title)
    titled, others = canvas.bars()
    lengths = [round(bar.right - bar.left, 1) for bar in [*titled, *others]]
    assert lengths == [6.9, 6.8, 6.7, 6.6, 6.5, 6.4, 6.3, 6.2, 6.1, 6.0]
    assert len(titled) == 4
    assert sum(run.right - run.left for run in canvas.runs()) >= 30 * 3


def test_marks_side_by_side_are_one() -> None:
    canvas = Canvas(lanes=1, width=100.0)
    for at in (50.0, 50.5, 80.0, 101.0, -1.0):
        canvas.mark("died", 0, at, f"{at}")
    marks = [(mark.at, mark.title, mark.count) for mark in canvas.marks.values()]
    assert marks == [(50.0, "50.0", 2), (80.0, "80.0", 1)]


# --- times ---


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0 s"),
        (0.4, "400 ns"),
        (5.554, "5.55 µs"),
        (999.7, "1.00 ms"),
        (12_345, "12.3 ms"),
        (123_456, "123 ms"),
        (59.96e6, "60.0 s"),
        (125e6, "2 min 05 s"),
        (3599.9e6, "1 h 00 min"),
        (4e12, "1,111.1 h"),
    ],
)
def test_lengths_as_text(us: float, text: str) -> None:
    assert length_text(us) == text


def test_ticks_are_round_and_named() -> None:
    assert ticks(0, 1.21e6, 12) == [(n * 2e5, f"{n * 0.2:.1f} s" if n else "0") for n in range(7)]
    assert [label for _, label in ticks(0, 130e6, 5)] == ["0", "0:30 min", "1:00 min", "1:30 min", "2:00 min"]
    assert [label for _, label in ticks(0, 3 * 3600e6, 3)] == ["0", "1 h", "2 h", "3 h"]
    assert [label for _, label in ticks(5e6, 5.002e6, 2)] == ["5.000 s", "5.001 s", "5.002 s"]
    assert ticks(1, 1, 5) == []


@settings(deadline=None)
@given(st.floats(0, 1e15), st.floats(1e-2, 1e15), st.integers(1, 30))
def test_ticks_are_few_and_within(begin: float, length: float, most: int) -> None:
    length = max(length, begin / 1e8)  # what is finer, the times themselves are not
    found = ticks(begin, begin + length, most)
    assert len(found) <= most + 1
    assert all(begin - length * 1e-6 <= time <= (begin + length) * (1 + 1e-6) for time, _ in found)
    if length > begin / 1e6:
        assert len({label for _, label in found}) == len(found)


# --- the picture ---


def test_what_a_picture_says(path: Path) -> None:
    writer = write(path, "my pool")
    writer.worker_began(0, 11, 0, 0)
    put(writer, 0, 0, 2)
    writer.lost(LostItem(0, 1, "g", 8, 2 * SECOND, 4 * SECOND, "WorkerDied: SIGKILL"))
    writer.worker_ended(0, 11, 4 * SECOND, "SIGKILL", died=True)
    writer.worker_began(0, 12, 6 * SECOND, 1)
    put(writer, 0, 6, 8, error="ValueError: no")
    writer.worker_ended(0, 12, 8 * SECOND, "worn out", died=False)
    writer.worker_began(0, 13, 8 * SECOND, 2)
    put(writer, 0, 8, 9, "h")
    put(writer, 0, 9, 10, "h")
    writer.worker_ended(0, 13, 10 * SECOND, "closed", died=False)
    writer.close()
    _, root = picture(path)
    said = texts(root)
    assert said[:2] == ["my pool", "10.0 s · 1 worker · 5 tasks · 2 failed · 1 death · workers busy 80% of the time"]
    assert said[2:10] == [
        *("f2 · 4.00 s", "g1 · 2.00 s", "h2 · 2.00 s"),
        *("no worker", "failed", "died", "replaced", "retired"),
    ]
    assert titles(root) == [
        "f[7]: 2.00 s\nworker 0, at 0 s\nargument: <arg>",
        "g[8]: 2.00 s\nworker 0, at 2.00 s\nerror: WorkerDied: SIGKILL",
        "f[7]: 2.00 s\nworker 0, at 6.00 s\nargument: <arg>\nerror: ValueError: no",
        "h[7]: 1.00 s\nworker 0, at 8.00 s\nargument: <arg>",
        "h[7]: 1.00 s\nworker 0, at 9.00 s\nargument: <arg>",
        "worker 0 (pid 11) died at 4.00 s\nSIGKILL",
        "worker 0 (pid 12) took over at 6.00 s",
        "worker 0 (pid 12) was retired at 8.00 s\nworn out",
    ]


def test_a_part_of_the_time(path: Path) -> None:
    writer = write(path)
    for second in range(10):
        put(writer, second % 2, second, second + 1, f"f{second}")
    writer.close()
    _, root = picture(path, begin=2.5, end=4.0)
    assert texts(root)[1] == "1.50 s · 2 workers · 2 tasks · 0 failed · workers busy 50% of the time"
    assert [title.split(":")[0] for title in titles(root)] == ["f3[7]", "f2[7]"]
    _, root = picture(path, begin=9.5)
    assert texts(root)[1].startswith("500 ms · 2 workers · 1 task ")


def test_functions_beyond_ten_share_a_colour(path: Path) -> None:
    writer = write(path)
    for n in range(15):
        put(writer, 0, 100 * n, 100 * n + 50 - n, f"f{n}")
    writer.close()
    _, root = picture(path)
    said = texts(root)[2:]
    assert said[:10] == [f"f{n}1 · {length_text((50 - n) * 1e6)}" for n in range(10)]
    assert said[10] == f"others5 · {length_text(sum(50 - n for n in range(10, 15)) * 1e6)}"
    assert len({task.get("stroke") for task in root.iter(f"{SVG}path") if task.find(f"{SVG}title") is not None}) == 11


def test_hostile_names_are_drawn(path: Path) -> None:
    writer = write(path, HOSTILE)
    first = 10 * SECOND
    writer.batch(RanBatch(0, 1, HOSTILE, 0, 0, first, [0], {0: HOSTILE}, lambda _: HOSTILE))
    writer.worker_ended(0, 1, first, HOSTILE, died=True)
    writer.close()
    _, root = picture(path)
    assert texts(root)[0] == "]]>a\"b\\c d<&>'���\\ud800é✖"
    assert titles(root)[0].count("]]>a\"b\\c\nd<&>'���\\ud800é✖") == 3


def test_a_long_name_is_cut_to_fit(path: Path) -> None:
    writer = write(path, "x" * 5000)
    put(writer, 0, 0, 1, "界" * 5000)
    writer.close()
    _, root = picture(path)
    title, _, function = texts(root)[:3]
    assert title.endswith("x…")
    assert len(title) < 100
    assert 30 < len(function) < 90


@pytest.mark.parametrize("workers", [1, 64, 1000, 4000])
def test_the_picture_stays_finite(path: Path, workers: int) -> None:
    writer = write(path)
    for n in range(20_000):
        begin = n * SECOND
        stamps = [begin + k * 1000 for k in range(3)]
        ended = begin + n * 7919 % 1000 * SECOND // 1000
        writer.batch(RanBatch(n % workers, 1, f"f{n % 12}", n, begin, ended, stamps, {}))
    writer.close()
    svg, root = picture(path)
    assert int(root.get("height", "0")) <= 1600
    assert len(svg) < 2_000_000


def test_other_programs_traces_are_drawn(path: Path) -> None:
    spans = [("load", 1_000_000, 5000, 1), ("parse", 1_001_000, 2000, 1), ("emit", 1_003_000, 9000, "io")]
    events: list[dict[str, Any]] = [
        {"name": name, "ph": "X", "ts": ts, "dur": dur, "pid": 7, "tid": tid} for name, ts, dur, tid in spans
    ]
    events += [
        {"ph": "X", "name": "no time"},
        {"ph": "X", "ts": "abc", "dur": 1},
        {"ph": "X", "ts": 1e400, "dur": 1},
        {"ph": "X", "ts": 1, "dur": -1},
        {"ph": "X", "ts": 10**400, "dur": 1},
        {"ph": "X", "ts": [], "args": 3, "pid": {}},
        {"ph": "B", "ts": 0, "name": "begin"},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 1, "args": {"name": "main"}},
        {"ph": "M", "name": "thread_name", "args": []},
    ]
    path.write_text(json.dumps({"traceEvents": events}))
    with TraceReader(path) as reader:
        svg, remarks = draw(reader, 1000)
    assert remarks == ["not written by pairpool: every span counts as a task"]
    said = texts(ElementTree.fromstring(svg))
    assert said[:2] == ["run.json", "12.0 ms · 2 threads · 3 tasks · threads busy 58% of the time"]
    assert said[2] == f"⚠ {remarks[0]}"
    assert {"main", "7/io", "0", "2 ms"} < set(said)


# --- the command ---


def run(*arguments: object) -> int:
    return cli.main(["timeline", *map(str, arguments)])


def small(path: Path) -> Path:
    writer = write(path)
    put(writer, 0, 0, 1)
    writer.close()
    return path


def test_the_picture_lies_beside_the_trace(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(small(path)) == 0
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().get("width") == "1200"
    assert capfd.readouterr() == ("", "")


def test_the_picture_goes_where_it_is_told(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(small(path), "-o", tmp_path / "other", "--width", 500) == 0
    assert run(path, "-o", "-", "--width", 500) == 0
    out, err = capfd.readouterr()
    assert out == (tmp_path / "other").read_text()
    assert ElementTree.fromstring(out).get("width") == "500"
    assert err == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "run.json"]


def test_a_trace_that_is_cut_off_is_drawn_and_said_so(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = small(path).read_bytes()
    path.write_bytes(whole[:-2])
    assert run(path) == 0
    out, err = capfd.readouterr()
    remark = "the trace is cut off: its pool runs still, or its end was not written"
    assert (out, err) == ("", f"pairpool timeline: {path}: {remark}\n")
    assert f"⚠ {remark}" in texts(ElementTree.parse(path.with_suffix(".svg")).getroot())


@pytest.mark.parametrize("length", [*range(0, 700, 7), 10_000])
def test_a_trace_of_any_length_is_drawn_or_refused(path: Path, length: int, capfd: pytest.CaptureFixture[str]) -> None:
    whole = small(path).read_bytes()
    path.write_bytes(whole[:length])
    status = run(path)
    assert status == (2 if length == 0 else 0 if b'"item"' in whole[:length].rpartition(b"}}")[0] else 1)
    assert path.with_suffix(".svg").exists() == (status == 0)
    err = capfd.readouterr().err
    assert err.count("\n") == (length < len(whole))


def test_nothing_to_draw(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(path).close()
    assert run(path) == 1
    assert run(small(path), "--from", 3) == 1
    assert capfd.readouterr().err.splitlines() == [
        f"pairpool timeline: {path} holds no tasks",
        f"pairpool timeline: {path} holds no tasks between these times: it ends at 1.00 s",
    ]
    assert not path.with_suffix(".svg").exists()


def test_what_cannot_be_read_or_written(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = small(tmp_path / "named.svg")
    bad = tmp_path / "bad.json"
    bad.write_text("hello")
    secret = small(tmp_path / "secret.json")
    for arguments in (
        [path],
        [tmp_path],
        [bad],
        [picture],
        [secret, "-o", tmp_path / "no" / "run.svg"],
        [secret, "-o", "/dev/full"],
        [secret, "-o", tmp_path],
    ):
        assert run(*arguments) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"pairpool timeline: {path}: No such file or directory",
        f"pairpool timeline: {tmp_path}: Is a directory",
        f"pairpool timeline: {bad} is not a trace: it is not JSON of trace events",
        f"pairpool timeline: {picture} is the trace itself: name another file with -o",
        f"pairpool timeline: {tmp_path}/no/run.svg: No such file or directory",
        "pairpool timeline: /dev/full: No space left on device",
        f"pairpool timeline: {tmp_path}: Is a directory",
    ]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_picture_beside_the_trace_replaces_a_link(path: Path, tmp_path: Path, link: Callable[..., None]) -> None:
    """The directory of a trace may belong to another user, who must not choose the file that is written."""
    victim = tmp_path / "victim"
    victim.write_text("not a picture")
    picture = small(path).with_suffix(".svg")
    link(victim, picture)
    assert run(path) == 0
    assert victim.read_text() == "not a picture"
    assert not picture.is_symlink()
    assert picture.read_text().startswith("<svg")
    assert sorted(os.listdir(tmp_path)) == sorted((path.name, picture.name, "victim"))


def test_a_picture_that_cannot_take_its_name_leaves_nothing(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = small(path).with_suffix(".svg")
    picture.mkdir()
    assert run(path) == 2
    assert capfd.readouterr().err == f"pairpool timeline: {picture}: Is a directory\n"
    assert sorted(os.listdir(tmp_path)) == sorted((path.name, picture.name))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--width", "299"],
        ["--width", "20001"],
        ["--width", "wide"],
        ["--from", "-1"],
        ["--from", "nan"],
        ["--to", "inf"],
    ],
)
def test_bad_usage(path: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(path, *arguments)
    assert caught.value.code == 2
    assert "pairpool timeline: error: argument" in capfd.readouterr().err


def test_an_end_before_the_begin(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(small(path), "--from", 2, "--to", 1) == 2
    assert capfd.readouterr().err == "pairpool timeline: --to 1 is not after --from 2\n"


def test_output_that_is_closed_early(path: Path) -> None:
    writer = write(path)
    for n in range(5000):
        put(writer, n % 9, n, n + 1 + n % 7, f"f{n % 5}")
    writer.close()
    command = [sys.executable, "-m", "pairpool", "timeline", str(path), "-o", "-"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0


def test_stdout_that_takes_nothing(path: Path) -> None:
    command = [sys.executable, "-m", "pairpool", "timeline", str(small(path)), "-o", "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"pairpool timeline: stdout: No space left on device\n")
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(shell, cwd=ROOT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"pairpool timeline: stdout: Bad file descriptor\n")
