"""`pairpool stress`: small campaigns pass, and campaigns with a breach fail."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pairpool import WorkerDied
from pairpool.cli import main
from pairpool.stress import environment, report
from pairpool.stress.checks import CampaignReport, Kill, Observations, Sample, check_campaign, excused
from pairpool.stress.outcome_log import OutcomeLog
from pairpool.stress.plan import Task, TaskKind
from tests.support.scripts import python, running
from tests.support.waiting import PATIENCE

# --- campaigns ----------------------------------------------------------------------------------------


def stress(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a campaign as a user does: warnings are not errors."""
    return python("-W", "default", "-m", "pairpool", "stress", "--workers", 4, "--hang", 20, *arguments)


@pytest.mark.parametrize("chunksize", [None, 1])
def test_a_small_campaign_passes(start_method: str, chunksize: int | None, tmp_path: Path) -> None:
    file, memory = tmp_path / "report.json", tmp_path / "memory.csv"
    options = ["--tasks", 2000, "--kills", 20, "--seed", 11, "--start-method", start_method]
    options += [] if chunksize is None else ["--chunksize", chunksize]
    done = stress(*options, "--json", file, "--memory-log", memory)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["verdict"] == "passed"
    assert found["tasks_ended"] == sum(row["count"] for row in found["kinds"].values()) == 2000
    assert sum(count for name, count in found["kills"].items() if name != "SIGCONT") == 20
    assert found["breaches"] == []
    assert done.stdout.splitlines()[-1] == "passed: 2,000 tasks ended as predicted, seed 11"
    assert memory.read_text().startswith("seconds,rss,fds,ended\n")


def test_a_campaign_passes_with_the_live_view(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = stress("--tasks", 2000, "--kills", 20, "--seed", 12, "--live", "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(file.read_text())["tasks_ended"] == 2000
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stress: ended after "), done.stderr
    assert re.search(r"; tasks: [\d,]+ done, \d+ failed$", last), last


def test_the_option_seconds_ends_a_campaign_early(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = stress("--tasks", 5_000_000, "--kills", 5, "--seconds", 1, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["tasks_dealt"] == found["tasks_ended"] < 5_000_000


def test_ctrl_c_ends_a_campaign_with_status_130() -> None:
    arguments = ["-m", "pairpool", "stress", "--tasks", 5_000_000, "--kills", 100_000, "--workers", 2]
    with running(*arguments, warnings="default") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2:  # the zygote, then the killer
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _out, complaints = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complaints) == (130, "interrupted\n")


@pytest.mark.parametrize("wrong", ["--workers=0", "--seconds=-1", "--start-method=spawn", "--seed=x"])
def test_bad_usage_ends_with_status_2(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stress", wrong])
    assert caught.value.code == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_an_error_before_the_campaign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stress", "--json", str(tmp_path / "nowhere" / "report.json")]) == 2
    assert "nowhere" in capsys.readouterr().err


# --- checks -------------------------------------------------------------------------------------------


def log(outcomes: dict[int, Any], tasks: int = 4, *, strict: bool = False) -> OutcomeLog:
    """Return the log of no-ops. Tasks that are not in `outcomes` ended as predicted; None means no outcome."""
    found = OutcomeLog(tasks)
    planned = [Task(number, TaskKind.NOOP) for number in range(tasks)]
    found.deal(planned, strict=strict)
    for task in planned:
        outcome = outcomes.get(task.number, task.number)
        if outcome is not None:
            found.end(task, outcome)
    return found


def check(found: OutcomeLog, **seen: Any) -> CampaignReport:
    observations = Observations(**{"starts": b"\1" * 4, "seconds": 1.0, **seen})
    options = {"workers": 1, "start_method": "fork", "chunksize": 1, "seed": 5, "tasks": 4, "kills": 0}
    return check_campaign(found, observations, options, {})


def breaches(made: CampaignReport) -> list[str]:
    return [breach["what"] for breach in made.breaches]


def killed(pid: int, exitcode: int | None = -9) -> WorkerDied:
    return WorkerDied("run", 0, 0, pid, exitcode, "signal SIGKILL")


def test_a_campaign_without_a_breach_passes() -> None:
    made = check(log({}))
    assert (made.verdict, made.breach_count, made.tasks_ended) == ("passed", 0, 4)


def test_a_wrong_outcome_is_a_breach() -> None:
    made = check(log({2: 3}))
    assert (made.verdict, breaches(made)) == ("failed", ["wrong outcome"])
    assert made.breaches[0]["task"] == 2


def test_a_missing_outcome_is_a_breach() -> None:
    assert breaches(check(log({1: None, 3: None}))) == ["never ended", "never ended"]


def test_a_second_outcome_of_a_task_is_a_breach() -> None:
    found = log({})
    found.end(Task(0, TaskKind.NOOP), 0)
    made = check(found)
    assert breaches(made) == ["ended twice"]
    assert made.tasks_ended == 4


def test_an_outcome_of_a_task_that_never_started_is_a_breach() -> None:
    assert breaches(check(log({}), starts=b"\1\1\0\1")) == ["wrong outcome"]


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        ([], ["unexplained death"]),
        ([Kill(1.0, "SIGKILL", 42)], ["unexplained death"]),
        ([Kill(1.0, "SIGSTOP", 41), Kill(1.1, "SIGCONT", 41)], ["unexplained death"]),
        ([Kill(1.0, "SIGTERM", 41)], ["unexplained death"]),
        ([Kill(1.0, "SIGKILL", 41)], []),
        ([Kill(1.0, "SIGKILL", 40, [39, 41])], []),
    ],
)
def test_a_death_must_be_explained_by_a_kill(kills: list[Kill], expected: list[str]) -> None:
    made = check(log({1: killed(41)}), kills=kills)
    assert breaches(made) == expected
    assert made.died_by_kill == 1 - len(expected)


def check_starts(*, strict: bool) -> CampaignReport:
    return check(log({}, strict=strict), starts=b"\1\2\1\1")


def test_a_second_start_is_a_breach_if_tasks_are_strict() -> None:
    assert breaches(check_starts(strict=True)) == ["started twice"]
    made = check_starts(strict=False)
    assert (breaches(made), made.started_twice) == ([], 1)


def test_a_process_left_behind_is_a_breach() -> None:
    assert breaches(check(log({}), left=["process 17"])) == ["left behind"]


def test_kills_that_found_no_victim_are_a_breach() -> None:
    found = [Kill(1.0, "SIGKILL", 41), Kill(1.0, "none", 0)]
    options = {"workers": 1, "start_method": "fork", "chunksize": 1, "seed": 5, "tasks": 4, "kills": 2}
    made = check_campaign(log({}), Observations(b"\1" * 4, found), options, {})
    assert breaches(made) == ["kills missing"]


@pytest.mark.parametrize(("mib", "expected"), [(0.5, []), (4, ["memory grew"])])
def test_memory_that_grows_is_a_breach(mib: float, expected: list[str]) -> None:
    samples = [Sample(float(second), int(100 + second * mib) << 20, 20, second) for second in range(120)]
    assert breaches(check(log({}), samples=samples)) == expected


def test_descriptors_that_grow_are_a_breach() -> None:
    samples = [Sample(float(second), 1 << 20, 20 + second, second) for second in range(120)]
    assert breaches(check(log({}), samples=samples)) == ["descriptors grew"]


def test_only_orphans_that_no_pool_can_end_are_excused() -> None:
    kills = [Kill(1.0, "SIGKILL", 40, [41, 42]), Kill(2.0, "SIGKILL", 43)]
    assert excused(kills, "fork") == {41, 42}
    assert excused(kills, "direct") == {-1}


def test_the_report_names_the_seed_and_the_first_breach() -> None:
    console = Console(file=io.StringIO(), width=120)
    report.show(check(log({1: 7, 2: 9})), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[-2] == "FAILED: 2 breaches, seed 5"
    assert lines[-1].startswith("first: wrong outcome: Task(number=1")


# --- the environment ----------------------------------------------------------------------------------


def test_a_marked_process_is_found_unless_it_is_excused() -> None:
    before = environment.EnvironmentSnapshot.take()
    tag = f"pairpool-stress-test-{os.getpid()}"
    variables = {**os.environ, "PAIRPOOL_STRESS": tag, "pairpool-stress-left": "41;"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=variables) as process:
        for excuses in ({41}, {process.pid}, {-1}):
            left, orphans = environment.leftovers(before, tag, excuses, grace=0.0)
            assert [one.pid for one in orphans] == [process.pid]
            assert not any(line.startswith("process") for line in left)
        left, orphans = environment.leftovers(before, tag, {40}, grace=0.0)
        assert orphans == []
        assert any(line.startswith(f"process {process.pid} ") for line in left)
        environment.end_all(tag)
        assert process.wait(PATIENCE) == -signal.SIGKILL
