"""Draw a timeline as SVG text: legend, lanes with tasks and marks, axis, and the utilisation curve."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pairpool.view.survey import CoreUsage, SurveyLane
from pairpool.view.timeline_rows import OPACITY_LEVELS, Bar, Canvas, Mark
from pairpool.view.timescale import length_text, ticks

__all__ = ["OTHERS_COLOUR", "PICKLING_COLOUR", "Entry", "Picture", "lanes_width", "render"]

PALETTE = (
    "#4f86b8",
    "#e0b354",
    "#54a78f",
    "#b0648f",
    "#8fc4e3",
    "#7a6fae",
    "#a3ad4f",
    "#d08770",
    "#2f6d5f",
    "#8a5a44",
    "#9aa1ab",
    "#ccd1d8",
)
"""Ten colours for functions, then one for all other functions, and one for pickling.

The ten differ in lightness or in hue, so that people with any kind of colour vision can tell them apart.
"""

OTHERS_COLOUR = 10
PICKLING_COLOUR = 11

INK = "#24292f"
FAINT_INK = "#6e7781"
GRID_INK = "#e4e7eb"
ABSENT_FILL = "#eceef1"
FAILED_INK = "#c8102e"
WARNING_INK = "#9a6700"
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"

MARGIN_PX = 20.0
"""Left and right margin of the picture."""

MAX_LABEL_PX = 150.0
MAX_LANES_HEIGHT_PX = 1_250.0
"""Maximum height of all lanes together."""

MAX_LANE_HEIGHT_PX = 26.0
CURVE_HEIGHT_PX = 64.0
LABEL_HEIGHT_PX = 13.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A function in the legend: its colour, the number of its tasks, and their total time in µs."""

    colour: int
    name: str
    count: int
    length: float


@dataclass(frozen=True, slots=True)
class Picture:
    """The contents of a picture.

    Attributes:
        title: the name of the pool.
        is_ours: whether pairpool wrote the trace.
        facts: short texts below the title.
        remarks: warnings for the reader.
        width: the width of the whole picture in pixels.
        lanes: the places of the workers.
        begin, end: the time that is shown, in µs.
        zero: the zero of the axis, in µs.
        canvas: the tasks and marks.
        legend: the functions.
        happened: the kinds of marks to explain: died, replaced, retired, failed, pickling, absent.
        usage: the utilisation curve.
    """

    title: str
    is_ours: bool
    facts: Sequence[str]
    remarks: Sequence[str]
    width: int
    lanes: Sequence[SurveyLane]
    begin: float
    end: float
    zero: float
    canvas: Canvas
    legend: Sequence[Entry]
    happened: frozenset[str]
    usage: CoreUsage


def lanes_width(width: int, labels: Iterable[str]) -> float:
    """Return the width of the lanes in pixels, for a picture of this width with these labels."""
    return width - 2 * MARGIN_PX - _labels_width(labels)


def _labels_width(labels: Iterable[str]) -> float:
    return min(MAX_LABEL_PX, max((_text_width(label, 11) for label in labels), default=0.0)) + 10


def render(picture: Picture) -> str:
    """Return the picture as an SVG document."""
    head, top = _head(picture)
    left = picture.width - MARGIN_PX - picture.canvas.width
    pitch = _pitch(len(picture.lanes))
    bottom = top + pitch * len(picture.lanes)
    curve_top = bottom + 28
    height = math.ceil(curve_top + CURVE_HEIGHT_PX + 34)
    scale = picture.canvas.width / (picture.end - picture.begin)
    axis = [
        ((time + picture.zero - picture.begin) * scale, label)
        for time, label in ticks(
            picture.begin - picture.zero, picture.end - picture.zero, max(2, int(picture.canvas.width / 95))
        )
    ]
    size = f'width="{picture.width}" height="{height}" viewBox="0 0 {picture.width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" font-size="11" fill="{INK}">',
        f'<rect width="{picture.width}" height="{height}" fill="#fff"/>',
        *head,
        f'<g transform="translate({left:g} {top:g})">',
        *_lanes(picture, pitch, scale, axis),
        "</g>",
        f'<g transform="translate({left:g} {curve_top:g})">',
        *_curve(picture, axis),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


# --- above the lanes ---


def _head(picture: Picture) -> tuple[list[str], float]:
    """Return title, facts, remarks and legend, and the height at which they end."""
    room = picture.width - 2 * MARGIN_PX
    x = f'x="{MARGIN_PX:g}"'
    parts = [f'<text {x} y="34" font-size="19" font-weight="600">{_fit(picture.title, room, 20)}</text>']
    facts = _fit(" · ".join(picture.facts), room, 12.5)
    parts.append(f'<text {x} y="55" font-size="12.5" fill="{FAINT_INK}">{facts}</text>')
    y = 55.0
    for remark in picture.remarks:
        y += 18
        parts.append(
            f'<text {x} y="{y:g}" font-size="12.5" fill="{WARNING_INK}">⚠ {_fit(remark, room - 20, 12.5)}</text>'
        )
    y += 25
    at = MARGIN_PX
    for symbol, name, more in _legend(picture):
        name = _short(name, room - 120, 12)
        wide = 18 + _text_width(name, 12) + (6 + _text_width(more, 12) if more else 0) + 22
        if at > MARGIN_PX and at + wide - 22 > picture.width - MARGIN_PX:
            at, y = MARGIN_PX, y + 20
        parts.append(f'<g transform="translate({at:.1f} {y:g})">{symbol}<text x="18" font-size="12">{_escape(name)}')
        parts[-1] += f'<tspan dx="6" fill="{FAINT_INK}">{_escape(more)}</tspan></text></g>' if more else "</text></g>"
        at += wide
    return parts, y + 16 + (LABEL_HEIGHT_PX if _is_tall(picture) else 0)


def _legend(picture: Picture) -> Iterator[tuple[str, str, str]]:
    """Yield symbol, name and figures of each entry."""
    for entry in picture.legend:
        symbol = f'<rect y="-10" width="12" height="12" rx="2" fill="{PALETTE[entry.colour]}"/>'
        yield symbol, entry.name, f"{entry.count:,} · {length_text(entry.length)}"
    if "pickling" in picture.happened:
        yield f'<rect y="-10" width="12" height="12" rx="2" fill="{PALETTE[PICKLING_COLOUR]}"/>', "pickling", ""
    if "absent" in picture.happened:
        yield (
            f'<rect x=".5" y="-9.5" width="11" height="11" rx="2" fill="{ABSENT_FILL}" stroke="#c5cad1"/>',
            "no worker",
            "",
        )
    if "failed" in picture.happened:
        yield f'<path d="M0 1h12" stroke="{FAILED_INK}" stroke-width="3"/>', "failed", ""
    for kind in ("died", "replaced", "retired"):
        if kind in picture.happened:
            yield f'<g transform="translate(6 -4)">{_symbol(kind, 5)}</g>', kind, ""


# --- the lanes ---


def _pitch(lanes: int) -> float:
    """Return the distance from one lane to the next in pixels."""
    pitch = min(MAX_LANE_HEIGHT_PX, MAX_LANES_HEIGHT_PX / lanes)
    return float(math.floor(pitch)) if pitch >= 3 else pitch


def _bar_height(pitch: float) -> float:
    return pitch - 6 if pitch >= 18 else pitch - 3 if pitch >= 10 else pitch - 1 if pitch >= 4 else pitch * 0.85


def _is_tall(picture: Picture) -> bool:
    """Tell whether the first lanes are far from the axis at the bottom, so that they need a second axis."""
    return _pitch(len(picture.lanes)) * len(picture.lanes) > 400


def _lanes(picture: Picture, pitch: float, scale: float, axis: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Yield the lanes, in coordinates from their upper left corner."""
    width, height = picture.canvas.width, pitch * len(picture.lanes)
    yield f'<rect width="{width:g}" height="{height:g}" fill="{ABSENT_FILL}"/>'
    yield f'<path fill="#fff" d="{"".join(_lives(picture, pitch, scale))}"/>'
    grid = "".join(f"M{x:.1f} 0V{height:g}" for x, _ in axis)
    yield f'<path d="{grid}" stroke="{GRID_INK}" fill="none"/>'
    yield from _labels(picture.lanes, pitch)
    if _is_tall(picture):
        yield from _tick_labels(axis, -5, width)
    yield from _tasks(picture.canvas, pitch, _bar_height(pitch))
    yield f'<rect width="{width:g}" height="{height:g}" fill="none" stroke="#c5cad1"/>'
    for mark in picture.canvas.marks.values():
        yield _mark(mark, pitch)


def _lives(picture: Picture, pitch: float, scale: float) -> Iterator[str]:
    """Yield the areas in which there was a worker. Gaps of less than half a pixel are left out."""
    for row, lane in enumerate(picture.lanes):
        until = 0.0
        since = None
        for begin, end in lane.lives():
            left, right = (max(0.0, min(picture.canvas.width, (at - picture.begin) * scale)) for at in (begin, end))
            if since is not None and left - until >= 0.5:
                yield f"M{since:.1f} {row * pitch:.6g}H{until:.1f}v{pitch:.6g}H{since:.1f}z"
                since = left
            since = left if since is None else since
            until = max(until, right)
        if since is not None and until > since:
            yield f"M{since:.1f} {row * pitch:.6g}H{until:.1f}v{pitch:.6g}H{since:.1f}z"


def _labels(lanes: Sequence[SurveyLane], pitch: float) -> Iterator[str]:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if n * pitch >= LABEL_HEIGHT_PX)
    for row in range(0, len(lanes), every):
        y = (row + 0.5) * pitch + 4
        text = _fit(lanes[row].label, MAX_LABEL_PX, 11)
        yield f'<text x="-8" y="{y:.1f}" text-anchor="end" fill="{FAINT_INK}">{text}</text>'


def _tasks(canvas: Canvas, pitch: float, height: float) -> Iterator[str]:
    def line(lane: int, left: float, right: float) -> str:
        return f"M{left:.1f} {(lane + 0.5) * pitch:.6g}H{right:.1f}"

    faint: dict[tuple[int, int], list[str]] = {}
    for run in canvas.runs():
        faint.setdefault((run.level, run.colour), []).append(line(run.lane, run.left, run.right))
    yield f'<g fill="none" stroke-width="{height:.4g}">'  # thick lines, because they need half as much text as boxes
    for (level, colour), lines in sorted(faint.items()):
        yield f'<path stroke="{PALETTE[colour]}" stroke-opacity="{level / OPACITY_LEVELS:g}" d="{"".join(lines)}"/>'
    titled, others = canvas.bars()
    plain: dict[int, list[str]] = {}
    for bar in others:
        plain.setdefault(bar.colour, []).append(line(bar.lane, bar.left, _edge(bar)))
    for colour, lines in sorted(plain.items()):
        yield f'<path stroke="{PALETTE[colour]}" d="{"".join(lines)}"/>'
    for bar in titled:
        look = f'stroke="{PALETTE[bar.colour]}" d="{line(bar.lane, bar.left, _edge(bar))}"'
        yield f"<path {look}><title>{_escape(bar.title())}</title></path>"
    yield "</g>"
    failed = [(bar.lane, bar.left, _edge(bar)) for bar in (*titled, *others) if bar.failed]
    yield from _failures([*failed, *canvas.failures()], pitch, (pitch + height) / 2)


def _edge(bar: Bar) -> float:
    """Return the right edge of a bar as drawn: a little short of its end, so that a gap separates it from the next."""
    return bar.right - min(0.7, (bar.right - bar.left) / 6)


def _failures(places: Sequence[tuple[int, float, float]], pitch: float, foot: float) -> Iterator[str]:
    """Yield a red edge below each failed task."""
    if places:
        lines = (f"M{left:.1f} {lane * pitch + foot:.6g}H{max(right, left + 1.5):.1f}" for lane, left, right in places)
        thick = max(0.5, min(3.0, pitch / 7))
        yield f'<path d="{"".join(lines)}" stroke="{FAILED_INK}" stroke-width="{thick:.2g}"/>'


def _mark(mark: Mark, pitch: float) -> str:
    size = {"died": 5.0, "replaced": 5.0, "retired": 3.0}[mark.kind] * max(0.35, min(1.0, pitch / 18))
    title = mark.title + (f"\nand {mark.count - 1:,} more" if mark.count > 1 else "")
    place = f"{mark.at:.1f} {(mark.lane + 0.5) * pitch:.6g}"
    return f'<g transform="translate({place})">{_symbol(mark.kind, size)}<title>{_escape(title)}</title></g>'


def _symbol(kind: str, size: float) -> str:
    """Return a mark around the origin, with a white rim that makes it visible on any task."""
    if kind == "died":
        cross = f'd="M-{size:.2g}-{size:.2g}L{size:.2g} {size:.2g}M-{size:.2g} {size:.2g}L{size:.2g}-{size:.2g}"'
        rim = f'<path {cross} stroke="#fff" stroke-width="{size * 0.9:.2g}"/>'
        return f'{rim}<path {cross} stroke="{FAILED_INK}" stroke-width="{size * 0.45:.2g}"/>'
    if kind == "replaced":
        back = f"-{size / 2:.2g}"
        return f'<path d="M{back}-{size:.2g}L{size:.2g} 0L{back} {size:.2g}z" fill="{INK}" stroke="#fff"/>'
    return f'<path d="M0-{size:.2g}V{size:.2g}" stroke="{INK}" stroke-width="1.5"/>'


# --- below the lanes ---


def _tick_labels(axis: Sequence[tuple[float, str]], y: float, width: float) -> Iterator[str]:
    for x, label in axis:
        if x <= width - 8:
            yield f'<text x="{x:.1f}" y="{y:g}" text-anchor="middle" fill="{FAINT_INK}">{_escape(label)}</text>'


def _curve(picture: Picture, axis: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Yield the utilisation curve, in coordinates from its upper left corner, and the time axis."""
    width, height = picture.canvas.width, CURVE_HEIGHT_PX
    shares = picture.usage.shares
    step = width / len(shares)
    line = ""
    last = -1.0
    for number, share in enumerate(shares):
        y = round(height * (1 - share), 1)
        if y != last:
            line += f"H{number * step:.1f}V{y:g}"
            last = y
    grid = "".join(f"M{x:.1f} 0V{height + 4:g}" for x, _ in axis)
    grid += f"M0 {height / 2:g}H{width:g}"
    average = height * (1 - picture.usage.average)
    yield f'<text y="-6" fill="{FAINT_INK}">{"workers" if picture.is_ours else "threads"} busy</text>'
    yield f'<path d="M0 {height:g}{line}H{width:g}V{height:g}z" fill="#d5dee8"/>'
    yield f'<path d="{grid}" stroke="{GRID_INK}" stroke-opacity="0.8" fill="none"/>'
    yield f'<path d="M0 {height:g}{line}H{width:g}" stroke="#5b7a99" fill="none"/>'
    yield f'<path d="M0 {average:.1f}H{width:g}" stroke="{INK}" stroke-dasharray="4 3" stroke-width="0.8"/>'
    yield f'<rect width="{width:g}" height="{height:g}" fill="none" stroke="#c5cad1"/>'
    for share in (0.0, 0.5, 1.0):
        y = height * (1 - share) + 4
        yield f'<text x="-8" y="{y:.1f}" text-anchor="end" fill="{FAINT_INK}">{share:.0%}</text>'
    yield from _tick_labels(axis, height + 17, width)


# --- text ---

_UNFIT = re.compile("[^\t\n -\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, and other control characters."""


def _escape(text: str) -> str:
    return html.escape(_UNFIT.sub("\ufffd", text), quote=False)


def _text_width(text: str, size: float) -> float:
    """Return about how many pixels wide a text is in a font of this size."""
    return size * sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.56 for char in text)


def _short(text: str, room: float, size: float) -> str:
    """Return the text on one line, cut to fit into `room` pixels."""
    text = " ".join(text[:1000].split())
    if _text_width(text, size) <= room:
        return text
    while text and _text_width(text, size) > room - size:
        text = text[:-1]
    return text + "…"


def _fit(text: str, room: float, size: float) -> str:
    return _escape(_short(text, room, size))
