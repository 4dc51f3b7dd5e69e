"""`python -m worker`: run one worker until SIGTERM."""

import argparse
import sys

from sharpzo_core.errors import CoreError
from sharpzo_core.settings import Settings
from worker.main import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker", description=main.__doc__)
    parser.add_argument(
        "--parent-pid", type=int, help="end when the process with this id is no longer the parent"
    )
    arguments = parser.parse_args()
    try:
        sys.exit(main(Settings.load(), arguments.parent_pid))
    except CoreError as error:
        sys.exit(f"error: {error}")
