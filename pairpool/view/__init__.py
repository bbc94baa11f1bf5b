"""Status in, pictures out: what shows a pool to people."""
