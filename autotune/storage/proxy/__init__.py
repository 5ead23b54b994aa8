"""A server between very many workers and the database of their studies."""
