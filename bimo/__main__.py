"""`python -m bimo` is the command `bimo`; so is `torchrun --nproc-per-node 4 -m bimo`."""

import sys

from bimo.cli import main

if __name__ == "__main__":
    sys.exit(main())
