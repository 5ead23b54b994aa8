"""The report of a study in every format."""
