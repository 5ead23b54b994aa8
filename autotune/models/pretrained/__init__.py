"""What the weights of a backbone come from: its file, the tensors in it, and how they fit."""
