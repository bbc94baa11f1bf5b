"""Tests of `pairpool stress`."""
