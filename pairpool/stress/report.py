"""Show a campaign on a terminal: a line of progress, and the tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pairpool.stress.checks import CampaignReport

__all__ = ["progress", "show"]


@contextmanager
def progress(total: int, *, is_wanted: bool) -> Iterator[Callable[[int, int], object]]:
    """Show a line of progress if stderr is a terminal. It is drawn by the caller, so there is no thread."""
    console = Console(stderr=True)
    if not console.is_terminal or not is_wanted:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("stress"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,  # workers would inherit the replacement
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task("stress", total=total)
        calls = 0

        def update(done: int, _total: int) -> None:
            nonlocal calls
            calls += 1
            bar.update(task, completed=done, refresh=calls % 20 == 0)

        yield update


def _kinds(report: CampaignReport) -> Table:
    table = Table(title=f"pairpool stress, seed {report.order['seed']}")
    table.add_column("task")
    for name in ("count", "as predicted", "WorkerDied", "breaches"):
        table.add_column(name, justify="right")
    total = [0, 0, 0, 0]
    for kind, row in report.kinds.items():
        figures = [row["count"], row["foretold"], row["died"], row["breaches"]]
        total = [one + other for one, other in zip(total, figures, strict=True)]
        table.add_row(kind, *(f"{figure:,}" if figure else "" for figure in figures))
    table.add_section()
    table.add_row("all", *(f"{figure:,}" for figure in total))
    return table


def _facts(report: CampaignReport) -> Table:
    table = Table(show_header=False)
    order = report.order
    kills = ", ".join(f"{count:,} {name}" for name, count in report.kills.items()) or "none"
    size = "automatic" if order["chunksize"] is None else order["chunksize"]
    table.add_row("pool", f"{order['workers']} workers, {order['start_method']}, chunksize {size}")
    table.add_row("kills", kills)
    table.add_row("WorkerDied", f"{report.died_by_own_hand:,} by the task itself, {report.died_by_kill:,} by a kill")
    table.add_row("started twice", f"{report.started_twice:,}")
    table.add_row("time", f"{report.seconds:,.1f} s, {report.tasks_per_second:,.0f} tasks/s")
    if report.memory:
        memory = {name: f"{figure >> 20:,}" for name, figure in report.memory.items()}
        table.add_row(
            "memory, MiB",
            f"first {memory['first']}, second quarter {memory['second_quarter']}, "
            f"last quarter {memory['last_quarter']}, most {memory['most']}",
        )
        table.add_row("descriptors", f"first {report.descriptors['first']}, most {report.descriptors['most']}")
    table.add_row("orphans", f"{report.orphans:,} (left by tasks whose worker died with its zygote, or had none)")
    return table


def show(report: CampaignReport, console: Console | None = None) -> None:
    """Print the report. Its last line says whether the campaign passed."""
    console = console or Console(width=None if Console().is_terminal else 120)
    console.print(_kinds(report))
    console.print(_facts(report))
    seed = report.order["seed"]
    if report.verdict == "passed":
        console.print(f"passed: {report.tasks_ended:,} tasks ended as predicted, seed {seed}", markup=False)
        return
    first = report.breaches[0]
    console.print(f"FAILED: {report.breach_count:,} breaches, seed {seed}", markup=False)
    console.print(f"first: {first['what']}: {first['text']}", markup=False, soft_wrap=True)
