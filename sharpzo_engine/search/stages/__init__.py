"""The stages of SharpZO. They only use numpy and an objective, never a model."""
