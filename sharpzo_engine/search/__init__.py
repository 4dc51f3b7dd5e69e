"""The prompt search: space, objective, stages, checkpoints and the loop that runs them."""
