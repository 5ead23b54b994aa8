"""Find what is wrong with a study, and repair it."""
