"""Closed-form and linear heads on the image features."""
