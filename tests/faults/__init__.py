"""The violent tests: processes die, pickles break, limits bite."""
