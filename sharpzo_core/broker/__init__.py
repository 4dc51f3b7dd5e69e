"""The message broker: queue names, the Celery application and its transports."""
