"""Format durations, and place the ticks of a time axis. All times are in µs."""

from __future__ import annotations

import math

__all__ = ["length_text", "ticks"]

SECOND_US = 1e6
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US

_UNITS = ((SECOND_US, "s"), (1e3, "ms"), (1.0, "µs"), (1e-3, "ns"))
_LONG_STEPS = tuple(
    [n * SECOND_US for n in (1, 2, 5, 10, 15, 30)]
    + [n * MINUTE_US for n in (1, 2, 5, 10, 15, 30)]
    + [n * HOUR_US for n in (1, 2, 3, 6, 12, 24)]
)


def length_text(us: float) -> str:
    """Return a duration with about three digits: `850 ns`, `12.3 ms`, `4.56 s`, `2 min 05 s`, `3 h 07 min`."""
    if us >= 10 * HOUR_US:
        return f"{us / HOUR_US:,.1f} h"
    if us >= HOUR_US - MINUTE_US / 2:
        minutes = round(us / MINUTE_US)
        return f"{minutes // 60} h {minutes % 60:02} min"
    if us >= 99.95 * SECOND_US:
        seconds = round(us / SECOND_US)
        return f"{seconds // 60} min {seconds % 60:02} s"
    if us <= 0:
        return "0 s"
    for unit, name in _UNITS:
        if us >= 0.9995 * unit or name == "ns":
            number = us / unit
            digits = 0 if number >= 99.95 or name == "ns" else 1 if number >= 9.995 else 2
            return f"{number:.{digits}f} {name}"
    raise AssertionError("the last unit fits every number")


def ticks(begin: float, end: float, most: int) -> list[tuple[float, str]]:
    """Return at most about `most` round times from `begin` to `end`, evenly spaced, with labels."""
    if not end > begin or most < 1:
        return []
    step = _step((end - begin) / most, end)
    first, last = math.ceil(begin / step - 1e-9), math.floor(end / step + 1e-9)
    return [(n * step, _label(n * step, step, end)) for n in range(first, last + 1)]


def _step(least: float, end: float) -> float:
    """Return the smallest round step that is not below `least`, for an axis up to `end`."""
    if end > 120 * SECOND_US and least > SECOND_US / 2:
        for step in _LONG_STEPS:
            if step >= least * (1 - 1e-9):
                return step
        least /= 24 * HOUR_US
        return _decimal_step(least) * 24 * HOUR_US
    return _decimal_step(least)


def _decimal_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 5):
        if factor * power >= least * (1 - 1e-9):
            return factor * power
    return 10 * power


def _label(time: float, step: float, end: float) -> str:
    if abs(time) < step / 2:
        return "0"
    if end > 120 * SECOND_US and step >= SECOND_US:
        sign, seconds = "-" if time < 0 else "", round(abs(time) / SECOND_US)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        if step >= MINUTE_US and end >= HOUR_US:
            return f"{sign}{hours} h" if step >= HOUR_US else f"{sign}{hours}:{minutes:02} h"
        if end >= HOUR_US:
            return f"{sign}{hours}:{minutes:02}:{seconds % 60:02}"
        return f"{sign}{minutes}:{seconds % 60:02} min"
    unit, name = next(((unit, name) for unit, name in _UNITS if end >= unit), _UNITS[-1])
    digits = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return f"{time / unit:.{digits}f} {name}"
