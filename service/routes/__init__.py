"""The routes of `/v1`, one module per kind of object; they parse, call the core and answer."""
