"""Studies: defining, opening and running them; trials, workers and the launcher."""
