"""The `sharpzo` command. Importing it loads neither torch nor the service."""
