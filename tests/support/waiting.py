"""The time limit of a wait that is expected to end at once."""

from __future__ import annotations

__all__ = ["PATIENCE"]

PATIENCE = 20.0
"""Seconds after which an event that should happen at once counts as a hang. Only a failing test waits this long."""
