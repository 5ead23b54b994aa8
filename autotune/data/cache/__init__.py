"""Arrays that are computed once and stored on disk for all workers."""
