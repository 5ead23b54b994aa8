"""Split a network into a prefix whose features are cached and a tail that trains."""
