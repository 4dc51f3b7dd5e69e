"""The routes of `/v1`, one module per resource: they parse, call the core and respond."""
