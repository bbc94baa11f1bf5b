"""The picture of a pool, drawn from artificial statuses: it fits every size, and its contents are right."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from pairpool.status import PoolStatus
from pairpool.view.frame import Frame, joined
from pairpool.view.table import headline_plain, render
from tests.view.statuses import make_call, make_failure, make_status, make_worker, odd_statuses

SIZES = [(1, 1), (2, 3), (7, 2), (10, 40), (20, 5), (40, 10), (60, 20), (80, 24), (100, 30), (250, 80)]


def lines_of(status: PoolStatus, width: int = 100, height: int = 40, **options: Any) -> list[str]:
    return render(status, width, height, **options).text.split("\n")


def row_of(status: PoolStatus, start: str, width: int = 100) -> str:
    """Return the only line that begins with `start`."""
    found = [line for line in lines_of(status, width) if line.startswith(start)]
    assert len(found) == 1, found
    return found[0]


# --- it fits ------------------------------------------------------------------------------------------


def check(frame: Frame, width: int, height: int) -> None:
    lines = frame.text.split("\n") if frame.lines else []
    assert len(lines) == len(frame.lines) <= height
    for line in lines:
        assert cell_len(line) <= width
        assert line.isprintable()
    for words in (words for line in frame.lines for words, _style in line):
        assert "\n" not in words


@settings(max_examples=300)
@given(odd_statuses, st.integers(1, 130), st.integers(0, 40), st.booleans())
def test_whatever_comes_fits(status: PoolStatus, width: int, height: int, ascii: bool) -> None:
    check(render(status, width, height, ascii=ascii), width, height)
    assert headline_plain(status).isprintable()


@pytest.mark.parametrize("workers", [0, 1, 2, 8, 64, 1000])
def test_every_size(workers: int) -> None:
    for others in (0, 1, 8):
        status = make_status(
            workers,
            running=(make_call(),) * others,
            calls=others,
            failures=(make_failure(),) * others,
            rates=tuple(range(60)),
        )
        for width, height in SIZES:
            check(render(status, width, height), width, height)


def test_without_a_height_all_is_shown() -> None:
    failures = tuple(make_failure(item=number) for number in range(8))
    status = make_status(300, running=(make_call(),) * 8, calls=8, failures=failures)
    shown = render(status, 100, None)
    check(shown, 100, 1000)
    assert [line.split()[0] for line in shown.text.split("\n") if re.match(r" *\d+ +4\d\d\d ", line)] == [
        str(number) for number in range(300)
    ]
    assert "not shown" not in shown.text


@pytest.mark.parametrize("workers", [1, 64])
def test_forty_by_ten_shows_some_of_everything(workers: int) -> None:
    status = make_status(workers, running=(make_call(),), calls=1, failures=(make_failure(),))
    text = "\n".join(lines_of(status, 40, 9))
    for piece in ("pool-1", "up 1:05", f"{workers} busy", "0 done", "map work", "25%", "work["):
        assert piece in text
    assert ("ValueError" in text) == (workers == 1)  # rows of workers come first; how many failed is in the head


def test_room_is_used() -> None:
    """No line stays empty while something is hidden."""
    status = make_status(64, running=(make_call(),) * 8, calls=8, failures=(make_failure(),) * 8)
    for height in range(5, 18):
        assert len(lines_of(status, 80, height)) == height


def test_few_workers_leave_their_room_to_calls() -> None:
    status = make_status(2, running=(make_call(),) * 16, calls=16)
    for height in range(5, 26):
        shown = lines_of(status, 80, height)
        assert len(shown) == height or len([line for line in shown if line.startswith("map work")]) == 16
    assert len([line for line in lines_of(status, 80, 40) if line.startswith("map work")]) == 16


# --- the head -----------------------------------------------------------------------------------------


def test_head() -> None:
    workers = (
        make_worker(0, 1.0, cpu=50.0, rss=2**20),
        make_worker(1, cpu=25.0, rss=2**21),
        make_worker(2, state="starting"),
    )
    status = make_status(workers, done=12_345, failed=6, pending=78, rates=(0, 0, 10, 10, 10, 10, 60))
    first, second, third = lines_of(status)[:3]
    assert first == "pool-1  up 1:05  pid 4711  fork"
    assert second == "workers  1 busy  1 idle  1 starting  cpu 75%  memory 3.0M"
    assert third.startswith("tasks    12,345 done  6 failed  78 pending  20/s  ")
    assert third.endswith("▂▂▂▂█")


def test_workers_that_are_not_there_yet_count_as_starting() -> None:
    assert "2 busy  0 idle  6 starting" in lines_of(make_status(2, processes=8))[1]


@pytest.mark.parametrize(("state", "word"), [("RUN", ""), ("CLOSE", "closing"), ("TERMINATE", "ending")])
def test_states(state: str, word: str) -> None:
    assert lines_of(make_status(state=state))[0] == f"pool-1  {word}{'  ' if word else ''}up 1:05  pid 4711  fork"


def test_the_last_minute_begins_with_the_pool() -> None:
    rates = (0,) * 57 + (5, 10, 5)
    assert lines_of(make_status(2, uptime=2.9, rates=rates))[2].endswith("/s  ▄█▄")
    assert lines_of(make_status(2, uptime=2.9, rates=rates))[2] == lines_of(make_status(2, uptime=2.1, rates=rates))[2]
    assert re.search("/s {50,}▄█▄$", lines_of(make_status(2, uptime=90, rates=rates))[2])


def test_an_ended_pool() -> None:
    status = make_status(0, state="TERMINATE", done=130, failed=1)
    assert lines_of(status) == [
        "pool-1  ended after 1:05  pid 4711  fork",
        "tasks    130 done  1 failed  0 pending  2/s",
    ]
    assert headline_plain(status) == "pool-1: ended after 1:05; tasks: 130 done, 1 failed"


def test_a_remark_is_the_second_line() -> None:
    assert lines_of(make_status(remark="the master is\nstopped"))[1] == "the master is stopped"


def test_headline_plain() -> None:
    status = make_status(2, processes=3, done=1_234_567, failed=2, pending=8, rates=(5,) * 60, remark="so\x1b[2J")
    assert headline_plain(status) == (
        "pool-1: up 1:05; workers: 2 busy, 0 idle, 1 starting; tasks: 1,234,567 done, 2 failed, 8 pending; 5/s; so [2J"
    )


# --- calls --------------------------------------------------------------------------------------------


def test_a_call_of_known_size() -> None:
    row = row_of(make_status(running=(make_call(failed=4),), calls=1), "map work", 120)
    assert re.fullmatch(r"map work (━+╾?)─+  +25%  50/200  4 failed  5/s  30s left", row)


@pytest.mark.parametrize(
    ("done", "total", "share"),
    [(0, 200, "0%"), (1, 3, "33%"), (199, 200, "99%"), (9999, 10_000, "99%"), (200, 200, "100%"), (0, 0, "100%")],
)
def test_shares(done: int, total: int, share: str) -> None:
    """An incomplete share is never shown as 100 %."""
    row = row_of(make_status(running=(make_call(done=done, total=total),), calls=1), "map work")
    assert f" {share} " in row
    assert ("left" in row) == (0 < done < total)


def test_the_bar_shows_the_share_and_the_failures() -> None:
    frame = render(make_status(running=(make_call(done=100, failed=40),), calls=1), 100, 30)
    line = next(line for line in frame.lines if line and line[0][0] == "map work")
    (done, green), (failed, red), (rest, _faint) = line[2:5]
    assert (green.color.name, red.color.name) == ("green", "red")  # type: ignore[union-attr]  # they have colours
    assert abs(len(done + failed) - len(rest)) <= 1
    assert abs(len(failed) - 0.4 * len(done + failed)) <= 1


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_bars_below_each_other_are_as_long_as_each_other(width: int) -> None:
    calls = (make_call(), make_call(kind="imap", total=None), make_call(done=199, failed=77), make_call(total=9_999))
    rows = [line for line in lines_of(make_status(running=calls, calls=4), width) if line.startswith("map work")]
    assert len({re.search("[━╾─]+", row).span() for row in rows}) == 1  # type: ignore[union-attr]  # there is one
    assert len(rows) == 3


@pytest.mark.parametrize(("done", "bar"), [(0, "─+"), (100, "━+╾?─+"), (200, "━+")])
def test_the_bar_needs_no_colours(done: int, bar: str) -> None:
    row = row_of(make_status(running=(make_call(done=done),), calls=1), "map work")
    assert re.match(rf"map work {bar} ", row)


def test_a_call_of_unknown_size_has_no_bar() -> None:
    row = row_of(make_status(running=(make_call(kind="imap", total=None),), calls=1), "imap work")
    assert row == "imap work  50 done  5/s"


def test_calls_without_room_are_counted() -> None:
    running = tuple(make_call(function=f"f{number}") for number in range(16))
    lines = lines_of(make_status(8, running=running, calls=20), 80, 16)
    shown = [line for line in lines if line.startswith("map f")]
    (more,) = [line for line in lines if line.endswith("more calls")]
    assert len(shown) >= 2
    assert more == f"… {20 - len(shown)} more calls"


def test_a_single_line_for_calls_shows_the_oldest() -> None:
    running = (make_call(function="oldest"), make_call(function="newest"))
    lines = lines_of(make_status(64, running=running, calls=2), 80, 9)
    assert [line for line in lines if "oldest" in line]


# --- workers ------------------------------------------------------------------------------------------


def numbers(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.match(r" *(\d+) +\d{4} ", line))]


def test_all_workers_are_in_order_where_there_is_room() -> None:
    workers = tuple(make_worker(number, 100.0 - number if number % 2 else None) for number in range(12))
    lines = lines_of(make_status(workers))
    assert numbers(lines) == list(range(12))
    assert not [line for line in lines if "more" in line]


def test_longest_running_first_where_there_is_not() -> None:
    times = [5.0, 50.0, None, 20.0, 1.0, None, 30.0, 2.0, 3.0, None, 4.0, 6.0]
    workers = [make_worker(number, seconds) for number, seconds in enumerate(times)]
    workers.append(make_worker(12, state="starting"))
    lines = lines_of(make_status(tuple(workers)), 80, 10)
    shown = numbers(lines)
    assert shown == [1, 6, 3, 11, 0]
    assert lines[-1] == "… 8 more: 4 busy, 3 idle, 1 starting"


def test_more_adds_up_at_every_height() -> None:
    workers = tuple(make_worker(number, number or None) for number in range(40))
    for height in range(5, 60):
        lines = lines_of(make_status(workers), 80, height)
        more = re.fullmatch(r"… (\d+) more: .*", lines[-1])
        assert len(numbers(lines)) + (int(more[1]) if more else 0) == 40
        if more:
            assert sum(int(number) for number in re.findall(r"(\d+) (?:busy|idle|starting)", lines[-1])) == int(more[1])


def test_one_line_is_for_how_many_there_are() -> None:
    assert lines_of(make_status(8), 80, 4)[-1] == "… 8 more: 8 busy"


def wide_status(**changes: Any) -> PoolStatus:
    worker = make_worker(
        3,
        61.0,
        argument="'x.png'",
        progress=30.0,
        total=120.0,
        note="tile",
        cpu=99.5,
        rss=3 * 2**20,
        replaced=2,
        failed=1,
    )
    return make_status((worker,), **changes)


def test_a_row_with_everything() -> None:
    head, row = lines_of(wide_status(), 160)[-2:]
    assert head.split() == [
        "#",
        "pid",
        "state",
        "task",
        "for",
        "progress",
        "note",
        "done",
        "failed",
        "cpu",
        "rss",
        "repl",
    ]
    assert re.fullmatch(r" 3  4003 ● running +work\[13\] 'x.png' +1:01 ━━────── +25% tile +103 +1 +100% +3.0M +2", row)


RANKS = ["note", "pid", "repl", "state", "failed", "done", "rss", "cpu", "progress"]
"""The least important columns come first."""


def test_columns_are_left_out_by_rank() -> None:
    gone: list[str] = []
    for width in range(160, 9, -1):
        head = lines_of(wide_status(), width)[-2].split()
        titles = set(head) | ({"state"} if width < 100 and "state" not in gone else set())
        now = [title for title in RANKS if title not in titles]
        if width < 100 and "●" not in lines_of(wide_status(), width)[-1]:
            now = sorted({*now, "state"}, key=RANKS.index)
        assert set(gone) <= set(now)
        assert now == RANKS[: len(now)]
        gone = now
    assert gone == RANKS


@pytest.mark.parametrize("width", [20, 40, 80, 100])
@pytest.mark.parametrize(("state", "word"), [("idle", "idle"), ("starting", "starting"), ("empty", "starting")])
def test_workers_without_a_task_say_what_they_are_at(state: str, word: str, width: int) -> None:
    row = lines_of(make_status((make_worker(0, state=state),)), width)[-1]
    assert row.split().count(word) == 1


def test_columns_that_have_nothing_to_tell_are_not_there() -> None:
    head = lines_of(make_status(), 160)[-3].split()
    assert head == ["#", "pid", "state", "task", "for", "done", "failed"]


def test_a_long_name_keeps_its_index() -> None:
    worker = make_worker(0, 1.0, function="a_function_of_a_very_long_name_indeed" * 3, item=123_456)
    assert "…[123456]" in lines_of(make_status((worker,)), 40)[-1]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_rows_of_wide_names_are_as_long_as_the_others(width: int) -> None:
    """Characters of two cells do not move the columns behind them."""
    names = ["work", "字" * 8, "字" * 11, "計算する関数の長い名前[bold]", "字" * 200]
    workers = tuple(make_worker(number, 1.0, function=name, argument="字") for number, name in enumerate(names))
    rows = lines_of(make_status(workers), width)[-len(names) :]
    assert len({cell_len(row[: row.index(" 1.0s")]) for row in rows}) == 1


@pytest.mark.parametrize(("argument", "cells"), [("'x.png'", 40), ("x" * 60, 80), ("字" * 20, 60)])
def test_the_column_of_tasks_is_as_wide_as_it_needs_to_be(argument: str, cells: int) -> None:
    """The width grows in steps, so that the columns behind it do not move from task to task."""
    head = lines_of(make_status((make_worker(0, 1.0, argument=argument),)), 500)[-2]
    assert head.index("for") + len("for") - head.index("task") == cells + 1 + 6


def test_arguments_are_cut() -> None:
    worker = make_worker(0, 1.0, argument="字" * 300)
    line = lines_of(make_status((worker,)), 80)[-1]
    assert "work[10] 字字" in line
    assert "…" in line


@pytest.mark.parametrize(
    ("progress", "total", "text"),
    [
        (30.0, 120.0, "25%"),
        (0.0, 120.0, "0%"),
        (240.0, 120.0, "200%"),
        (1e300, 1.0, "999%"),
        (-5.0, 10.0, "0%"),
        (5.0, -10.0, "0%"),
        (12_345.0, None, "12,345"),
        (0.5, 0.0, "0.5"),
        (-3.0, None, "-3"),
        (math.nan, 10.0, "?"),
        (math.nan, None, "nan"),
        (math.inf, None, "inf"),
        (5.0, math.inf, "0%"),
        (math.inf, math.inf, "?"),
        (5.0, math.nan, "?"),
    ],
)
def test_progress(progress: float, total: float | None, text: str) -> None:
    worker = make_worker(0, 1.0, progress=progress, total=total)
    assert re.search(rf"[ ━╾─]{re.escape(text)} +100 ", lines_of(make_status((worker,)))[-1])


def test_markup_is_no_markup() -> None:
    worker = make_worker(0, 1.0, function="[bold]f[/bold]", argument="[red]a[/]")
    assert "[bold]f[/bold][10] [red]a[/]" in lines_of(make_status((worker,)))[-1]


# --- failures -----------------------------------------------------------------------------------------


def test_failures_are_below() -> None:
    failures = tuple(make_failure(item=number, seconds=2.0 * number) for number in range(1, 4))
    lines = lines_of(make_status(failures=failures), 100)
    assert lines[-3] == "✗   2.0s ago  work[1] on 1  ValueError: no such thing"
    assert [line[line.index("[") :][:3] for line in lines[-3:]] == ["[1]", "[2]", "[3]"]


def test_errors_stand_below_each_other() -> None:
    failures = tuple(make_failure(item=10**number, worker=None if number == 2 else number) for number in range(4))
    lines = lines_of(make_status(failures=failures), 100)[-4:]
    assert len({line.index("ValueError") for line in lines}) == 1


def test_failures_leave_room_for_workers() -> None:
    lines = lines_of(make_status(64, failures=(make_failure(),) * 8), 80, 20)
    assert len(numbers(lines)) >= 8
    assert 1 <= len([line for line in lines if line.startswith("✗")]) <= 4


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", ["a_function_of_a_very_long_name_indeed" * 3, "字" * 60])
def test_a_long_name_leaves_room_for_its_error(name: str, width: int) -> None:
    line = lines_of(make_status(failures=(make_failure(function=name, item=123_456),)), width)[-1]
    assert "…[123456]" in line
    assert "  ValueError" in line


def test_long_errors_are_cut_and_wide_ones_too() -> None:
    for error in ("e" * 500, "字" * 500):
        line = lines_of(make_status(failures=(make_failure(error=error),)), 60)[-1]
        assert line.endswith("…")
        assert 59 <= cell_len(line) <= 60


# --- signs --------------------------------------------------------------------------------------------


def test_ascii_is_ascii() -> None:
    status = wide_status(running=(make_call(),) * 9, calls=9, failures=(make_failure(),) * 3, rates=tuple(range(60)))
    for width, height in SIZES:
        assert render(status, width, height, ascii=True).text.isascii()
    assert not render(status, 80, 24).text.isascii()


# --- frames -------------------------------------------------------------------------------------------


def test_frames_cut_what_is_too_wide_and_end_without_blanks() -> None:
    frame = Frame([[("ab", None), ("cd  ", None), ("  ", None)], [("字字字", None)], []], 5)
    assert frame.text == "abcd\n字字\n"


def test_parts_of_the_lowest_rank_are_left_out() -> None:
    parts = [(3, [("aaa", None)]), (1, [("bbb", None)]), (2, [("ccc", None)])]
    texts = ["".join(words for words, _style in joined(parts, width)) for width in (13, 12, 8, 7, 1)]  # type: ignore[arg-type]
    assert texts == ["aaa  bbb  ccc", "aaa  ccc", "aaa  ccc", "aaa", "aaa"]
