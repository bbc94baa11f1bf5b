"""The arithmetic, the turns and the report of the benchmarks, on made-up results. One cheap case really runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, runner
from benchmarks.cases import CASES, balance
from benchmarks.curves import CURVES
from benchmarks.limits import LIMITS
from benchmarks.model import OURS, STANDARD, Aim, Case, Curve, Limit, Results, Spread, Values
from benchmarks.peers import DISTRIBUTIONS, PEERS, Peer
from benchmarks.runner import Outcome, Turn


def nothing(_peer: Peer, _size: int) -> Values:
    return {}


def no_limit() -> Values:
    return {}


def no_points(_peer: Peer, _xs: list[int]) -> list[tuple[float, Values]]:
    return []


ONE = Case("one", "the first", "µs", nothing, size=50, caps={"loky": 5}, without={"ray": "no such thing"})
TWO = Case("two", "the second", "ms", nothing)
CURVE = Curve("line", "a line", "x", "y", no_points, (1, 2), without={STANDARD: "no such thing"})
LEAST = Limit("least", "the least", "µs", no_limit)

META = {
    "date": "2026-01-01",
    "kernel": "6.1.0",
    "python": "3.11.0",
    "cores": 2,
    "memory_gib": 8,
    "repeat": 3,
    "versions": {"pairpool": "0.1.0"},
}


def made_up(*rows: tuple[str, str, list[float]], more: Sequence[Any] = (), curves: Sequence[Any] = ()) -> Outcome:
    """Return the content of a results file with one run per value, and `more` runs."""
    runs = [{"case": case, "library": name, "values": {"value": x}} for case, name, values in rows for x in values]
    return {"meta": META, "runs": [*runs, *more], "curves": [*curves]}


# --- the table of cases -------------------------------------------------------------------------------


def test_cases_name_existing_limits_groups_and_libraries() -> None:
    for case in CASES.values():
        assert case.limit is None or case.limit in LIMITS
        assert case.limit is None or case.unit.partition(" ")[0] == LIMITS[case.limit].unit.partition(" ")[0]
        assert case.group in report.GROUPS
        assert {*case.caps, *case.without} <= set(PEERS)
        assert OURS not in {*case.caps, *case.without}
        for aim in case.aims:
            assert aim.of in {"", "limit", *PEERS}
            assert aim.of != "limit" or case.limit
            assert aim.field in {"value", *case.fields}
    for curve in CURVES.values():
        assert {*curve.caps, *curve.without} <= set(PEERS)
    assert not set(CASES) & set(CURVES)
    assert set(DISTRIBUTIONS) < set(PEERS)


def test_a_size_follows_the_cap_of_the_library_and_is_at_least_one() -> None:
    assert (ONE.size_for(OURS), ONE.size_for("loky"), ONE.size_for("loky", 0.01)) == (50, 5, 1)


def test_the_lengths_of_tasks_are_as_described() -> None:
    lengths = balance.short_then_long(320)
    assert lengths == [0.001] * 300 + [0.040] * 20
    assert balance.ideal(lengths, 2) == pytest.approx(0.55)
    assert balance.ideal(balance.one_long(2001), 2) == 0.3
    state = random.getstate()
    assert balance.shuffled(320) == balance.shuffled(320) != lengths
    assert sorted(balance.shuffled(320)) == sorted(lengths)
    spread = balance.lognormal(200)
    assert random.getstate() == state
    assert min(spread) < 1e-4
    assert 0.05 < max(spread) <= 0.1
    assert 1 < sum(spread) < 2


# --- turns --------------------------------------------------------------------------------------------


def test_each_round_of_turns_begins_with_another_library() -> None:
    planned = list(runner.turns([ONE, TWO], [LEAST], [CURVE], [OURS, STANDARD, "ray"], 2))
    assert [(turn.name, turn.library) for turn in planned if turn.repetition == 0] == [
        ("least", "limit"),
        ("one", OURS),
        ("one", STANDARD),
        ("two", OURS),
        ("two", STANDARD),
        ("two", "ray"),
        ("line", OURS),
        ("line", "ray"),
    ]
    assert [(turn.name, turn.library) for turn in planned if turn.repetition == 1] == [
        ("least", "limit"),
        ("one", STANDARD),
        ("one", OURS),
        ("two", STANDARD),
        ("two", "ray"),
        ("two", OURS),
    ]


def test_a_slow_measurement_is_not_repeated() -> None:
    def measure(turn: Turn) -> Outcome:
        return {"values": {"value": 1.0}, "seconds": 61.0 if turn.library == STANDARD else 1.0}

    lines: list[str] = []
    runs, curves = runner.run(runner.turns([TWO], [], [], [OURS, STANDARD], 3), lines.append, measure)
    assert [run["library"] for run in runs] == [OURS, STANDARD, OURS, OURS]
    assert "once" in runs[1]["trouble"]
    assert curves == []
    assert len(lines) == 4


def test_points_of_curves_are_separate_from_runs() -> None:
    def measure(_turn: Turn) -> Outcome:
        return {"points": [[1, {"value": 2.0}]], "seconds": 1.0}

    runs, curves = runner.run(runner.turns([], [], [CURVE], [OURS], 1), print, measure)
    assert runs == []
    assert curves == [{"curve": "line", "library": OURS, "points": [[1, {"value": 2.0}]], "seconds": 1.0}]


# --- arithmetic ---------------------------------------------------------------------------------------


def test_a_spread_has_the_median_and_both_extremes() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of([1.0, 2.0]).middle == 1.5
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


AIMS = (Aim(0.5, STANDARD), Aim(1.5, "limit"), Aim(4), Aim(1, "ray"), Aim(7, field="other"))


def test_aims_are_judged_by_medians() -> None:
    case = dataclasses.replace(TWO, aims=AIMS, limit="least")
    results = Results(made_up(("two", OURS, [9, 4, 3]), ("two", STANDARD, [8, 1, 100]), ("least", "limit", [2, 2, 2])))
    verdicts = results.verdicts(case)
    assert [(str(one.aim), one.reached, one.is_met) for one in verdicts] == [
        ("≤ 0.5 × multiprocessing", 0.5, True),
        ("≤ 1.5 × limit", 2.0, False),
        ("≤ 4", 4.0, True),
    ]


def test_the_best_peer_is_the_cheapest_other_library() -> None:
    results = Results(made_up(("two", OURS, [1]), ("two", STANDARD, [5]), ("two", "loky", [3])))
    best = results.best_peer("two")
    assert best is not None
    assert (best[0], best[1].middle) == ("loky", 3)
    assert [name for name, _ in results.ranking("two")] == [OURS, "loky", STANDARD]
    assert results.best_peer("two", apart={"loky"}) == (STANDARD, Spread(5, 5, 5, 1))
    assert Results(made_up(("two", OURS, [1]))).best_peer("two") is None
    assert Results(made_up(("two", OURS, [1]), ("two", STANDARD, [0]))).ratio("two", STANDARD) is None


# --- the report ---------------------------------------------------------------------------------------


@pytest.fixture
def data() -> Outcome:
    """Give results in which pairpool leads in one case and not in another, and a library failed."""
    return made_up(
        ("apply", OURS, [30.0, 20.0, 40.0]),
        ("apply", STANDARD, [100.0, 90.0, 120.0]),
        ("ping-pong", "limit", [15.0, 15.0, 15.0]),
        ("start-64", OURS, [200.0, 200.0, 200.0]),
        ("start-64", STANDARD, [100.0, 100.0, 100.0]),
        more=[
            {"case": "start-64", "library": "pebble", "trouble": "killed after 120 s"},
            {"case": "apply", "library": "ray", "values": {"value": 2000.0}},
        ],
        curves=[
            {"curve": "map-items", "library": OURS, "points": [[100, {"value": 2.0}], [1000, {"value": 1.0}]]},
            {"curve": "map-items", "library": "pebble", "trouble": "it fell over"},
        ],
    )


@pytest.fixture
def results(data: Outcome) -> Results:
    return Results(data)


def cells(text: str, name: str) -> list[str]:
    row = next(line for line in text.splitlines() if f"`{name}`" in line and line.startswith("|"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_summary_compares_pairpool_with_peers_limits_and_aims(results: Results) -> None:
    text = report.summary(results)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert cells(text, "apply")[1:] == [
        "µs",
        "30 (20 to 40)",
        f"100 {STANDARD}",
        "yes",
        "0.3",
        "2",
        "≤ 0.35 × multiprocessing: met; ≤ 1.5 × limit: **missed**, 2",
    ]
    assert cells(text, "start-64")[4:] == ["no", "2", "", "≤ 0.8 × multiprocessing: **missed**, 2"]
    assert "1 of 3 aims" in report.score(results)
    assert f"- {STANDARD} in `start-64`: pairpool costs 2 times as much" in report.score(results)


def test_the_page_contains_every_library_and_every_failure(results: Results) -> None:
    text = report.page(results, {"calls": "calls.svg", "cost by the number of items": "items.svg"})
    for words in (
        "2026-01-01, Linux 6.1.0, CPython 3.11.0, 2 cores, 8 GiB",
        "the median of 3 processes",
        "![Calls and maps of tasks that do nothing](calls.svg)",
        "![cost by the number of items](items.svg)",
        "ray 500",
        "No figure for pebble: killed after 120 s.",
        "ray: a fresh interpreter would start for each worker.",
        "- pebble in `map-items`: it fell over.",
        LIMITS["ping-pong"].title,
    ):
        assert words in text
    assert "memfd" not in text  # this limit was not measured


def test_numbers_have_three_digits_and_no_exponent() -> None:
    assert [report.number(x) for x in (0, 0.01234, 1.5, 12.345, 1234.5, 1e6)] == [
        "0",
        "0.0123",
        "1.5",
        "12.3",
        "1,234",
        "1,000,000",
    ]


DRAW = """
import json, sys
from pathlib import Path
from benchmarks import plots
from benchmarks.model import Results
print(json.dumps(plots.draw(Results(json.load(sys.stdin)), Path(sys.argv[1]))))
"""


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the bench extra is not installed")
def test_the_figures_are_drawn(data: Outcome, tmp_path: Path) -> None:
    """Draw in another process, because matplotlib keeps its fonts open."""
    done = subprocess.run(
        [sys.executable, "-c", DRAW, tmp_path], cwd=runner.ROOT, input=json.dumps(data).encode(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    drawn = json.loads(done.stdout)
    assert set(drawn) == {"calls", "pools", "cost by the number of items"}
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in drawn.values())


# --- real measurements --------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [OURS, STANDARD])
def test_a_case_runs_in_its_own_process(library: str) -> None:
    found = runner.measure(Turn("case", "apply", library, 0), scale=0.01)
    assert set(found) == {"values", "seconds"}
    assert found["values"]["value"] > 0


def test_a_child_that_fails_reports_why_and_a_child_that_hangs_is_killed() -> None:
    assert "KeyError: 'no such case'" in runner.measure(Turn("case", "no such case", OURS, 0))["trouble"]
    found = runner.measure(Turn("case", "apply", STANDARD, 0), scale=1e6, patience=1.0)
    assert found["trouble"] == "killed after 1 s"
