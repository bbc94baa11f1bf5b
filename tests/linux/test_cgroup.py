"""The number of cores that affinity and control groups allow, and the counter of out-of-memory kills."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairpool.linux import cgroup
from tests.support.scripts import ROOT


def test_the_allowance_follows_the_affinity() -> None:
    """Set the affinity in a separate process, because it lasts for the whole process."""
    code = """
import os
from pairpool.linux.cgroup import cpu_allowance
cores = sorted(os.sched_getaffinity(0))
before = cpu_allowance()
os.sched_setaffinity(0, cores[-1:])
print(len(cores), before, cpu_allowance())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    cores, before, after = map(int, done.stdout.split())
    assert 1 <= before <= cores
    assert after == 1


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that writes cgroup files and returns the allowance of a process with 64 cores.

    The paths are fixed in the code. So this fixture redirects files under /sys/fs/cgroup to `tmp_path`.
    """

    def opened(path: str, *args: Any, **options: Any) -> Any:
        assert path.startswith(("/sys/fs/cgroup", "/proc/self/cgroup"))
        return builtins.open(f"{tmp_path}{path}", *args, **options)

    monkeypatch.setattr(cgroup, "open", opened, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))

    def allowance(membership: str, **files: str) -> int:
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
        for path, content in files.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return cgroup.cpu_allowance()

    return allowance


Cgroups = Callable[..., int]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 64),
        ("800000 100000", 8),
        ("200001 100000", 3),
        ("100000 100000", 1),
        ("1000 100000", 1),
        ("5000000 50000", 64),
        ("nonsense", 64),
        ("", 64),
    ],
)
def test_version_2_quota(cgroups: Cgroups, quota: str, cores: int) -> None:
    assert cgroups("0::/mine\n", **{"mine/cpu.max": quota}) == cores


def test_the_tightest_quota_above_counts(cgroups: Cgroups) -> None:
    quotas = {"": "max", "a/": "300000", "a/b/": "max", "a/b/c/": "500000"}
    files = {f"{path}cpu.max": f"{quota} 100000" for path, quota in quotas.items()}
    assert cgroups("0::/a/b/c\n", **files) == 3
    assert cgroups("0::/a/b\n", **files) == 3
    assert cgroups("0::/other\n", **files) == 64


def test_the_quota_of_a_container_is_at_its_root(cgroups: Cgroups) -> None:
    """A container sees its own cgroup at the top, whatever the host calls it."""
    assert cgroups("0::/\n", **{"cpu.max": "400000 100000"}) == 4
    assert cgroups("0::/docker/0123\n", **{"cpu.max": "400000 100000"}) == 4


VERSION_1 = "12:pids:/mine\n4:cpu,cpuacct:/mine\n3:cpuset:/mine\n1:name=systemd:/mine\n"


@pytest.mark.parametrize(("quota", "cores"), [("-1", 64), ("600000", 6), ("0", 64), ("nonsense", 64)])
def test_version_1_quota(cgroups: Cgroups, quota: str, cores: int) -> None:
    files = {
        "cpu,cpuacct/mine/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/mine/cpu.cfs_period_us": "100000",
        "cpuset/mine/cpu.cfs_quota_us": "100000",
        "cpuset/mine/cpu.cfs_period_us": "100000",
    }
    assert cgroups(VERSION_1, **files) == cores


def test_both_versions_at_once(cgroups: Cgroups) -> None:
    files = {
        "cpu/mine/cpu.cfs_quota_us": "700000",
        "cpu/mine/cpu.cfs_period_us": "100000",
        "mine/cpu.max": "900000 100000",
    }
    assert cgroups("2:cpu:/mine\n0::/mine\n", **files) == 7


def test_without_cgroups_the_affinity_counts(cgroups: Cgroups, tmp_path: Path) -> None:
    assert cgroups("") == 64
    (tmp_path / "proc/self/cgroup").unlink()
    assert cgroup.cpu_allowance() == 64
