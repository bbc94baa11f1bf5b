"""`python -m pairpool`."""

from __future__ import annotations

from pairpool.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
