"""From an uploaded or fetched archive to a ready dataset."""
