"""Online classification; the only part of the API process that loads torch."""
