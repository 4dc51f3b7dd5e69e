"""`python -m sharpzo_core.migrations REVISION` downgrades the database to an earlier schema."""

import argparse
import sys

from sharpzo_core.errors import CoreError
from sharpzo_core.migrations import downgrade
from sharpzo_core.settings import Settings


def main() -> None:
    """Downgrade to a revision; every other process must have ended before."""
    parser = argparse.ArgumentParser(prog="python -m sharpzo_core.migrations", description=__doc__)
    parser.add_argument("revision", help="such as 0007: the newest that the older version knows")
    arguments = parser.parse_args()
    try:
        downgrade(Settings.load(), arguments.revision)
    except CoreError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
