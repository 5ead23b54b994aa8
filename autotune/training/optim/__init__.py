"""What changes the weights: optimizer, phases, averages, statistics."""
