"""The database of studies, its locks and heartbeats, and the files beside it."""
