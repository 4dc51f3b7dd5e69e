"""Server-sent events: job events and live metrics."""
