"""Parameters that depend on each other: which have an effect, and the rates of each optimizer."""
