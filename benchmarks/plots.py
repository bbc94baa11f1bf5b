"""The figures of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.curves import CURVES
from benchmarks.model import OURS, VALUE, Case, Results
from benchmarks.report import GROUPS, number, present

STRONG = "#d55e00"
LIMIT = "#000000"
INK = "#333333"

# Okabe and Ito's colours, which all eyes tell apart; each library has a marker of its own as well.
STYLES: dict[str, tuple[str, str]] = {
    OURS: (STRONG, "o"),
    "multiprocessing": ("#0072b2", "s"),
    "ProcessPoolExecutor": ("#56b4e9", "^"),
    "loky": ("#009e73", "v"),
    "joblib": ("#7fc97f", "D"),
    "mpire": ("#cc79a7", "P"),
    "pebble": ("#999999", "X"),
    "billiard": ("#e69f00", "<"),
    "ray": ("#5e3c99", ">"),
}
PEER_BAR = "#a9bccb"
STANDARD_BAR = "#0072b2"

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.fonttype": "path",
        "svg.hashsalt": "pairpool",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

COLUMNS = 2


def _save(figure: Any, path: Path) -> str:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return path.name


def _bar_colour(library: str) -> str:
    return {OURS: STRONG, "multiprocessing": STANDARD_BAR}.get(library, PEER_BAR)


def _label(value: float, times: float | None) -> str:
    return number(value) if times is None else f"{number(value)}  ({number(times)} ×)"


def _bars(axes: Any, results: Results, case: Case) -> None:
    """One case: a bar for each library, the cheapest on top; the limit as a dashed line."""
    ranking = results.ranking(case.name)[::-1]
    values = [max(spread.middle, 0.0) for _, spread in ranking]
    ours = results.spread(case.name, OURS)
    limit = results.spread(case.limit, "limit") if case.limit else None
    widest = max([*values, limit.middle if limit else 0.0]) or 1.0
    places = range(len(ranking))
    axes.barh(places, values, color=[_bar_colour(library) for library, _ in ranking], height=0.72)
    for place, (library, spread) in zip(places, ranking, strict=True):
        axes.plot([spread.least, spread.most], [place, place], color=INK, lw=1, solid_capstyle="butt")
        times = spread.middle / ours.middle if ours and ours.middle > 0 and library != OURS else None
        end = max(spread.most, spread.middle, 0.0) + widest * 0.015
        weight = "bold" if library == OURS else "normal"
        axes.text(end, place, _label(spread.middle, times), va="center", fontsize=8.5, weight=weight)
    if limit:
        axes.axvline(limit.middle, color=LIMIT, ls=(0, (4, 3)), lw=1.2)
        axes.text(limit.middle, len(ranking) - 0.42, " limit", fontsize=8, va="bottom", ha="left")
    axes.set_yticks(list(places), [library for library, _ in ranking])
    for tick, (library, _) in zip(axes.get_yticklabels(), ranking, strict=True):
        tick.set_weight("bold" if library == OURS else "normal")
    axes.set_xlim(0, max(widest, *(spread.most for _, spread in ranking)) * 1.28)
    axes.set_xlabel(case.unit, fontsize=9)
    axes.set_title(case.title, loc="left", pad=14 if limit else 8)
    axes.tick_params(axis="y", length=0)


def bars(results: Results, cases: list[Case], title: str) -> Any:
    """A figure with a panel for each case."""
    rows = -(-len(cases) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(11, 3.1 * rows + 0.7), squeeze=False, layout="constrained")
    for axes, case in zip(grid.flat, cases, strict=False):
        _bars(axes, results, case)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"{title}: less is better; in brackets, times pairpool; thin lines: from the best to the worst run", fontsize=10
    )
    return figure


# --- lines --------------------------------------------------------------------------------------------

Transform = Callable[[float, float], float]


def _plain(value: float, _position: int) -> str:
    """A tick of a logarithmic axis: 1, 100, 10k, 1M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _bytes(value: float, _position: int) -> str:
    for size, letter in ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g} B"


def _lines(axes: Any, curves: Iterable[Any], field: str = VALUE, transform: Transform | None = None) -> None:
    """A line for each library; pairpool's last, so that it lies on top."""
    for curve in sorted(curves, key=lambda curve: curve["library"] == OURS):
        points = [(x, values[field]) for x, values in curve.get("points", ()) if field in values]
        if not points:
            continue
        colour, marker = STYLES[curve["library"]]
        ours = curve["library"] == OURS
        ys = [transform(x, y) if transform else y for x, y in points]
        axes.plot(
            [x for x, _ in points],
            ys,
            color=colour,
            marker=marker,
            ms=7 if ours else 5,
            lw=3 if ours else 1.4,
            label=curve["library"],
            zorder=3 if ours else 2,
        )
    axes.grid(which="major", lw=0.4, color="#cccccc")


def _log_axes(axes: Any, x_format: Callable[[float, int], str], base: int = 10, log_y: bool = True) -> None:
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_formatter(FuncFormatter(x_format))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, axes: Any) -> None:
    """Below the panels, pairpool first, so that it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: list(STYLES).index(labels[index]))
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )


def _pair() -> tuple[Any, Any, Any]:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    return figure, left, right


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def items_figure(by_name: dict[str, list[Any]]) -> Any:
    figure, left, right = _pair()
    for axes, name in ((left, "map-items"), (right, "imap_unordered-items")):
        _lines(axes, by_name.get(name, ()))
        _log_axes(axes, _plain)
        _titled(axes, CURVES[name].title.partition(":")[0], "items", "µs an item")
    _legend(figure, left)
    return figure


def workers_figure(by_name: dict[str, list[Any]]) -> Any:
    figure, left, right = _pair()
    _lines(left, by_name["workers"])
    _titled(left, "from opening to the first result", "workers", "ms")
    _lines(right, by_name["workers"], "task")
    _titled(right, "tasks submitted one by one", "workers", "µs a task")
    for axes in (left, right):
        _log_axes(axes, _plain, base=2)
    _legend(figure, left)
    return figure


def payload_figure(by_name: dict[str, list[Any]]) -> Any:
    figure, left, right = _pair()
    _lines(left, by_name["payload"])
    _titled(left, "array there, small result back: time", "size of the array", "ms")
    _lines(right, by_name["payload"], transform=lambda size, ms: size / ms / 1e6)
    _titled(right, "the same as a rate (more is better)", "size of the array", "GB/s")
    for axes in (left, right):
        _log_axes(axes, _bytes, base=2)
        axes.set_xticks([2**power for power in (0, 10, 20, 30)])
    _legend(figure, left)
    return figure


def efficiency_figure(by_name: dict[str, list[Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    _lines(axes, by_name["efficiency"])
    _log_axes(axes, _plain, log_y=False)
    axes.set_ylim(0, 103)
    _titled(axes, "time of two workers that was spent in tasks (more is better)", "µs of a task", "%")
    _legend(figure, axes)
    return figure


DRAWERS: dict[str, tuple[str, Callable[[dict[str, list[Any]]], Any]]] = {
    "cost by the number of items": ("map-items", items_figure),
    "cost by the number of workers": ("workers", workers_figure),
    "cost by the size of the payload": ("payload", payload_figure),
    "efficiency by the length of tasks": ("efficiency", efficiency_figure),
}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """All figures that there are measurements for; the file name of each by its group or title."""
    drawn = {}
    for group, title in GROUPS.items():
        cases = [case for case in present(results) if case.group == group and results.ranking(case.name)]
        if cases:
            drawn[group] = _save(bars(results, cases, title), folder / f"benchmarks-{group}.svg")
    by_name: dict[str, list[Any]] = {}
    for curve in results.curves:
        by_name.setdefault(curve["curve"], []).append(curve)
    for title, (needed, drawer) in DRAWERS.items():
        if needed in by_name:
            drawn[title] = _save(drawer(by_name), folder / f"benchmarks-{needed}.svg")
    return drawn
