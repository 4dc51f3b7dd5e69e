"""The two stages of SharpZO. They know an objective and numpy, never a model."""
