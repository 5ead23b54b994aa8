"""The training loop, its optimiser, metrics and checkpoints."""
