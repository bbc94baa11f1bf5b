"""All cases by name."""

from __future__ import annotations

from benchmarks.cases import arrays, balance, calls, memory, pools
from benchmarks.model import Case

CASES: dict[str, Case] = {
    case.name: case for case in (*calls.CASES, *balance.CASES, *arrays.CASES, *pools.CASES, *memory.CASES)
}
