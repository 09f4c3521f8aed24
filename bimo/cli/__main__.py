"""`python -m bimo.cli` is the command `bimo`."""

import sys

from bimo.cli import main

if __name__ == "__main__":
    sys.exit(main())
