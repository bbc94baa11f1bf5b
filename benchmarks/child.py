"""Make one measurement in this process: `python -m benchmarks.child KIND NAME LIBRARY [SCALE]`.

KIND is case, curve or limit. The last line on standard output is the outcome as JSON. The output of libraries goes to
standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from benchmarks.cases import CASES
from benchmarks.peers import PEERS, Unsupported


def _case(name: str, library: str, scale: float) -> dict[str, Any]:
    case = CASES[name]
    return {"values": case.run(PEERS[library](), case.size_for(library, scale))}


def _curve(name: str, library: str) -> dict[str, Any]:
    from benchmarks.curves import CURVES

    curve = CURVES[name]
    most = curve.caps.get(library)
    xs = [x for x in curve.xs if most is None or x <= most]
    return {"points": [[x, values] for x, values in curve.run(PEERS[library](), xs)]}


def _limit(name: str) -> dict[str, Any]:
    from benchmarks.limits import LIMITS

    return {"values": LIMITS[name].run()}


def outcome(kind: str, name: str, library: str, scale: float = 1.0) -> dict[str, Any]:
    """Return the measurement, or `trouble` with the reason why there is none."""
    try:
        if kind == "case":
            return _case(name, library, scale)
        return _curve(name, library) if kind == "curve" else _limit(name)
    except Unsupported as reason:
        return {"trouble": str(reason)}


def main() -> None:
    kind, name, library, *more = sys.argv[1:]
    results = os.dup(1)
    os.dup2(2, 1)
    found = outcome(kind, name, library, *map(float, more))
    os.write(results, json.dumps(found).encode() + b"\n")
    if kind == "case" and CASES[name].is_left_open:
        sys.stderr.flush()
        os._exit(0)  # the runner kills the processes of the pool


if __name__ == "__main__":
    main()
