"""Arrays that are computed once and kept on disk for all workers."""
