"""What the API process and the worker processes share: settings, the job model and the stores.

Nothing here loads torch or FastAPI.
"""
