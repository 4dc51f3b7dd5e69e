"""The tuning process: a Celery worker with thin tasks around a plain function, `run_job`."""
