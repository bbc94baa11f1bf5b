"""Status in, pictures out: what shows a pool, in its own process or from outside."""
