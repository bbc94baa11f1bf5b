"""Makes the pictures of the live view, of `pairpool top` and of a timeline that README and docs show, from real runs.

    python docs/pictures.py         from the root of a clone, with pairpool installed

Each is an SVG that fetches nothing from elsewhere.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmarks.cases.balance import lognormal, short_then_long
from benchmarks.tasks import nap, spin
from pairpool import Pool
from pairpool.status import PoolStatus
from pairpool.view.find import PoolObserver, pools
from pairpool.view.table import render
from pairpool.view.timeline import run as draw
from pairpool.view.usage import Sampler

DOCS = Path(__file__).parent
NAME = "watch-me"
AFTER = 24.0
"""Seconds into the run from which on the pictures are taken, when some tasks tell how far they are."""


def save(status: PoolStatus, width: int, height: int, name: str, before: list[Text] | None = None) -> None:
    """The picture of a status, as it stands in a terminal of this size."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in before or []:
        console.print(line)
    console.print(render(status, width, height), end="")
    svg = console.export_svg(title=f"pairpool: {status.name}")
    svg = re.sub(r"@font-face \{[^}]*\}", "", svg).replace("Fira Code", "DejaVu Sans Mono")
    (DOCS / f"{name}.svg").write_text(svg)


def measured(sight: PoolObserver, seconds: float = 1.0) -> PoolStatus:
    """A status with CPU and memory, measured over so many seconds."""
    sampler = Sampler(every=0.0)
    sampler.fill(sight.status())
    time.sleep(seconds)
    return sampler.fill(sight.status())


def watch() -> None:
    """The example that is worth watching, from outside: at work, and with its master stopped."""
    example = DOCS.parent / "examples" / "watch_me.py"
    command = [sys.executable, str(example), "--quiet", "--seconds", "60", "--workers", "8"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(AFTER)
        [found] = [one for one in pools() if one.pid == process.pid]
        with PoolObserver(found) as sight:
            while sum(worker.total is not None for worker in sight.status().workers) < 5:
                time.sleep(0.05)
            save(measured(sight), 100, 30, "live")
            save(measured(sight), 40, 14, "live-narrow")
            os.kill(process.pid, signal.SIGSTOP)
            save(measured(sight, 0.3), 100, 30, "top-stopped", [Text(f"$ pairpool top {NAME} --once", style="bold")])
        process.kill()


def timeline() -> None:
    """The benchmarks of tasks of unequal length, and a worker that is killed in the second."""
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "run.json"
        with Pool(4, trace=trace, name="unequal tasks") as pool:
            pool.resize(4)
            pool.map(nap, short_then_long(320))
            result = pool.map_async(spin, lognormal(300), return_exceptions=True)
            while pool.status().done < 420:
                time.sleep(0.01)
            os.kill(pool.status().workers[1].pid, signal.SIGKILL)
            result.wait()
            print(pool.report())
        draw(str(trace), str(DOCS / "timeline.svg"), 1000, None, None)


if __name__ == "__main__":
    watch()
    timeline()
