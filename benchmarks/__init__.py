"""pairpool beside other process pools, and beside what the machine allows: `make bench`."""
