"""The training loop, its optimizer, metrics and checkpoints."""
