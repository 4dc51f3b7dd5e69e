"""Print the OpenAPI document of the application: `python tools/openapi_json.py`."""

from __future__ import annotations

import json
import sys

from service.app import create_app
from sharpzo_core.settings import Settings

if __name__ == "__main__":
    sys.stdout.write(json.dumps(create_app(Settings()).openapi()))
