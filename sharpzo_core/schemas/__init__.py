"""The bodies of requests and answers, by resource. Stored records are in `sharpzo_core.records`."""
