"""Start, watch and replace workers."""
