"""Compare pairpool with other process pools, and with the limits of the machine: `make bench`."""
