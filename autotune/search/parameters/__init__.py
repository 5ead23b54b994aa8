"""Parameters of a space: their values, which have an effect, and those of each optimizer."""
