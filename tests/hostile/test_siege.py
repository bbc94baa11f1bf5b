"""`pairpool stress --hostile`: a few seconds of attacks on each start method harm nothing but the attackers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pairpool.cli import main
from pairpool.errors import WorkerDied
from pairpool.stress.hostile.innocents import Verdicts
from pairpool.stress.hostile.record import Record
from pairpool.stress.hostile.reports import RoundOrder, RoundReport, SiegeReport
from tests.support.scripts import python


def besiege(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("-W", "default", "-m", "pairpool", "stress", "--hostile", "--workers", 3, "--hang", 30, *arguments)


def test_attacks_harm_nothing_but_the_attackers(start_method: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = ["--start-method", start_method, "--packets", 400, "--boards", 200, "--seed", 5]
    done = besiege(*options, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert (found["breaches"], found["masters_died"]) == ([], 0)
    assert found["packets"] >= 400
    assert found["boards"] >= 200
    assert found["calls"] > 0
    assert found["misused"] > 0
    assert done.stdout.splitlines()[-1].endswith("harmed nothing else, seed 5")


def test_bad_usage_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stress", "--hostile", "--packets=-1"])
    assert caught.value.code == 2
    assert "--packets" in capsys.readouterr().err


# --- the checks, which must be able to fail -------------------------------------------------------------


def order(**changes: Any) -> RoundOrder:
    plain: dict[str, Any] = {
        "seed": 1, "first": 10, "attacks": 2, "front": "packets", "start_method": "fork", "workers": 2,
        "limit_s": 1.0, "report_fd": -1, "tag": "tag",
    }  # fmt: skip
    return RoundOrder(**{**plain, **changes})


def test_a_wrong_value_of_an_innocent_item_is_a_breach() -> None:
    verdicts = Verdicts(lambda _pid: True)
    verdicts.check("map", [1, 2], [1, 2])
    assert (verdicts.breaches, verdicts.calls, verdicts.items) == ([], 1, 2)
    verdicts.check("map", [1, 3], [1, 2])
    verdicts.check("map", [1], [1, 2])
    verdicts.check("map", [KeyError("x"), 2], [1, 2])
    assert [text.partition(",")[0].partition(" ended")[0] for text in verdicts.breaches] == [
        "map: item 1 of others is 3",
        "map: 1 outcomes of 2 items",
        "map: item 0 of others",
    ]


@pytest.mark.parametrize("may_end", [True, False])
def test_an_innocent_item_may_end_only_in_a_worker_that_an_attack_could_harm(may_end: bool) -> None:
    verdicts = Verdicts(lambda pid: may_end and pid == 17)
    verdicts.check("map", [WorkerDied("f", 0, 0, 17)], [1])
    assert bool(verdicts.breaches) is not may_end
    assert verdicts.ended == ({"WorkerDied": 1} if may_end else {})


def test_breaches_that_differ_in_numbers_only_are_recorded_once() -> None:
    verdicts = Verdicts(lambda _pid: False)
    for number in range(3):
        verdicts.breach(f"call {number} failed")
    assert verdicts.breaches == ["call 0 failed"]


def test_the_record_of_a_round_counts_what_attacks_did() -> None:
    record = Record.create("test", 10, 2)
    try:
        record.note(11, "began")
        record.note(11, "noise", packets=2)
        record.note(11, "a deed with a long name", packets=1, boards=3)
        assert record.row(11) == ("a deed with a lo", 3, 3, os.getpid(), False)
        assert not record.has_gone_on(os.getpid())
        record.end(11)
        assert record.has_gone_on(os.getpid())
        report = SiegeReport()
        report.add(order(), record, RoundReport(outcomes=[(11, "WorkerDied")], calls=4), "")
    finally:
        record.close()
    assert (report.attacks, report.packets, report.boards, report.calls) == (1, 3, 3, 4)
    assert report.deeds == {"a deed with a lo": {"WorkerDied": 1}}
    assert report.passed


def test_a_master_that_died_is_a_breach() -> None:
    record = Record.create("test", 10, 2)
    try:
        report = SiegeReport()
        report.add(order(), record, RoundReport(), "the master died: SIGBUS")
    finally:
        record.close()
    assert (report.masters_died, report.passed) == (1, False)
    assert report.breaches == ["packets, attacks 10 to 11: the master died: SIGBUS"]
