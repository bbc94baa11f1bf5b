"""Helpers that the tests of several folders share, one module per purpose.

The package itself imports nothing, so that a fresh interpreter that imports `tests.support.tasks` starts quickly.
"""
