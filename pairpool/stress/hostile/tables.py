"""Show a hostile campaign on a terminal: what the attacks did, how they ended, and what became of the others."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pairpool.stress.hostile.reports import SiegeReport

__all__ = ["show_siege"]

WAYS = ("WorkerDied", "TaskTimeout", "returned", "forged", "exception")
"""How an attack ends: the columns of the table."""


def _deeds(report: SiegeReport) -> Table:
    table = Table(title=f"pairpool stress --hostile, seed {report.order['seed']}")
    table.add_column("last deed of the attack")
    for way in ("attacks", *WAYS):
        table.add_column(way, justify="right")
    for deed, ways in sorted(report.deeds.items()):
        figures = [sum(ways.values()), *(ways.get(way, 0) for way in WAYS)]
        table.add_row(deed, *(f"{figure:,}" if figure else "" for figure in figures))
    return table


def _facts(report: SiegeReport) -> Table:
    table = Table(show_header=False)
    order = report.order
    died = sum(ways.get("WorkerDied", 0) for ways in report.deeds.values())
    ended = ", ".join(f"{count:,} with {name}" for name, count in report.ended.items()) or "none"
    table.add_row("pool", f"{order['workers']} workers, {order['start_method']}, {report.rounds:,} masters")
    table.add_row("attacks", f"{report.attacks:,}: {report.packets:,} packets, {report.boards:,} boards")
    table.add_row("WorkerDied", f"{died:,}, of these {report.misused:,} because the channel was misused")
    table.add_row("calls of others", f"{report.calls:,} calls with {report.items:,} items were checked")
    exceptions = ", ".join(f"{count:,} {name}" for name, count in sorted(report.exceptions.items())) or "none"
    table.add_row("exceptions", f"of attacks: {exceptions}")
    table.add_row("items of others", f"ended by a forged scoreboard, or after an attack in their worker: {ended}")
    table.add_row("masters", f"{report.masters_died:,} died or hung")
    table.add_row("time", f"{report.seconds:,.1f} s")
    return table


def show_siege(report: SiegeReport, console: Console | None = None) -> None:
    """Print the report. Its last line says whether the campaign passed."""
    console = console or Console(width=None if Console().is_terminal else 120)
    console.print(_deeds(report))
    console.print(_facts(report))
    seed = report.order["seed"]
    if report.passed:
        text = f"passed: {report.packets:,} packets and {report.boards:,} boards harmed nothing else, seed {seed}"
        console.print(text, markup=False)
        return
    for breach in report.breaches:
        console.print(f"- {breach}", markup=False, soft_wrap=True)
    console.print(f"FAILED: {len(report.breaches):,} breaches, seed {seed}", markup=False)
