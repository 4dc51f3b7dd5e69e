"""CLIP: loading a backbone, and its image and text encoders, forward only."""
