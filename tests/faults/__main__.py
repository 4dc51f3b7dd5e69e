"""`python -m tests.faults` measures the figures of `docs/reliability.md`."""

import sys

from tests.faults.figures import main

# The processes that some figures start import this module again.
if __name__ == "__main__":
    sys.exit(main())
