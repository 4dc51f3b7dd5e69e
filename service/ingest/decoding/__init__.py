"""Decoding untrusted images in processes that can do nothing else."""
