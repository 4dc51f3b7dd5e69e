"""Validates and creates jobs."""
