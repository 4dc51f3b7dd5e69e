"""The tuned prompt: its file, the classifier made from it, evaluation and export."""
