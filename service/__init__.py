"""The API process: REST under `/v1`, dataset ingest, and online classification."""
