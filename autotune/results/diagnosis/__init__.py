"""What a study says and what its user should do next."""
