"""Studies and databases for tests, made in a moment or run small."""
