"""Draw the figures of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.curves import CURVES
from benchmarks.model import OURS, VALUE, Case, Results, Spread
from benchmarks.report import GROUPS, name_of, number, present

STRONG = "#d55e00"
LIMIT = "#000000"
INK = "#333333"

# The colours of Okabe and Ito, which colour-blind people can distinguish. Each library also has its own marker.
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
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "pairpool",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

COLUMNS = 2
CUT_FACTOR = 2.5
"""A bar that is longer than this many times the median bar is cut."""


def _save(figure: Any, path: Path) -> str:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return path.name


def _bar_colour(library: str) -> str:
    return {OURS: STRONG, "multiprocessing": STANDARD_BAR}.get(library, PEER_BAR)


def _label(spread: Spread, ours: Spread | None) -> str:
    if ours is None or ours.middle <= 0 or ours == spread:
        return number(spread.middle)
    return f"{number(spread.middle)}  ({number(spread.middle / ours.middle)} ×)"


def _reach(values: list[float], limit: float) -> float:
    """Return the end of the axis, which suffices for most bars. Longer bars are cut, so that others stay readable."""
    return max(limit, min(max(values), CUT_FACTOR * median(values))) or 1.0


def _cut(axes: Any, place: int, reach: float) -> None:
    """Draw two slashes near the end of a bar that is cut."""
    for offset in (0.0, 0.014):
        x = reach * (0.945 + offset)
        axes.plot([x, x + reach * 0.016], [place - 0.42, place + 0.42], color="white", lw=2)


def _bars(axes: Any, results: Results, case: Case, slots: int) -> None:
    """Draw one case: a bar per library, the cheapest on top, and the limit as a dashed line."""
    ranking = results.ranking(case.name)[::-1]
    ours = results.spread(case.name, OURS)
    limit = results.spread(case.limit, "limit") if case.limit else None
    reach = _reach([spread.middle for _, spread in ranking], limit.middle if limit else 0.0)
    for place, (library, spread) in enumerate(ranking):
        axes.barh(place, min(spread.middle, reach), color=_bar_colour(library), height=0.72)
        if spread.middle > reach:
            _cut(axes, place, reach)
        else:
            axes.plot([spread.least, min(spread.most, reach)], [place, place], color=INK, lw=1, solid_capstyle="butt")
        end = min(reach, max(spread.most, 0.0)) + reach * 0.015
        weight = "bold" if library == OURS else "normal"
        told = number(spread.middle) if library in case.apart else _label(spread, ours)
        axes.text(end, place, told, va="center", fontsize=9, weight=weight)
    if limit:
        axes.axvline(limit.middle, color=LIMIT, ls=(0, (4, 3)), lw=1.2)
        axes.text(limit.middle, len(ranking) - 0.45, f"limit {number(limit.middle)}", fontsize=8.5, va="bottom")
    axes.set_yticks(range(len(ranking)), [name_of(case, library) for library, _ in ranking])
    for tick, (library, _) in zip(axes.get_yticklabels(), ranking, strict=True):
        tick.set_weight("bold" if library == OURS else "normal")
    axes.set_xlim(0, reach * 1.32)
    axes.set_ylim(len(ranking) - slots - 0.55, len(ranking) - 0.45)
    axes.set_xlabel(case.unit, fontsize=9)
    axes.set_title(case.title, loc="left", x=-0.34, pad=16 if limit else 8, weight="bold", fontsize=10)
    axes.tick_params(axis="y", length=0)


def bars(results: Results, cases: list[Case], title: str) -> Any:
    """Return a figure with one panel per case."""
    rows = -(-len(cases) // COLUMNS)
    slots = max(len(results.ranking(case.name)) for case in cases)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(11, 3.1 * rows + 0.7), squeeze=False, layout="constrained")
    for axes, case in zip(grid.flat, cases, strict=False):
        _bars(axes, results, case, slots)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    how = "less is better; in brackets: times pairpool; thin lines: best to worst run; slashed bars are cut"
    figure.suptitle(f"{title}: {how}", fontsize=10)
    return figure


# --- lines --------------------------------------------------------------------------------------------

Transform = Callable[[float, float], float]


def _plain(value: float, _position: int) -> str:
    """Return the label of a logarithmic axis: 1, 100, 10k, 1M."""
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
    """Draw one line per library, pairpool last, so that its line is on top."""
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


def _legend(figure: Any, *panels: Any) -> None:
    """Draw the legend below the panels: pairpool first, then the other libraries, then a limit."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = sorted(found, key=[*STYLES, *(label for label in found if label not in STYLES)].index)
    figure.legend([found[label] for label in labels], labels, loc="outside lower center", ncols=5, frameon=False)


def _pair() -> tuple[Any, Any, Any]:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    return figure, left, right


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", weight="bold", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _limit_line(axes: Any, results: Results, name: str, words: str, transform: Callable[[float], float]) -> None:
    """Draw a limit across the panel, and name it in the legend."""
    limit = results.spread(name, "limit")
    if limit:
        axes.axhline(transform(limit.middle), color=LIMIT, ls=(0, (4, 3)), lw=1.2, label=words)


def items_figure(results: Results) -> Any:
    figure, left, right = _pair()
    for axes, name in ((left, "map-items"), (right, "imap_unordered-items")):
        _lines(axes, results.curves_of(name))
        _log_axes(axes, _plain)
        _limit_line(axes, results, "pickle-lists", "limit: pickle", lambda value: value)
        _titled(axes, CURVES[name].title.partition(":")[0], "items", "µs per item")
    _legend(figure, left)
    return figure


def workers_figure(results: Results) -> Any:
    figure, left, right = _pair()
    curves = results.curves_of("workers")
    _lines(left, curves)
    _titled(left, "from opening to the first result", "workers", "ms")
    _lines(right, curves, "task")
    _titled(right, "tasks submitted one by one", "workers", "µs per task")
    for axes in (left, right):
        _log_axes(axes, _plain, base=2)
    _legend(figure, left)
    return figure


def payload_figure(results: Results) -> Any:
    """Draw time and rate. The rate begins at 4 KiB, because the cost of a smaller array is the cost of a call."""
    figure, left, right = _pair()
    curves = results.curves_of("payload")
    _lines(left, curves)
    _titled(left, "array there, small result back: time", "size of the array", "ms")
    large = [{**curve, "points": [(x, y) for x, y in curve.get("points", ()) if x >= 2**12]} for curve in curves]
    _lines(right, large, transform=lambda size, ms: size / ms / 1e6)
    _titled(right, "the same as a rate (more is better)", "size of the array", "GB/s")
    for axes in (left, right):
        _log_axes(axes, _bytes, base=2)
        axes.set_xticks([2**power for power in range(0, 31, 10 if axes is left else 5) if axes is left or power > 10])
    _limit_line(right, results, "memcpy-warm", "limit: one copy", lambda ms: 2**26 / ms / 1e6)
    _legend(figure, left, right)
    return figure


def efficiency_figure(results: Results) -> Any:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    _lines(axes, results.curves_of("efficiency"))
    _log_axes(axes, _plain, log_y=False)
    axes.set_ylim(0, 103)
    _titled(axes, "time of two workers that was spent in tasks (more is better)", "µs of a task", "%")
    _legend(figure, axes)
    return figure


DRAWERS: dict[str, tuple[str, Callable[[Results], Any]]] = {
    "cost by the number of items": ("map-items", items_figure),
    "cost by the number of workers": ("workers", workers_figure),
    "cost by the size of the payload": ("payload", payload_figure),
    "efficiency by the length of tasks": ("efficiency", efficiency_figure),
}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw all figures that have measurements. Return the file names by group or title."""
    drawn = {}
    for group, title in GROUPS.items():
        cases = [case for case in present(results) if case.group == group and results.ranking(case.name)]
        if cases:
            drawn[group] = _save(bars(results, cases, title), folder / f"benchmarks-{group}.svg")
    for title, (needed, drawer) in DRAWERS.items():
        if results.curves_of(needed):
            drawn[title] = _save(drawer(results), folder / f"benchmarks-{needed}.svg")
    return drawn
