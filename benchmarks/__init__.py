"""One command per figure that the documentation states."""
