"""`python -m pairpool`: the command, where its script is not on the path."""

import sys

from pairpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
