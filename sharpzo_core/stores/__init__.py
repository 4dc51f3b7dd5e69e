"""The stores: every query that writes to the database."""
