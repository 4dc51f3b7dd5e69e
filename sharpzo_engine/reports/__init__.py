"""HTML reports of tuning runs and evaluations."""
