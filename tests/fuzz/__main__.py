"""`python -m tests.fuzz` measures the figures of `docs/security.md`."""

import sys

from tests.fuzz.figures import main

if __name__ == "__main__":
    sys.exit(main())
