"""`python -m sharpzo_cli` is `sharpzo`."""

import sys

from sharpzo_cli.main import main

sys.exit(main())
