"""Show a pool, in its own process or from outside: a status in, pictures out."""
