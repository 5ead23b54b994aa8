"""What goes into a training step: batches, and where they lie."""
