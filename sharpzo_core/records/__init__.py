"""Plain records of jobs, datasets, prompts, aliases and keys, and their rules."""
