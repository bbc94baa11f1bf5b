"""Make docs/benchmarks.md and its figures from results.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.curves import CURVES
from benchmarks.limits import LIMITS
from benchmarks.model import OURS, STANDARD, VALUE, Case, Results, Spread, Verdict

DOCS = Path(__file__).parent.parent / "docs"

GROUPS = {
    "calls": "Calls and maps of tasks that do nothing",
    "balance": "Tasks of unequal length",
    "arrays": "Arrays",
    "pools": "Opening and closing",
    "memory": "Memory",
}

HEAD = """\
# Benchmarks

`make bench` writes this page. Do not edit the page; change `benchmarks/report.py`.

{about}
Each figure is the median of {repeat} processes ({range}). Cases and libraries take turns. All figures of cases are
costs: less is better. Pools have two workers unless the text says otherwise. A *limit* is the time that the machine
itself needs for the minimum work of a case. It is measured in the same run.

"""


def number(value: float) -> str:
    """Return a number with three digits and without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def name_of(case: Case, library: str) -> str:
    """Return the name of a library. If its figure cannot be compared, the name contains its size."""
    return f"{library} ({case.caps[library]:,})" if library in case.apart else library


def spread_text(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.count == 1:
        return number(spread.middle)
    return f"{number(spread.middle)} ({number(spread.least)} to {number(spread.most)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, which is readable in a terminal, too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def present(results: Results) -> list[Case]:
    """Return the cases that were measured."""
    return [case for case in CASES.values() if results.has(case.name)]


def _ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else number(ratio)


def _verdict_text(case: Case, verdict: Verdict) -> str:
    aim = verdict.aim
    unit = "" if aim.of else f" {case.fields.get(aim.field, case.unit)}"
    return f"{aim}{unit}: " + ("met" if verdict.is_met else f"**missed**, {number(verdict.reached)}")


def _summary_row(results: Results, case: Case) -> list[str]:
    best = results.best_peer(case.name, case.apart)
    ours = results.spread(case.name, OURS)
    first = bool(best and ours and ours.middle <= best[1].middle)
    verdicts = results.verdicts(case)
    return [
        f"{case.title} `{case.name}`",
        case.unit,
        spread_text(ours) or results.trouble(case.name, OURS),
        f"{number(best[1].middle)} {best[0]}" if best else "",
        "" if not (best and ours) else ("yes" if first else "no"),
        "" if STANDARD in case.apart else _ratio_text(results.ratio(case.name, STANDARD)),
        _ratio_text(results.ratio(case.name, f"limit:{case.limit}")) if case.limit else "",
        "; ".join(_verdict_text(case, verdict) for verdict in verdicts),
    ]


def summary(results: Results) -> str:
    """Return a table of all cases: pairpool, its best peer, the comparisons, and the aims."""
    head = ("case", "unit", OURS, "best peer", "ahead", f"÷ {STANDARD}", "÷ limit", "aims")
    return table(head, (_summary_row(results, case) for case in present(results)))


def score(results: Results) -> str:
    """Return in words how many aims are met, and in which cases another library is ahead."""
    verdicts = [verdict for case in present(results) for verdict in results.verdicts(case)]
    met = sum(verdict.is_met for verdict in verdicts)
    behind = []
    for case in present(results):
        best, ours = results.best_peer(case.name, case.apart), results.spread(case.name, OURS)
        if best and ours and best[1].middle < ours.middle:
            behind.append(
                f"- {best[0]} in `{case.name}`: pairpool costs {number(ours.middle / best[1].middle)} times as much\n"
            )
    ahead = (
        f"Another library is ahead in these cases:\n\n{''.join(behind)}"
        if behind
        else "No other library is ahead in any case.\n"
    )
    return f"{met} of {len(verdicts)} aims are met. {ahead}"


def _size_text(case: Case) -> str:
    told = [f"{library} {size:,}" for library, size in case.caps.items()]
    return f"These libraries are slow, so their size is less than {case.size:,}: {', '.join(told)}."


def _notes(results: Results, case: Case) -> Iterable[str]:
    """Yield what the reader has to know about the figures of a case, and the reasons for missing figures."""
    yield from case.remarks
    if case.caps:
        yield _size_text(case)
    found: dict[str, list[str]] = {}
    for library in results.libraries():
        if reason := case.without.get(library) or results.trouble(case.name, library):
            found.setdefault(reason, []).append(library)
    for reason, libraries in found.items():
        yield f"No figure for {', '.join(libraries)}: {reason}."


def _details(results: Results, case: Case) -> str:
    """Return a table of all libraries in one case, the cheapest first, and the reasons for missing figures."""
    fields = [VALUE, *case.fields]
    head = ["", case.unit, *(case.fields[name] for name in fields[1:])]
    rows = [
        [name_of(case, library), *(spread_text(results.spread(case.name, library, name)) for name in fields)]
        for library, _ in results.ranking(case.name)
    ]
    if case.limit and (limit := results.spread(case.limit, "limit")):
        rows.append([f"*limit*: {LIMITS[case.limit].title}", spread_text(limit), *("" for _ in fields[1:])])
    told = "".join(f"- {note}\n" for note in _notes(results, case))
    return f"### {case.title} `{case.name}`\n\n{table(head, rows)}\n" + (f"{told}\n" if told else "")


def _limits(results: Results) -> str:
    rows = [
        [limit.title, f"`{limit.name}`", limit.unit, spread_text(results.spread(limit.name, "limit"))]
        for limit in LIMITS.values()
        if results.has(limit.name)
    ]
    note = "The scheduler chooses the cores of the two ends of a pair. This changes `ping-pong` severalfold.\n"
    return f"## Limits\n\n{table(('', '', 'unit', 'median (range)'), rows)}\n{note}"


def _about(results: Results) -> str:
    meta = results.meta
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return (
        f"{meta['date']}, Linux {meta['kernel']}, CPython {meta['python']}, {meta['cores']} cores, "
        f"{meta['memory_gib']} GiB.\nWith {versions}.\n"
    )


def _missing(results: Results) -> str:
    """Return in words which points of the curves are missing, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for curve in CURVES.values():
        if results.curves_of(curve.name):
            for library, reason in curve.without.items():
                found.setdefault((curve.name, reason), []).append(library)
            for library, most in curve.caps.items():
                found.setdefault((curve.name, f"not measured above {most:,}"), []).append(library)
    for one in results.curves:
        if one.get("trouble"):
            found.setdefault((one["curve"], one["trouble"]), []).append(one["library"])
    told = [f"- {', '.join(libraries)} in `{curve}`: {reason}.\n" for (curve, reason), libraries in found.items()]
    return f"These figures are missing:\n\n{''.join(told)}\n" if told else ""


def page(results: Results, figures: dict[str, str]) -> str:
    """Return the text of docs/benchmarks.md. `figures` has a file name for each group and curve that was drawn."""
    repeat = results.meta["repeat"]
    parts = [HEAD.format(about=_about(results), repeat=repeat, range="min to max" if repeat > 1 else "one process")]
    parts += ["## Summary\n\n", score(results), "\n", summary(results), "\n"]
    for group, title in GROUPS.items():
        cases = [case for case in present(results) if case.group == group]
        if not cases:
            continue
        parts.append(f"## {title}\n\n")
        if group in figures:
            parts.append(f"![{title}]({figures[group]})\n\n")
        parts += [_details(results, case) for case in cases]
    drawn = [name for name in figures if name not in GROUPS]
    if drawn:
        parts.append("## How costs grow\n\nEach line is one process. A line ends where a library took too long.\n\n")
        parts += [f"![{name}]({figures[name]})\n\n" for name in drawn]
        parts.append(_missing(results))
    parts.append(_limits(results))
    return "".join(parts)


def write(results: Results) -> None:
    """Draw the figures and write the page."""
    from benchmarks import plots

    figures = plots.draw(results, DOCS)
    (DOCS / "benchmarks.md").write_text(page(results, figures))
